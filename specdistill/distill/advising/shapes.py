"""Untrained drafts of the shapes that `init-draft` would make: what a step costs depends on shapes alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from specdistill.decoding.proof import state_reason
from specdistill.distill.advising.config import ComparedDraftSettings
from specdistill.distill.cutting.head import HEAD_IDS
from specdistill.distill.cutting.layer_search import even_layers
from specdistill.errors import ConfigError, ModelError, first_line
from specdistill.evaluation.advice import HEAD, INDEPENDENT, PARALLEL
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import LanguageModel, cut_draft, families
from specdistill.models.eagle3 import head_from_target
from specdistill.models.eagle3.start import check_target
from specdistill.models.head_draft import as_draft
from specdistill.models.mask_token import install_mask_token


@dataclass(frozen=True)
class Shape:
    """A draft that can be made."""

    name: str
    kind: str
    layers: int | None
    make: Callable[[LanguageModel, Tensor | None], LanguageModel]
    """(target, ids of trimmed heads or None) -> the draft, untrained."""


def check_layers(settings: ComparedDraftSettings, config: PretrainedConfig) -> None:
    """Refuses cuts that the target is too small for; needs no weights.

    Raises:
        ConfigError: Names the number.
    """
    total = families.num_layers(config)
    most = max(settings.cut_layers)
    if most >= total:
        raise ConfigError(f"--cut-layers {most} must be below the target's {total} layers")


def shapes_of(
    settings: ComparedDraftSettings, config: PretrainedConfig, vocab_size: int
) -> tuple[list[Shape], list[str]]:
    """The drafts that are compared, and why others are left out, a sentence each.

    Args:
        settings: Which.
        config: The target's.
        vocab_size: Its ids.
    """
    shapes = [Shape(f"{INDEPENDENT}-{n}", INDEPENDENT, n, _cut(n)) for n in settings.cut_layers]
    left_out = []
    state = state_reason(config)
    if state is None:
        shapes += [Shape(f"{PARALLEL}-{n}", PARALLEL, n, _parallel(n, settings.parallel)) for n in settings.cut_layers]
    else:
        left_out.append(f"a parallel draft can't be cut out of this target: {state}")
    try:
        check_target(config, "the target")
        shapes.append(Shape(HEAD, HEAD, None, _head(min(settings.vocab_keep or HEAD_IDS, vocab_size))))
    except ModelError as error:
        left_out.append(first_line(error))
    return shapes, left_out


def _cut(layers: int) -> Callable[[LanguageModel, Tensor | None], LanguageModel]:
    def make(target: LanguageModel, ids: Tensor | None) -> LanguageModel:
        draft = cut_draft(target, even_layers(families.num_layers(target.config), layers))
        draft.kept_ids = ids
        return draft

    return make


def _parallel(layers: int, tokens: int) -> Callable[[LanguageModel, Tensor | None], LanguageModel]:
    def make(target: LanguageModel, ids: Tensor | None) -> LanguageModel:
        draft = _cut(layers)(target, ids)
        # Any id will do for a draft that is only timed.
        install_mask_token(draft, ParallelDrafting(target.vocab_size - 1, tokens), target.head_weight.shape[0])
        return draft

    return make


def _head(count: int) -> Callable[[LanguageModel, Tensor | None], LanguageModel]:
    def make(target: LanguageModel, ids: Tensor | None) -> LanguageModel:
        head = head_from_target(target, range(count) if ids is None else ids)
        torch.nn.Module.to(head, target.model.dtype)
        return as_draft(head, target, f"head of {target.name}")

    return make
