"""The machine that a command runs on."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.settings.checks import at_least


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Device and threads."""

    device: str = "auto"
    """torch device; auto takes the GPU where there is one."""
    threads: int = 0
    """CPU threads of torch; 0 keeps torch's default. One thread gives the steadiest timings."""

    def __post_init__(self) -> None:
        at_least(self, 0, "threads")

    def limit_threads(self) -> None:
        """Tells torch how many threads to use, for the whole process."""
        if self.threads:
            import torch

            torch.set_num_threads(self.threads)
