"""Which sequences each method trains on, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.data.soft_labels import LabelStore
from specdistill.data.texts import load_texts
from specdistill.decoding import Guidance, Sampling
from specdistill.distill.answers import scorers, shards
from specdistill.distill.answers.engine import RolloutEngine
from specdistill.distill.config import TrainConfig
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.sequences.on_policy import OnPolicy
from specdistill.distill.sequences.online import Online
from specdistill.distill.sequences.pool import Pool
from specdistill.distill.sequences.retokenise import retokenise
from specdistill.distill.sequences.skd import Skd
from specdistill.distill.sequences.sources import Labelled, Mixture, Phases, Source
from specdistill.distill.target import place
from specdistill.distill.target.served import TargetServer
from specdistill.errors import ConfigError
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.checkpoint import is_fresh_cut
from specdistill.models.language_model import end_of
from specdistill.progress import Progress

ROLLOUTS_DIRECTORY = "rollouts"


@dataclass(frozen=True)
class Work:
    """What a method needs to find or make its sequences."""

    config: TrainConfig
    pair: ModelPair
    prompts: Sequence[Prompt]
    encoded: Sequence[list[int]]
    """The prompts in the target's ids."""
    sampling: Sampling
    guidance: Guidance | None
    output: Path
    progress: Progress
    ranks: Ranks = ALONE
    store: LabelStore | None = None
    """Of --soft-labels."""
    engine: RolloutEngine | None = None
    """Of --rollout-engine: holds the draft."""
    server: TargetServer | None = None
    """Of --target-server."""


def build_source(work: Work) -> tuple[Source, frozenset[Example]]:
    """The method's source of sequences, and those of them that come again every epoch."""
    config = work.config
    if work.store is not None:
        stored = place.answers(work.store, config, work.prompts, work.encoded, work.pair.target.vocab_size)
        return Labelled(Pool(stored, config.batch_size, config.seed, work.ranks), work.store), frozenset()
    source, reused = _build_source(work)
    if work.server is not None and config.loss != "ce":
        # Cross entropy needs the target's words only.
        source = Labelled(source, work.server)
    return source, reused


def _build_source(work: Work) -> tuple[Source, frozenset[Example]]:
    config, pair = work.config, work.pair
    if config.method == "skd":
        source = Skd(
            pair,
            work.prompts,
            work.encoded,
            work.sampling,
            top_k=config.skd_top_k,
            num_draft_tokens=config.skd_num_draft_tokens,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            seed=config.seed + 1,
            ranks=work.ranks,
        )
        return source, frozenset()
    if config.online is not None:
        if work.ranks.world > 1:
            raise ConfigError("--method online runs in one process: ranks would see the log grow at different moments")
        online = Online(
            Path(config.online),
            vocab_size=pair.target.vocab_size,
            max_context=min(pair.target.max_context, pair.draft.max_context) - 1,
            batch_size=config.batch_size,
            seed=config.seed,
            wait_seconds=config.online_wait,
            say=work.progress.say,
        )
        return online, frozenset()
    own = OnPolicy(
        pair.draft,
        work.prompts,
        work.encoded,
        work.sampling,
        config.max_new_tokens,
        config.batch_size,
        config.seed + 1,
        work.ranks,
        work.engine,
        config.push_every,
    )
    last = round(target_fraction(config, pair.draft) * config.steps)
    if (config.method == "gkd" and config.lmbda == 1) or (config.method == "distillspec" and last == 0):
        # Nothing fixed will be looked at, so nothing is sampled.
        return own, frozenset()
    fixed = fixed_sequences(work)
    pool = Pool(fixed, config.batch_size, config.seed, work.ranks)
    if config.method not in ("gkd", "distillspec"):
        return pool, frozenset(fixed)
    if config.method == "gkd":
        return Mixture(own, pool, config.lmbda, config.seed + 2), frozenset(fixed)
    return Phases(pool, own, last), frozenset(fixed)


def fixed_sequences(work: Work) -> list[Example]:
    """Everything that does not change while the draft learns, in the draft's ids."""
    config, target, draft = work.config, work.pair.target, work.pair.draft
    if config.text is not None:
        return shards.text_sequences(load_texts(config.text), draft.tokenizer, end_of(draft), config.max_new_tokens)
    given = all(prompt.answer is not None for prompt in work.prompts)
    if config.method in ("sft", "supervised-kd") or (config.method == "gkd" and given and config.rollouts is None):
        # Read by the target's tokenizer and template, and below by the draft's own where that is another.
        found = shards.given_answers(
            work.prompts, work.encoded, target.tokenizer, end_of(target), config.max_new_tokens
        )
    else:
        found = _target_answers(work)
    if config.method == "best-of-n":
        found = scorers.best_of_n(found, work.prompts, target, scorers.check_scorer(config.scorer, work.prompts))
    return found if work.pair.same_tokenizer else retokenise(found, work.prompts, work.pair)[0]


def _target_answers(work: Work) -> list[Example]:
    config, target = work.config, work.pair.target
    directory = work.output / ROLLOUTS_DIRECTORY
    if config.rollouts is not None:
        directory = Path(config.rollouts)
    else:
        settings = shards.RolloutSettings(work.sampling, config.max_new_tokens, config.seed, guidance=work.guidance)
        shards.sample_rollouts(
            target,
            work.prompts,
            work.encoded,
            settings,
            copies=config.rollouts_per_prompt,
            directory=directory,
            progress=work.progress,
            ranks=work.ranks,
            write=None if work.server is None else work.server.write,
        )
    return shards.load_rollouts(directory, work.prompts, work.encoded, target.vocab_size)


def target_fraction(config: TrainConfig, draft: LanguageModel) -> float:
    """The configured share, or one by whether the draft was just cut out of the target.

    A fresh cut's own answers are noise: in benchmarks/results/smollm2_history.jsonl held-out alpha falls from 0.31 to
    0.22 within 30 steps of the switch to them.
    """
    if config.target_fraction is not None:
        return config.target_fraction
    return 1.0 if is_fresh_cut(draft) else 0.6
