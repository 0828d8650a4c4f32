"""What stops or warns of a run that goes wrong, and says which knob to turn."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from specdistill.data.batch import Example, collate, join_soft_labels
from specdistill.distill.config import TrainConfig
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training.checkpoints import trained
from specdistill.distill.training.loss import DistillationLoss, StepTotals
from specdistill.errors import SpecdistillError
from specdistill.files import atomic
from specdistill.files.run_settings import CONFIG_FILE
from specdistill.models import load_pair
from specdistill_kernels import SoftLabels

SEQUENCES_FILE, WEIGHTS_FILE, LABELS_FILE = "sequences.json", "network.safetensors", "labels.safetensors"


@contextlib.contextmanager
def out_of_memory_named(config: TrainConfig) -> Iterator[None]:
    """EpochSampler running out of memory into one line with the settings that need less."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        text = str(error)
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not (known or "not enough memory" in text or "can't allocate memory" in text):
            raise
        half = max(1, (config.micro_batch_size or config.batch_size) // 2)
        checkpointing = "" if config.gradient_checkpointing else ", add --gradient-checkpointing"
        raise SpecdistillError(
            f"out of memory; set --micro-batch-size {half} (the result stays the same){checkpointing}, or lower "
            "--max-new-tokens; --resume then goes on from the last checkpoint"
        ) from error


def falling(values: Sequence[float]) -> str | None:
    """A warning where the held-out number fell in the last two looks, or is below the start's; else None."""
    if len(values) >= 3 and values[-1] < values[-2] < values[-3]:
        return "it fell in two looks running"
    if len(values) >= 3 and max(values[-2:]) < values[0]:
        return "it is below the start's"
    return None


def failed_step(output: Path, step: int) -> Path:
    """Where a run keeps what reproduces a step that failed."""
    return output / f"failed-step-{step:06d}"


def dump_step(directory: Path, step: int, network: nn.Module, sequences: Sequence[Example], reason: str) -> None:
    """Keeps what reproduces a step that failed: the weights before it, and its sequences.

    Args:
        directory: From `failed_step`, for `reproduce`; the settings of the run above it are copied.
        step: Which.
        network: Weights before the step.
        sequences: That it trained on.
        reason: What was wrong.
    """
    with atomic.new_directory(directory) as temporary:
        weights = {name: each.detach().contiguous() for name, each in trained(network).items()}
        save_file(weights, temporary / WEIGHTS_FILE)
        rows = [[each.prompt_id, each.prompt_ids, each.answer_ids, each.provenance] for each in sequences]
        (temporary / SEQUENCES_FILE).write_text(json.dumps({"step": step, "reason": reason, "sequences": rows}))
        labels = [each.soft_labels for each in sequences if each.soft_labels is not None]
        if labels:
            save_file(
                {f"{index}.{name}": part for index, each in enumerate(labels) for name, part in each._asdict().items()},
                temporary / LABELS_FILE,
            )
        settings = directory.parent / CONFIG_FILE
        if settings.is_file():
            (temporary / CONFIG_FILE).write_bytes(settings.read_bytes())


def reproduce(directory: Path) -> tuple[float, float]:
    """Loss and gradient norm of the step that `dump_step` kept, computed again from its files.

    Rewards, AdaSPEC's selection and guidance play no part; the divergence and cross entropy do.
    """
    config = TrainConfig.flat(**yaml.safe_load((directory / CONFIG_FILE).read_text()))
    kept = json.loads((directory / SEQUENCES_FILE).read_text())["sequences"]
    sequences = [Example(name, tuple(prompt), tuple(answer), tuple(marks)) for name, prompt, answer, marks in kept]
    soft = None
    if (directory / LABELS_FILE).is_file():
        kept_labels = load_file(directory / LABELS_FILE)
        soft = join_soft_labels(
            [
                SoftLabels(kept_labels[f"{index}.token_ids"], kept_labels[f"{index}.log_probs"])
                for index in range(len(sequences))
            ]
        )
    pair = load_pair(
        config.target, config.draft, draft_dtype=torch.float32, target_weights=soft is None, say=lambda text: None
    )
    pair.target.model.requires_grad_(False)
    weights = load_file(directory / WEIGHTS_FILE)
    with torch.no_grad():
        for name, parameter in trained(pair.draft.model).items():
            parameter.copy_(weights[name])
    pair.draft.model.train()
    module = DistillationLoss(pair.draft, pair.target, config)
    totals = StepTotals(sum(len(each.answer_ids) for each in sequences), len(sequences))
    needed = config.loss != "ce" and soft is None
    hidden = torch.cat(TargetStates(pair.target).of(sequences)) if needed else None
    if soft is not None:
        soft = SoftLabels(*(each.to(pair.draft.device) for each in soft))
    loss = module(collate(sequences).to(pair.draft.device), hidden, totals, soft_labels=soft).loss
    loss.backward()
    norms = [each.grad.norm() for each in module.parameters() if each.grad is not None]
    return float(loss.detach()), float(torch.stack(norms).norm())
