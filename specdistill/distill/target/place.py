"""What stands in for a target whose weights are not loaded: its labels on disk, or a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.data.soft_labels import LabelStore
from specdistill.distill.answers.shards import find_shards, select_rows
from specdistill.distill.config import TrainConfig
from specdistill.errors import ConfigError, DataError
from specdistill.files import run_settings
from specdistill.servers.client import ModelServer, check_url


def check(config: TrainConfig) -> None:
    """Proves that stored labels are there and fit this run, and that a URL is one; needs no model and no server.

    Raises:
        DataError, ConfigError: They don't.
    """
    if config.target_server is not None:
        check_url(config.target_server)
    if config.soft_labels is None:
        return
    directory = Path(config.soft_labels)
    made = run_settings.read(directory) if directory.is_dir() and run_settings.exists(directory) else {}
    if "labels" not in made:
        raise DataError(f"--soft-labels {directory} holds no soft labels; 'specdistill annotate' writes them")
    find_shards(directory)
    if made["labels"] == "sampled" and config.loss != "fkl":
        raise ConfigError(
            f"drawn labels train fkl only, but {config.loss} is minimised; annotate with --labels top-k for it"
        )
    used = config.loss_temperature or config.temperature or 1.0
    if used != made["temperature"] or config.temperature not in (0, used):
        raise ConfigError(
            f"the labels in {directory} are at temperature {made['temperature']}; set --temperature (or 0) and "
            "--loss-temperature to it, or annotate anew"
        )


def open_labels(config: TrainConfig) -> LabelStore | None:
    """The store of --soft-labels."""
    return None if config.soft_labels is None else LabelStore(find_shards(Path(config.soft_labels)))


def reach(config: TrainConfig, say: Callable[[str], None]) -> ModelServer | None:
    """The server of --target-server, which answers and serves the model.

    Args:
        config: Where it is.
        say: Where waiting announces itself.

    Raises:
        ServerError: It does not.
    """
    if config.target_server is None:
        return None
    return ModelServer(
        config.target_server,
        config.server_model,
        concurrency=config.server_concurrency,
        patience=config.server_patience,
        say=say,
    )


def answers(
    store: LabelStore,
    config: TrainConfig,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    vocab_size: int,
    copies: int | None = None,
) -> list[Example]:
    """The labelled answers to the given prompts; the store then knows where their labels lie.

    Raises:
        DataError: There are none.
    """
    assert config.soft_labels is not None
    found = select_rows(store.rows(), Path(config.soft_labels), prompts, encoded, vocab_size, copies)
    for number, sequence in found:
        store.place(sequence, number)
    return [sequence for _, sequence in found]
