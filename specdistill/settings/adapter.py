"""Where the base of an adapter is. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """The base of a target that is a PEFT adapter."""

    target_base: str | None = None
    """Model that --target changes, where --target is an adapter: hub id or checkpoint directory. Set it where the
    adapter's own adapter_config.json names another place, or a quantised model. The two are merged in memory."""
