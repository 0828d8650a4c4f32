"""Builds the source of a method's sequences: which ones it trains on, in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.data.texts import load_texts
from specdistill.decoding import Guidance
from specdistill.distill.answers import scorers, shards
from specdistill.distill.answers.engine import RolloutEngine
from specdistill.distill.methods import Method
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.sequences.on_policy import OnPolicy
from specdistill.distill.sequences.online import Online
from specdistill.distill.sequences.pool import Pool
from specdistill.distill.sequences.retokenise import retokenise
from specdistill.distill.sequences.settings import SequenceSettings
from specdistill.distill.sequences.skd import Skd
from specdistill.distill.sequences.sources import Labelled, Mixture, Phases, Source
from specdistill.distill.target.place import OpenTarget
from specdistill.errors import ConfigError
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.checkpoint import is_fresh_cut
from specdistill.models.language_model import end_of
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


Built = tuple[Source, frozenset[Example]]
"""A source, and those of its sequences that come again every epoch."""


def build_source(inputs: SequenceInputs) -> Built:
    """Builds the method's source of sequences.

    Returns:
        The source, and those of its sequences that come again every epoch.
    """
    target = inputs.target
    if target.stored is not None:
        assert target.labeller is not None, "stored answers come with labels"
        examples = target.stored.select(inputs.prompts, inputs.encoded)
        return Labelled(_pool(inputs, examples), target.labeller), frozenset()
    source, reused = _BUILDERS.get(inputs.method.name, _fixed)(inputs)
    if target.labeller is not None and inputs.needs_labels:
        source = Labelled(source, target.labeller)
    return source, reused


def _fixed(inputs: SequenceInputs) -> Built:
    examples = fixed_sequences(inputs)
    return _pool(inputs, examples), frozenset(examples)


def _gkd(inputs: SequenceInputs) -> Built:
    own, lmbda = _on_policy(inputs), inputs.settings.lmbda
    if lmbda == 1:
        # Nothing fixed will be trained on, so nothing is sampled.
        return own, frozenset()
    pool, reused = _fixed(inputs)
    return Mixture(own, pool, lmbda, inputs.seed + 2), reused


def _distillspec(inputs: SequenceInputs) -> Built:
    own = _on_policy(inputs)
    last = round(target_fraction(inputs.settings.target_fraction, inputs.pair.draft) * inputs.steps)
    if last == 0:
        return own, frozenset()
    pool, reused = _fixed(inputs)
    return Phases(pool, own, last), reused


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
    return source, frozenset()


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
    return source, frozenset()


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


def fixed_sequences(inputs: SequenceInputs) -> list[Example]:
    """Everything that does not change while the draft learns, in the draft's ids."""
    settings, target, draft = inputs.settings, inputs.pair.target, inputs.pair.draft
    if settings.text is not None:
        return shards.text_sequences(load_texts(settings.text), draft.tokenizer, end_of(draft), settings.max_new_tokens)
    name = inputs.method.name
    answered = all(prompt.answer is not None for prompt in inputs.prompts)
    if inputs.method.given_answers or (name == "gkd" and answered and settings.rollouts is None):
        # Read by the target's tokenizer and template, and below by the draft's own where that is another.
        examples = shards.given_answers(
            inputs.prompts, inputs.encoded, target.tokenizer, end_of(target), settings.max_new_tokens
        )
    else:
        examples = _target_answers(inputs)
    if name == "best-of-n":
        scorer = scorers.check_scorer(settings.scorer, inputs.prompts)
        examples = scorers.best_of_n(examples, inputs.prompts, target, scorer)
    return examples if inputs.pair.same_tokenizer else retokenise(examples, inputs.prompts, inputs.pair)[0]


def _target_answers(inputs: SequenceInputs) -> list[Example]:
    settings, target = inputs.settings, inputs.pair.target
    directory = inputs.output / ROLLOUTS_DIRECTORY
    if settings.rollouts is not None:
        directory = Path(settings.rollouts)
    else:
        sampled = shards.RolloutSettings(
            inputs.sampling, settings.max_new_tokens, inputs.seed, guidance=inputs.guidance
        )
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


def target_fraction(fraction: float | None, draft: LanguageModel) -> float:
    """The share that was set, or one by whether the draft was just cut out of the target.

    A fresh cut's own answers are noise: in benchmarks/results/smollm2_history.jsonl held-out alpha falls from 0.31 to
    0.22 within 30 steps of the switch to them.
    """
    if fraction is not None:
        return fraction
    return 1.0 if is_fresh_cut(draft) else 0.6
