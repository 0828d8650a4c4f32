"""A target of the draft's own weights: its distributions are the draft's, so that loss and gradient are 0."""

from __future__ import annotations

from pathlib import Path

import torch

from specdistill.errors import ConfigError
from specdistill.files.same_file import is_same_file
from specdistill.models import ModelPair
from specdistill.models.vocabulary import KEPT_IDS_FILE


def same_place(target: str, draft: str) -> bool:
    """Whether two names are of one model: the same name, or names of the same file or directory."""
    # With a trimmed head the draft is another model than its directory's weights.
    return (target == draft or is_same_file(target, draft)) and not (Path(draft) / KEPT_IDS_FILE).exists()


def same_weights(pair: ModelPair) -> bool:
    """Whether the draft is a copy of the target: all weights are equal, at the precision that the target has."""
    theirs, ours = (dict(model.model.named_parameters()) for model in (pair.target, pair.draft))
    if pair.draft.kept_ids is not None or theirs.keys() != ours.keys():
        return False
    return all(_equal(theirs[name], ours[name]) for name in theirs)


def refuse_same_name(target: str, draft: str) -> None:
    """Refuses two names of one model; needs no model.

    Raises:
        ConfigError: They are the same name, or lead to the same file or directory.
    """
    if same_place(target, draft):
        raise ConfigError(_nothing_to_learn(f"--target and --draft are both {draft}"))


def refuse_same_weights(pair: ModelPair) -> None:
    """Refuses a draft that is a copy of the target.

    Raises:
        ConfigError: All weights are equal, at the precision that the target has.
    """
    if same_weights(pair):
        raise ConfigError(
            _nothing_to_learn(f"--target {pair.target.name} and --draft {pair.draft.name} have the same weights")
        )


def _equal(theirs: torch.Tensor, ours: torch.Tensor) -> bool:
    if theirs.shape != ours.shape or theirs.is_meta or not theirs.is_floating_point():
        return False
    return torch.equal(theirs.detach(), ours.detach().to(theirs.device, theirs.dtype))


def _nothing_to_learn(fact: str) -> str:
    return (
        f"{fact}: a model's own distributions teach it nothing, loss and gradient would be 0; let the target see more "
        "(--target-system, --target-examples, --target-hint), keep its best answers (--method best-of-n with "
        "--scorer), or add a --reward"
    )
