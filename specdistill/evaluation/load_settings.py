"""Settings of the measurement under load. Imports nothing heavy, so that --help stays fast."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from specdistill.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """Batches beside that of the main timed run."""

    batch_sizes: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = ()
    """Also time these batch sizes, such as 1 2 4 8: costs, predicted and measured speed-up of each, and the batch from
    which drafting stops paying. Each decodes all timed prompts, and at least 6 batches. For our decoder."""
    concurrency: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = ()
    """The same for a real engine: this many requests at a time, such as 1 4 8, against the same servers."""

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "concurrency"):
            # A YAML file gives a list.
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            flag = f"--{name.replace('_', '-')}"
            for value in values:
                if not isinstance(value, int) or value < 1:
                    raise ConfigError(f"{flag} takes whole numbers from 1 on, got {value}")
            if len(set(values)) < len(values):
                raise ConfigError(f"{flag} names a number twice; leave one of the two away")
