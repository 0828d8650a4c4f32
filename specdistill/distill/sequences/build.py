"""Builds the source of a method's sequences: which ones it trains on, in which order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.texts import read_pieces
from specdistill.distill.answers import matching
from specdistill.distill.answers.given import AnswerCounts, without_empty
from specdistill.distill.answers.text_blocks import block_size, text_blocks, text_counts
from specdistill.distill.sequences.fixed import fixed_sequences
from specdistill.distill.sequences.inputs import SequenceInputs as SequenceInputs
from specdistill.distill.sequences.on_policy import OnPolicy
from specdistill.distill.sequences.online import Online
from specdistill.distill.sequences.pool import Pool
from specdistill.distill.sequences.settings import SequenceSettings
from specdistill.distill.sequences.skd import Skd
from specdistill.distill.sequences.sources import Labelled, Mixture, Phases, Source, Viewed
from specdistill.distill.sequences.text_stream import TextStream
from specdistill.errors import ConfigError
from specdistill.evaluation.summaries import RightAnswers
from specdistill.models import ModelPair
from specdistill.models.answer_end import document_end
from specdistill.models.head_draft import HeadModel


@dataclass(frozen=True)
class Built:
    """A method's source of sequences."""

    source: Source
    reused: frozenset[Example] = frozenset()
    """Those of its sequences that come again every epoch."""
    answers: AnswerCounts = field(default_factory=AnswerCounts)
    """Answers of the fixed set that were cut or left out."""
    right: RightAnswers | None = None
    """Right answers among those that were chosen from; None where nothing was chosen, or no answer is wrong."""


def build_source(inputs: SequenceInputs) -> Built:
    """Builds the method's source of sequences.

    Raises:
        DataError: There is nothing to train on.
    """
    target = inputs.target
    if target.stored is not None:
        assert target.labeller is not None, "stored answers come with labels"
        stored = target.stored.select(inputs.prompts, inputs.encoded, target.view)
        name = inputs.pair.target.label
        remarks = matching.remarks("--soft-labels", (), stored, inputs.prompts, name)
        for line in remarks + matching.labels_by_another(target.stored.labelled_by, name):
            inputs.progress.say(line)
        examples, answers = without_empty(stored, inputs.progress.say)
        source: Source = _pool(inputs, examples)
        if target.labels_examples:
            source = Labelled(source, target.labeller)
        return Built(source, answers=answers)
    built = _BUILDERS.get(inputs.method.name, _fixed)(inputs)
    if target.view.ids:
        reused = frozenset(target.view.examples(list(built.reused)))
        built = dataclasses.replace(built, source=Viewed(built.source, target.view), reused=reused)
    if target.labeller is not None and inputs.needs_labels:
        built = dataclasses.replace(built, source=Labelled(built.source, target.labeller))
    return built


def _text(inputs: SequenceInputs, source: str) -> Built:
    draft = inputs.pair.draft
    block = text_block(inputs.settings, inputs.pair)

    def read() -> Iterator[Example]:
        return text_blocks(read_pieces(source), draft.tokenizer, document_end(draft), block, draft.vocab_size)

    # A corpus without two tokens is found now rather than at the first step.
    next(read())
    answers = text_counts(source, inputs.documents, inputs.progress.say)
    return Built(TextStream(read, inputs.batch_size, inputs.seed, inputs.ranks), answers=answers)


def text_block(settings: SequenceSettings, pair: ModelPair) -> int:
    """Predicted tokens per block of --text.

    Raises:
        ConfigError: --text-block does not fit the models' context.
    """
    return block_size(settings.text_block, min(pair.target.max_context, pair.draft.max_context), pair.draft.tokenizer)


def _fixed(inputs: SequenceInputs) -> Built:
    if inputs.settings.text is not None:
        return _text(inputs, inputs.settings.text)
    found = fixed_sequences(inputs)
    measured = {} if found.right is None else found.right.shares()
    return Built(_pool(inputs, found.examples, measured), frozenset(found.examples), found.answers, found.right)


def _gkd(inputs: SequenceInputs) -> Built:
    own, lmbda = _on_policy(inputs), inputs.settings.lmbda
    if lmbda == 1:
        # Nothing fixed will be trained on, so nothing is sampled.
        return Built(own)
    fixed = _fixed(inputs)
    return dataclasses.replace(fixed, source=Mixture(own, fixed.source, lmbda, inputs.seed + 2))


def _distillspec(inputs: SequenceInputs) -> Built:
    own = _on_policy(inputs)
    own_answers = inputs.rewarded or inputs.engine is not None
    last = round(target_fraction(inputs.settings.target_fraction, own_answers) * inputs.steps)
    if last == 0:
        return Built(own)
    fixed = _fixed(inputs)
    return dataclasses.replace(fixed, source=Phases(fixed.source, own, last))


def _skd(inputs: SequenceInputs) -> Built:
    source = Skd(
        inputs.pair,
        inputs.prompts,
        inputs.encoded,
        inputs.sampling,
        target_sampling=inputs.settings.skd_target_sampling(inputs.sampling),
        top_k=inputs.settings.skd_top_k,
        num_draft_tokens=inputs.settings.skd_num_draft_tokens,
        max_new_tokens=inputs.settings.max_new_tokens,
        batch_size=inputs.batch_size,
        seed=inputs.seed + 1,
        ranks=inputs.ranks,
        view=inputs.target.view,
        say=inputs.progress.say,
    )
    return Built(source)


def _online(inputs: SequenceInputs) -> Built:
    if inputs.ranks.world > 1:
        raise ConfigError("--method online runs in one process: ranks would see the log grow at different moments")
    assert inputs.settings.online is not None, "TrainConfig checks it"
    source = Online(
        Path(inputs.settings.online),
        vocab_size=inputs.pair.target.vocab_size,
        max_context=min(inputs.pair.target.max_context, inputs.pair.draft.max_context) - 1,
        batch_size=inputs.batch_size,
        seed=inputs.seed,
        wait_seconds=inputs.settings.online_wait,
        round_tokens=_ROUND_TOKENS if isinstance(inputs.pair.draft, HeadModel) else 0,
        say=inputs.progress.say,
    )
    return Built(source)


_ROUND_TOKENS = 8
"""Tokens before a correction where rounds of a head may have begun: as many as heads are served with at most."""
_BUILDERS: dict[str, Callable[[SequenceInputs], Built]] = {
    "gkd": _gkd,
    "distillspec": _distillspec,
    "skd": _skd,
    "online": _online,
}
"""Builders of the methods that do more than go through a fixed set."""


def _pool(inputs: SequenceInputs, examples: Sequence[Example], measured: Mapping[str, float | None] = {}) -> Pool:
    return Pool(examples, inputs.batch_size, inputs.seed, inputs.ranks, measured)


def _on_policy(inputs: SequenceInputs) -> OnPolicy:
    return OnPolicy(
        inputs.pair.draft,
        inputs.prompts,
        inputs.encoded,
        inputs.sampling,
        inputs.settings.max_new_tokens,
        inputs.batch_size,
        inputs.seed + 1,
        inputs.ranks,
        inputs.engine,
        inputs.push_every,
    )


def target_fraction(fraction: float | None, own_answers: bool) -> float:
    """The share that was set, or one by whether something is asked of the draft's own answers.

    On the target's answers forward KL lost under no rule and gained under `sampled`; on the draft's own it lost: rows
    `target-fkl` and `distillspec-fkl` of benchmarks/results/methods.json, `more-fkl` of drifted.json.

    Args:
        fraction: Set by the user, or None.
        own_answers: Whether a reward judges the draft's own answers, or an engine writes them.
    """
    if fraction is not None:
        return fraction
    return 0.6 if own_answers else 1.0
