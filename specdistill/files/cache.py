"""Where converted and combined checkpoints are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Folder of the cache: $SPECDISTILL_CACHE, else $XDG_CACHE_HOME/specdistill."""
    own = os.environ.get("SPECDISTILL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "specdistill"
