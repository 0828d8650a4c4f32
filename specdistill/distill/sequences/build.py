"""Builds the source of a method's sequences: which ones it trains on, in which order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt, check_ids
from specdistill.data.texts import TextCounts, read_pieces
from specdistill.decoding import Guidance
from specdistill.distill.answers import matching, scorers, shards
from specdistill.distill.answers.engine import RolloutEngine
from specdistill.distill.answers.given import AnswerCounts, given_answers, without_empty
from specdistill.distill.answers.text_blocks import block_size, text_blocks, text_counts
from specdistill.distill.methods import Method
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.sequences.on_policy import OnPolicy
from specdistill.distill.sequences.online import Online
from specdistill.distill.sequences.pool import Pool
from specdistill.distill.sequences.retokenise import retokenise
from specdistill.distill.sequences.settings import SequenceSettings
from specdistill.distill.sequences.skd import Skd
from specdistill.distill.sequences.sources import Labelled, Mixture, Phases, Source
from specdistill.distill.sequences.text_stream import TextStream
from specdistill.distill.target.place import OpenTarget
from specdistill.errors import ConfigError
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.answer_end import answer_end, document_end
from specdistill.models.checkpoint import is_fresh_cut
from specdistill.progress import Progress
from specdistill.settings.sampling import Sampling

ROLLOUTS_DIRECTORY = "rollouts"


@dataclass(frozen=True, kw_only=True)
class SequenceInputs:
    """Everything that a method needs to find or make its sequences."""

    method: Method
    settings: SequenceSettings
    pair: ModelPair
    target: OpenTarget
    """The pair's target, with whoever labels and answers in its place."""
    prompts: Sequence[Prompt]
    encoded: Sequence[list[int]]
    """The prompts in the target's ids."""
    sampling: Sampling
    batch_size: int
    steps: int
    seed: int
    output: Path
    """Directory of the run; answers of the target are kept in its folder rollouts."""
    progress: Progress
    guidance: Guidance | None = None
    engine: RolloutEngine | None = None
    """Writes the draft's own answers; None where transformers does."""
    push_every: int = 1
    needs_labels: bool = True
    """Whether the loss compares with the target's distributions: cross entropy needs its words only."""
    ranks: Ranks = ALONE
    documents: TextCounts | None = None
    """Documents of --text, where they were counted."""


@dataclass(frozen=True)
class Built:
    """A method's source of sequences."""

    source: Source
    reused: frozenset[Example] = frozenset()
    """Those of its sequences that come again every epoch."""
    answers: AnswerCounts = field(default_factory=AnswerCounts)
    """Answers of the fixed set that were cut or left out."""


def build_source(inputs: SequenceInputs) -> Built:
    """Builds the method's source of sequences.

    Raises:
        DataError: There is nothing to train on.
    """
    target = inputs.target
    if target.stored is not None:
        assert target.labeller is not None, "stored answers come with labels"
        stored = target.stored.select(inputs.prompts, inputs.encoded)
        name = inputs.pair.target.name
        remarks = matching.remarks("--soft-labels", (), stored, inputs.prompts, name)
        for line in remarks + matching.labels_by_another(target.stored.labelled_by, name):
            inputs.progress.say(line)
        examples, answers = without_empty(stored, inputs.progress.say)
        return Built(Labelled(_pool(inputs, examples), target.labeller), answers=answers)
    built = _BUILDERS.get(inputs.method.name, _fixed)(inputs)
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
    examples, answers = fixed_sequences(inputs)
    return Built(_pool(inputs, examples), frozenset(examples), answers)


def _gkd(inputs: SequenceInputs) -> Built:
    own, lmbda = _on_policy(inputs), inputs.settings.lmbda
    if lmbda == 1:
        # Nothing fixed will be trained on, so nothing is sampled.
        return Built(own)
    fixed = _fixed(inputs)
    return dataclasses.replace(fixed, source=Mixture(own, fixed.source, lmbda, inputs.seed + 2))


def _distillspec(inputs: SequenceInputs) -> Built:
    own = _on_policy(inputs)
    last = round(target_fraction(inputs.settings.target_fraction, inputs.pair.draft) * inputs.steps)
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
        top_k=inputs.settings.skd_top_k,
        num_draft_tokens=inputs.settings.skd_num_draft_tokens,
        max_new_tokens=inputs.settings.max_new_tokens,
        batch_size=inputs.batch_size,
        seed=inputs.seed + 1,
        ranks=inputs.ranks,
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
        say=inputs.progress.say,
    )
    return Built(source)


_BUILDERS: dict[str, Callable[[SequenceInputs], Built]] = {
    "gkd": _gkd,
    "distillspec": _distillspec,
    "skd": _skd,
    "online": _online,
}
"""Builders of the methods that do more than go through a fixed set."""


def _pool(inputs: SequenceInputs, examples: Sequence[Example]) -> Pool:
    return Pool(examples, inputs.batch_size, inputs.seed, inputs.ranks)


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


def takes_given_answers(method: Method, settings: SequenceSettings, prompts: Sequence[Prompt]) -> bool:
    """Whether the fixed set is the prompts' own answers, rather than the target's or raw text."""
    if method.given_answers:
        return settings.text is None
    mixed = method.name == "gkd" and settings.lmbda < 1 and settings.rollouts is None
    return mixed and all(prompt.answer is not None for prompt in prompts)


def fixed_sequences(inputs: SequenceInputs) -> tuple[list[Example], AnswerCounts]:
    """Everything that does not change while the draft learns, in the draft's ids; what of it was cut or left out.

    Raises:
        DataError: A text holds a token that its model has no weights for.
    """
    examples, counts = _fixed_examples(inputs)
    draft = inputs.pair.draft
    for example in examples:
        check_ids(
            [*example.prompt_ids, *example.answer_ids],
            draft.tokenizer,
            draft.vocab_size,
            f"the text of {example.prompt_id!r}",
        )
    return examples, counts


def _fixed_examples(inputs: SequenceInputs) -> tuple[list[Example], AnswerCounts]:
    settings, target, say = inputs.settings, inputs.pair.target, inputs.progress.say
    if takes_given_answers(inputs.method, settings, inputs.prompts):
        # Read by the target's tokenizer and template, and below by the draft's own where that is another.
        end = answer_end(target, inputs.prompts[0].chat_template_kwargs)
        examples, counts = given_answers(inputs.prompts, inputs.encoded, target.tokenizer, end, settings.max_new_tokens)
        counts.say(say, len(inputs.prompts), settings.max_new_tokens)
    else:
        examples, counts = without_empty(_target_answers(inputs), say)
    if inputs.method.name == "best-of-n":
        scorer = scorers.check_scorer(settings.scorer, inputs.prompts)
        examples = scorers.best_of_n(examples, inputs.prompts, target, scorer)
    return examples if inputs.pair.same_tokenizer else retokenise(examples, inputs.prompts, inputs.pair)[0], counts


def _target_answers(inputs: SequenceInputs) -> list[Example]:
    settings, target = inputs.settings, inputs.pair.target
    if settings.rollouts is not None:
        return _stored_answers(inputs, Path(settings.rollouts))
    directory = inputs.output / ROLLOUTS_DIRECTORY
    sampled = shards.RolloutSettings(inputs.sampling, settings.max_new_tokens, inputs.seed, guidance=inputs.guidance)
    shards.sample_rollouts(
        target,
        inputs.prompts,
        inputs.encoded,
        sampled,
        copies=inputs.sampling.distinct_copies(settings.rollouts_per_prompt),
        directory=directory,
        progress=inputs.progress,
        ranks=inputs.ranks,
        write=inputs.target.write,
    )
    return shards.load_rollouts(directory, inputs.prompts, inputs.encoded, target.vocab_size)


def _stored_answers(inputs: SequenceInputs, directory: Path) -> list[Example]:
    target, rows = inputs.pair.target, shards.read_rollouts(directory)
    selected = matching.select_rows(rows, directory, inputs.prompts, inputs.encoded, target.vocab_size)
    examples = [example for _, example in selected]
    remedy = "; 'specdistill generate' adds them where --output is that directory"
    for line in matching.remarks(f"--rollouts {directory}", rows, examples, inputs.prompts, target.name, remedy):
        inputs.progress.say(line)
    return examples


def target_fraction(fraction: float | None, draft: LanguageModel) -> float:
    """The share that was set, or one by whether the draft was just cut out of the target.

    A fresh cut's own answers are noise: in benchmarks/results/smollm2_history.jsonl held-out alpha falls from 0.31 to
    0.22 within 30 steps of the switch to them.
    """
    if fraction is not None:
        return fraction
    return 1.0 if is_fresh_cut(draft) else 0.6
