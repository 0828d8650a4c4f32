"""Which models a method needs to roll back, refused as early as it can be known."""

from __future__ import annotations

from specdistill.decoding.proof import prove, refuse_states
from specdistill.models.pair import FoundPair, ModelPair

_ROLLS_BACK = ("skd",)
"""Methods whose target checks several tokens and drops some."""


def refuse_states_of(found: FoundPair, method: str) -> None:
    """Refuses models with recurrent layers where the method drops tokens; needs no weights.

    Raises:
        ModelError: A model keeps a state.
    """
    if method in _ROLLS_BACK:
        for source in (found.target, found.draft):
            refuse_states(source.config, source.name, f"--method {method}")


def prove_pair(pair: ModelPair, method: str, target_weights: bool) -> None:
    """Proves what writes text while weights are whole: the passes of a proof would be collectives later.

    Args:
        pair: Target and draft.
        method: Name of the method.
        target_weights: Whether the target has any.

    Raises:
        ModelError: The method drops tokens and a model can't be rolled back.
    """
    for model in (pair.target, pair.draft) if target_weights else (pair.draft,):
        proof = prove(model)
        if method in _ROLLS_BACK:
            proof.require_rollback(model.name, f"--method {method}")
