"""Stops or warns of a run that goes wrong, and says which setting to change."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from specdistill import errors
from specdistill.data.batch import Example
from specdistill.distill.sequences.build import target_fraction
from specdistill.distill.sequences.inputs import ROLLOUTS_DIRECTORY
from specdistill.distill.sequences.settings import SequenceSettings
from specdistill.distill.training.checkpoints import RunState, newest_step, trained
from specdistill.distill.training.settings import OptimiserSettings
from specdistill.files import atomic
from specdistill.files.run_settings import CONFIG_FILE
from specdistill.models import LanguageModel
from specdistill.models.head_draft import HeadModel
from specdistill.progress import Progress

SEQUENCES_FILE, WEIGHTS_FILE, LABELS_FILE = "sequences.json", "network.safetensors", "labels.safetensors"


@contextlib.contextmanager
def out_of_memory_named(settings: OptimiserSettings, draft: LanguageModel) -> Iterator[None]:
    """Turns running out of memory into one line with the settings that need less, of those that the draft takes."""
    answers, same = settings.micro_batch_size or settings.batch_size, []
    if answers > 1:
        same.append(f"--micro-batch-size {answers // 2}")
    is_head = isinstance(draft, HeadModel)
    if not (is_head or settings.gradient_checkpointing):
        same.append("--gradient-checkpointing")
    goes_on = f"set {' or '.join(same)} and --resume: the run goes on from its last checkpoint, with the same result; "
    less = f"start again with a lower {'--unroll or ' if is_head else ''}--max-new-tokens"
    with errors.out_of_memory_named(f"{goes_on}or {less}" if same else less):
        yield


def worsening(merits: Sequence[float]) -> str | None:
    """A warning where the watched number got worse in the last two evaluations, or is worse than the start's.

    Args:
        merits: One per evaluation, from the start on; more is better.
    """
    if len(merits) >= 3 and merits[-1] < merits[-2] < merits[-3]:
        return "it got worse in two evaluations running"
    if len(merits) >= 3 and max(merits[-2:]) < merits[0]:
        return "it is worse than the start's"
    return None


def worsening_remedy(method: str, settings: SequenceSettings, own_answers: bool) -> str:
    """Settings to change where the watched number gets worse; only those that the method takes.

    Args:
        method: Name of the method.
        settings: Those of its text.
        own_answers: Whether something is asked of the draft's own answers, as in `build.target_fraction`.
    """
    remedy = "lower --learning-rate"
    if method == "distillspec" and target_fraction(settings.target_fraction, own_answers) < 1:
        return f"{remedy}, or let a weak draft learn from the target's answers longer (raise --target-fraction)"
    if method == "gkd":
        return f"{remedy}, or train on fewer of the draft's own answers (lower --lmbda)"
    if method == "skd" and settings.skd_top_k > 1:
        return f"{remedy}, or let the target replace more of the draft's tokens (lower --skd-top-k)"
    return remedy


def failed_step(output: Path, step: int) -> Path:
    """Where a run keeps what reproduces a step that failed."""
    return output / f"failed-step-{step:06d}"


def keep_failed_step(
    output: Path, state: RunState, network: nn.Module | None, sequences: Sequence[Example], numbers: str
) -> str:
    """Keeps what reproduces the run's current step.

    Args:
        output: Directory of the run.
        state: The run's.
        network: Weights before the step; None where another rank writes.
        sequences: Examples that the step trained on, of all ranks.
        numbers: What is not finite.

    Returns:
        The line that says so, with the remedy.
    """
    names = ", ".join(example.prompt_id for example in sequences)
    reason = f"{numbers} at step {state.step} (prompts {names})"
    directory = failed_step(output, state.step)
    if network is not None:
        dump_step(directory, state.step, network, sequences, reason)
    return (
        f"{reason}; lower --learning-rate; the draft so far (step {state.kept_step}) is in {output}, "
        f"what reproduces the step in {directory.name} (specdistill.distill.reproduce.reproduce)"
    )


def dump_step(directory: Path, step: int, network: nn.Module, sequences: Sequence[Example], reason: str) -> None:
    """Keeps what reproduces a step that failed: the weights before it, and its sequences.

    Args:
        directory: From `failed_step`, for `reproduce`; the settings of the run above it are copied.
        step: Number of the step.
        network: Weights before the step.
        sequences: Examples that it trained on.
        reason: Why it failed.
    """
    with atomic.new_directory(directory) as temporary:
        weights = {name: parameter.detach().contiguous() for name, parameter in trained(network).items()}
        save_file(weights, temporary / WEIGHTS_FILE)
        rows = [
            [row.prompt_id, row.prompt_ids, row.answer_ids, row.provenance, row.target_prompt_ids, row.masks]
            for row in sequences
        ]
        mask = getattr(getattr(network, "config", None), "pard_token", None)
        content = {"step": step, "reason": reason, "sequences": rows, "mask_token": mask}
        (temporary / SEQUENCES_FILE).write_text(json.dumps(content))
        labels = [row.soft_labels for row in sequences if row.soft_labels is not None]
        if labels:
            save_file(
                {f"{index}.{name}": part for index, soft in enumerate(labels) for name, part in soft._asdict().items()},
                temporary / LABELS_FILE,
            )
        settings = directory.parent / CONFIG_FILE
        if settings.is_file():
            (temporary / CONFIG_FILE).write_bytes(settings.read_bytes())


@contextlib.contextmanager
def reported_interrupt(output: Path, progress: Progress) -> Iterator[None]:
    """Says on Ctrl-C which files are left; the caller decides the exit code."""
    try:
        yield
    except KeyboardInterrupt:
        step = newest_step(output)
        kept = {
            f"a checkpoint after step {step}": step is not None,
            "a draft": any(output.glob("model*.safetensors")),
            "the rollouts": (output / ROLLOUTS_DIRECTORY).exists(),
        }
        found = ", ".join(what for what, exists in kept.items() if exists) or "nothing was finished yet"
        goes_on = "starts at step 0" if step is None else f"goes on after step {step}"
        progress.say(f"interrupted; in {output}: {found}; the same command with --resume {goes_on}")
        raise
