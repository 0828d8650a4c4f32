"""The target's answers to the held-out prompts, kept in the output directory, and the scorer that uses them."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.decoding import Guidance
from specdistill.distill.answers.shards import RolloutSettings, find_shards, load_rollouts, sample_rollouts
from specdistill.distill.processes.ranks import Ranks
from specdistill.distill.sequences.retokenise import retokenise
from specdistill.distill.target.place import OpenTarget
from specdistill.distill.training.heldout import HeldOut, HeldOutLabels, HeldOutScorer, HeldOutText
from specdistill.files import atomic
from specdistill.models import LanguageModel, ModelPair
from specdistill.progress import Progress, Quiet
from specdistill.settings.sampling import Sampling

HELDOUT_DIRECTORY = "heldout"


def heldout_answers(
    target: OpenTarget,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    settings: RolloutSettings,
    output: Path,
    progress: Progress,
    ranks: Ranks,
    *,
    sharded: bool,
) -> list[Example]:
    """Lets the target answer each held-out prompt once; a resumed run is judged on the same answers.

    Args:
        target: Writes the answers, or brings stored ones along.
        prompts, encoded: The held-out prompts.
        settings: How answers are sampled; the target's own view of the prompts is added.
        output: Directory of the run.
        progress: Where the bar goes.
        ranks: The processes that train together.
        sharded: Whether they share the target's weights.
    """
    view = target.view
    if target.stored is not None:
        return target.stored.select(prompts, encoded, view, copies=1)
    directory, settings = output / HELDOUT_DIRECTORY, dataclasses.replace(settings, view=view)
    if sharded:
        _write_in_lockstep(target.model, prompts, encoded, settings, directory, ranks)
    sample_rollouts(
        target.model,
        prompts,
        encoded,
        settings,
        copies=1,
        directory=directory,
        progress=progress,
        name="held-out answers",
        ranks=ranks,
        write=target.write,
    )
    return view.examples(load_rollouts(directory, prompts, encoded, target.model.vocab_size, view=view))


def _write_in_lockstep(
    target: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    settings: RolloutSettings,
    directory: Path,
    ranks: Ranks,
) -> None:
    """Lets all ranks write the same answers at once: each pass of a sharded target is a collective."""
    finished = len(list(directory.glob("*.parquet"))) == settings.num_shards(len(prompts), copies=1)
    ranks.wait()
    if finished:
        return
    with tempfile.TemporaryDirectory() as own:
        sample_rollouts(target, prompts, encoded, settings, copies=1, directory=Path(own), progress=Quiet())
        if ranks.is_main:
            for shard in find_shards(Path(own)):
                atomic.write_bytes(directory / shard.name, shard.read_bytes())
    ranks.wait()


def heldout_scorer(
    pair: ModelPair,
    target: OpenTarget,
    prompts: Sequence[Prompt],
    answers: Sequence[Example],
    sampling: Sampling,
    temperature: float,
    rule: str,
    guidance: Guidance | None,
) -> HeldOutScorer:
    """Chooses how drafts are scored: by labels, by the target itself, or by text that two tokenizers share.

    Args:
        pair: Target and draft.
        target: The target as the run uses it.
        prompts, answers: The held-out prompts and the target's answers to them.
        sampling: How the answers were sampled.
        temperature: Temperature of the divergence, and so of labels.
        rule: Acceptance rule that early stopping watches.
        guidance: Guidance of the target; None without.
    """
    if target.labeller is not None:
        return HeldOutLabels(target.labeller, answers, temperature, sampling.greedy, rule)
    if pair.same_tokenizer:
        return HeldOut(pair.target, answers, sampling, rule, guidance)
    return HeldOutText(*retokenise(answers, prompts, pair))
