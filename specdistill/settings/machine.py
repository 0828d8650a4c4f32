"""The machine that a command runs on."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.errors import ConfigError
from specdistill.settings.checks import at_least

_MOST_THREADS = 4096


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Device and threads."""

    device: str = "auto"
    """torch device; auto takes the GPU where there is one."""
    threads: int = 0
    """CPU threads of torch; 0 keeps torch's default. One thread gives the steadiest timings."""

    def __post_init__(self) -> None:
        at_least(self, 0, "threads")
        if self.threads > _MOST_THREADS:
            raise ConfigError(f"--threads must be at most {_MOST_THREADS}, got {self.threads}")

    def limit_threads(self) -> None:
        """Tells torch how many threads to use, for the whole process."""
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
