"""Which models of a run read texts of different lengths in shared rows (--packing), and what refuses to."""

from __future__ import annotations

from collections.abc import Callable

from specdistill.decoding.packed_pass import why_unpacked
from specdistill.decoding.proof import state_reason
from specdistill.errors import ConfigError
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.head_draft import HeadModel
from specdistill.models.pair import FoundPair


def refuse_packing(found: FoundPair, packing: bool | None) -> None:
    """Refuses --packing of models whose layers keep a state; needs no weights.

    Raises:
        ConfigError: Names the model and its layers.
    """
    for role, source in (("target", found.target), ("draft", found.draft)):
        reason = state_reason(source.config) if packing else None
        if reason is not None:
            raise ConfigError(_refusal(role, source.name, reason))


def allow_packing(
    pair: ModelPair,
    reference: LanguageModel | None,
    packing: bool | None,
    say: Callable[[str], None],
    target_weights: bool,
    parallel: bool,
) -> None:
    """Lets the models of a run pack the texts of a pass, each after its own proof.

    Args:
        pair: Target and draft, with whole weights.
        reference: AdaSPEC's reference draft.
        packing: --packing; None packs what can be, False nothing.
        say: Where a model that can't be packed is named.
        target_weights: Whether the target has any.
        parallel: Whether the draft's texts have mask tokens behind them, which leaves no place for other texts.

    Raises:
        ConfigError: Packing was asked for, and a model can't.
    """
    if packing is False or isinstance(pair.draft, HeadModel):
        return
    models = {"target": pair.target if target_weights else None, "draft": None if parallel else pair.draft}
    for role, model in (models | {"reference": reference}).items():
        reason = None if model is None else why_unpacked(model)
        if reason is not None and model is not None:
            if packing:
                raise ConfigError(_refusal(role, model.name, reason))
            say(f"texts are padded in passes of the {role}, not packed: {reason}")
        elif model is not None:
            model.packs = True


def _refusal(role: str, name: str, reason: str) -> str:
    return f"--packing can't be had with the {role} {name}: {reason}; leave --packing away, and its texts are padded"
