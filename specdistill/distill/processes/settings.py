"""How weights are shared among processes. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ProcessSettings:
    """Weights that several processes hold in shares."""

    shard: Literal["none", "draft", "target", "both"] = "none"
    """With several processes (accelerate launch): which weights are split among them, as FSDP2 and ZeRO-3 do, instead
    of each holding them all. A sharded target needs stored answers (--rollouts) or given ones."""

    @property
    def shards_draft(self) -> bool:
        """Whether the draft is sharded."""
        return self.shard in ("draft", "both")

    @property
    def shards_target(self) -> bool:
        """Whether the target is sharded."""
        return self.shard in ("target", "both")
