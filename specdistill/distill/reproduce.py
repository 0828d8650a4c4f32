"""Computes again the step that ended a run, from the files that the run kept of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from specdistill.data.batch import Example, collate, join_soft_labels
from specdistill.distill.methods import METHODS
from specdistill.distill.target.head_states import states_for
from specdistill.distill.target.place import Stored
from specdistill.distill.target.stored_states import StoredStates, stored_outer_weights, stored_states
from specdistill.distill.training import lora
from specdistill.distill.training.checkpoints import trained
from specdistill.distill.training.guard_rails import LABELS_FILE, SEQUENCES_FILE, WEIGHTS_FILE
from specdistill.distill.training.head_loss import build_loss
from specdistill.distill.training.head_settings import HeadSettings
from specdistill.distill.training.loss import StepTotals
from specdistill.distill.training.loss_settings import LossSettings, Objective
from specdistill.distill.training.packing import allow_packing
from specdistill.distill.training.parallel_settings import ParallelSettings
from specdistill.distill.training.step import guesses_by_depth
from specdistill.files import run_settings
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import ModelPair, load_pair
from specdistill.models.head_draft import HeadModel
from specdistill.models.mask_token import install_mask_token
from specdistill.models.pair import find_pair
from specdistill.settings.parts import pick
from specdistill.settings.sampling import Sampling
from specdistill_kernels import SoftLabels


def reproduce(directory: Path) -> tuple[float, float]:
    """Loss and gradient norm of a step that failed.

    Rewards, AdaSPEC's selection and guidance play no part; the divergence and cross entropy do.

    Args:
        directory: `failed-step-000004` or the like, in the run's output.
    """
    settings = run_settings.read(directory)
    sequences, soft = _examples(directory)
    pair, stored = _pair(directory, settings, target_weights=soft is None)
    objective = _objective(settings, isinstance(pair.draft, HeadModel))
    module = build_loss(pair, objective)
    guesses = () if objective.parallel is None else tuple(guesses_by_depth(sequences, objective.parallel.tokens))
    if objective.head is not None:
        guesses = tuple(objective.head.rows([len(example.answer_ids) for example in sequences]))
    totals = StepTotals(sum(len(example.answer_ids) for example in sequences), len(sequences), guesses)
    states, hidden = states_for(pair, (), None, lockstep=False, stored=stored), None
    if objective.needs_target and soft is None:
        hidden = torch.cat(states.hidden_states(sequences))
    if soft is not None:
        soft = SoftLabels(*(part.to(pair.draft.device) for part in soft))
    batch = states.with_features(collate(sequences).to(pair.draft.device), sequences)
    loss = module(batch, hidden, totals, soft_labels=soft).loss
    loss.backward()
    norms = [parameter.grad.norm() for parameter in module.parameters() if parameter.grad is not None]
    return float(loss.detach()), float(torch.stack(norms).norm())


def _objective(settings: run_settings.FlatSettings, is_head: bool) -> Objective:
    loss: LossSettings = pick(LossSettings, settings)
    sampling: Sampling = pick(Sampling, settings)
    parallel: ParallelSettings = pick(ParallelSettings, settings)
    head: HeadSettings = pick(HeadSettings, settings)
    kinds = {"parallel": parallel.loss, "head": head.loss if is_head else None}
    return replace(loss.objective(METHODS[settings["method"]], sampling), **kinds)


def _examples(directory: Path) -> tuple[list[Example], SoftLabels | None]:
    """The examples of the step, and their soft labels where they had some."""
    rows = json.loads((directory / SEQUENCES_FILE).read_text())["sequences"]
    examples = [
        Example(
            name,
            tuple(prompt),
            tuple(answer),
            tuple(marks),
            target_prompt_ids=_tuple(later[:1]),
            masks=_tuple(later[1:2]),
        )
        # Runs of older versions wrote fewer columns.
        for name, prompt, answer, marks, *later in rows
    ]
    if not (directory / LABELS_FILE).is_file():
        return examples, None
    labels = load_file(directory / LABELS_FILE)
    parts = [SoftLabels(labels[f"{row}.token_ids"], labels[f"{row}.log_probs"]) for row in range(len(examples))]
    return examples, join_soft_labels(parts)


def _tuple(stored: list[list[int] | None]) -> tuple[int, ...] | None:
    """A column that a run may not have written."""
    return tuple(stored[0]) if stored and stored[0] is not None else None


def _pair(
    directory: Path, settings: run_settings.FlatSettings, *, target_weights: bool
) -> tuple[ModelPair, StoredStates | None]:
    """Both models as they were before the step, and a head's stored states where it was trained on them."""
    target, draft, base = settings["target"], settings["draft"], settings.get("target_base")
    found = find_pair(target, draft, say=lambda text: None, target_base=base)
    labels = settings.get("soft_labels")
    outer = None if labels is None else stored_outer_weights(Stored(Path(labels)), found)
    has_weights = target_weights and outer is None
    pair = load_pair(target, draft, found=found, draft_dtype=torch.float32, target_weights=has_weights, outer=outer)
    pair.target.model.requires_grad_(False)
    # As the run did, so that the last digits agree. Runs of older versions packed nothing.
    packing, parallel = settings.get("packing", False), bool(settings.get("parallel"))
    allow_packing(pair, None, packing, lambda text: None, target_weights, parallel)
    if parallel:
        mask_id = json.loads((directory / SEQUENCES_FILE).read_text())["mask_token"]
        drafting = ParallelDrafting(mask_id, settings["parallel"])
        install_mask_token(pair.draft, drafting, pair.target.head_weight.shape[0])
    if settings.get("lora_rank"):
        lora.add_adapters(pair.draft.model, settings["lora_rank"], pair.draft.parallel if parallel else None)
    weights = load_file(directory / WEIGHTS_FILE)
    with torch.no_grad():
        for name, parameter in trained(pair.draft.model).items():
            parameter.copy_(weights[name])
    pair.draft.model.train()
    return pair, None if labels is None or outer is None else stored_states(Path(labels), pair.target)
