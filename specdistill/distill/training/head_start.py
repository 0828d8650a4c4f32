"""Refuses what a head can't be trained with, as soon as it is known that the draft is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specdistill.distill.target.stored_states import check_states
from specdistill.errors import ConfigError
from specdistill.models.eagle3 import is_head
from specdistill.models.head_draft import says_head
from specdistill.models.pair import FoundPair

_NOT_WITH_HEADS = {
    "target_server": "reads the target's hidden states, which no server gives",
    "target_system": "reads what the target sees, which must be what it sees when it is served",
    "target_examples": "reads what the target sees, which must be what it sees when it is served",
    "target_hint": "reads what the target sees, which must be what it sees when it is served",
    "guidance": "reads one pass of the target, and guidance mixes two",
    "parallel": "takes a pass for each token",
    "reward": "writes no answers of its own that could be judged",
    "reference": "is compared with no reference draft",
    "rollout_engine": "writes no answers of its own",
    "lora_rank": "is trained whole, as it is one layer",
    "packing": "is trained on padded texts",
    "gradient_checkpointing": "is one layer, of which nothing needs to be computed again",
    "shard": "is small, and its target is read whole",
}
"""Setting -> why it does not go with a head."""
_WATCHED = ("auto", "alpha", "tokens_per_call")


def refuse_server(draft: str) -> None:
    """Refuses a server as the target of a draft whose files are here and say head, before the server is waited for.

    Raises:
        ConfigError: They do.
    """
    if says_head(Path(draft) / "config.json"):
        raise ConfigError(_refusal(draft, "target_server"))


def check_head(found: FoundPair, method: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    """Whether a run's draft is a head; refuses settings that don't go with one. Needs no weights.

    Args:
        found: Configurations and tokenizers of the pair.
        method: Name of the method.
        settings: Flat settings of the run.
        defaults: Their defaults: a setting at its default was not asked for.

    Raises:
        ConfigError: Names the setting.
        DataError: Stored labels come without the states that the head reads.
    """
    if not is_head(found.draft.config):
        return False
    where = f"--draft {found.draft.name} is an EAGLE-3 head"
    for name in _NOT_WITH_HEADS:
        if settings[name] != defaults[name]:
            raise ConfigError(_refusal(found.draft.name, name))
    if settings["soft_labels"] is not None:
        check_states(Path(settings["soft_labels"]), found)
    fraction = settings["target_fraction"]
    if method == "gkd" or (fraction is not None and fraction < 1):
        asked = "--method gkd" if method == "gkd" else f"--target-fraction {fraction}"
        raise ConfigError(
            f"{where}, which writes nothing alone, and {asked} trains on the draft's own answers; choose --method "
            "distillspec, supervised-kd, seqkd, sft or best-of-n, or skd or online, where the target checks its guesses"
        )
    if settings["watch"] not in _WATCHED:
        raise ConfigError(f"{where}: --watch may be {', '.join(_WATCHED)}, got {settings['watch']}")
    if settings["enough_alpha"] or settings["tolerated_drop"]:
        raise ConfigError(f"{where}: --enough-alpha and --tolerated-drop judge other drafts; set both to 0")
    return True


def _refusal(draft: str, name: str) -> str:
    return f"--draft {draft} is an EAGLE-3 head, which {_NOT_WITH_HEADS[name]}; leave --{name.replace('_', '-')} away"
