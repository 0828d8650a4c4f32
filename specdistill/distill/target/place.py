"""Where the target is: its weights in memory, its distributions on disk, or behind a server.

Each place refuses the settings that it can't serve, checks itself before anything is loaded, and opens itself. Imports
nothing heavy: a configuration holds a place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from specdistill.distill.methods import PlaceName, methods_with
from specdistill.errors import ConfigError, DataError
from specdistill.files import run_settings
from specdistill.servers.client import ModelServer
from specdistill.servers.urls import check_url
from specdistill.settings.chat import ChatSettings

if TYPE_CHECKING:
    from specdistill.data.batch import Example
    from specdistill.data.soft_labels import TokenLabels
    from specdistill.data.target_context import TargetView
    from specdistill.distill.answers.shards import Write
    from specdistill.distill.target.hidden_states import TargetStates
    from specdistill.distill.target.stored_answers import StoredAnswers
    from specdistill.models import LanguageModel
    from specdistill_kernels import SoftLabels

_NEED_WEIGHTS = ("guidance", "reference", "text")
"""Settings that need more of the target than labels of answers."""


class Labeller(Protocol):
    """Knows the target's distribution over an answer's tokens without the target in memory."""

    def soft_labels(self, sequences: Sequence[Example]) -> list[SoftLabels]:
        """Labels for the loss, [answer, K] each, in the order of the sequences."""
        ...

    def labels_of(self, sequences: Sequence[Example]) -> list[TokenLabels]:
        """Labels of each answer, in order."""
        ...


@dataclass(frozen=True)
class OpenTarget:
    """The target as a run uses it."""

    model: LanguageModel
    """With its weights, or only their shapes where there is a labeller."""
    max_context: int
    """Tokens that a prompt and its answer may have together."""
    view: TargetView
    """Prompts as the target sees them."""
    labeller: Labeller | None = None
    """Says the target's distributions; None where the model itself does."""
    write: Write | None = None
    """Answers in the model's place; None where the model answers or nobody can."""
    stored: StoredAnswers | None = None
    """The answers that came with the labels; None where answers are written or given."""
    states: TargetStates | None = None
    """The states that a head reads, from disk; None where a pass of the model gives them."""

    @property
    def labels_examples(self) -> bool:
        """Whether examples are to take their labels along: states say more."""
        return self.labeller is not None and self.states is None


@dataclass(frozen=True)
class InMemory:
    """The target's weights, in this process."""

    memory: str = "whole"
    """How they lie there: whole, offloaded, int8 or nf4."""
    name: ClassVar[PlaceName] = "memory"
    has_weights: ClassVar[bool] = True

    def refuse_settings(self, method: str, settings: Mapping[str, Any]) -> None:
        """Allows every setting."""

    def check(self, kind: str, temperature: float, sampling_temperature: float, chat: ChatSettings) -> None:
        """Raises ModelError where the package that quantises is missing."""
        from specdistill.models import memory

        memory.check(self.memory)

    def connect(self, say: Callable[[str], None]) -> None:
        """Has nothing to wait for."""

    def open(self, model: LanguageModel, connection: ModelServer | None, view: TargetView) -> OpenTarget:
        """Takes the loaded model as it is."""
        return OpenTarget(model, model.max_context, view)


@dataclass(frozen=True)
class Stored:
    """The target's distributions over stored answers, written by `specdistill annotate`."""

    directory: Path
    memory: ClassVar[str] = "whole"
    name: ClassVar[PlaceName] = "stored"
    has_weights: ClassVar[bool] = False

    def refuse_settings(self, method: str, settings: Mapping[str, Any]) -> None:
        """Refuses what needs more than stored answers and their labels.

        Raises:
            ConfigError: Names the first such setting.
        """
        _refuse_without_weights("--soft-labels", self.name, method, settings)
        if settings["target_fraction"] not in (None, 1) or settings["reward"] is not None:
            raise ConfigError("--soft-labels knows stored answers, not the draft's own; set --target-fraction 1")
        if settings["rollouts"] is not None:
            raise ConfigError("--soft-labels brings its answers along; leave --rollouts away")
        if settings["capture_steps"]:
            raise ConfigError(
                "--soft-labels brings its answers along, so no step is left to capture; leave --capture-steps away"
            )

    def check(self, kind: str, temperature: float, sampling_temperature: float, chat: ChatSettings) -> None:
        """Proves that labels are there and fit the run.

        Args:
            kind: The divergence, or `ce`.
            temperature: Temperature of the divergence.
            sampling_temperature: Temperature of the rollouts; 0 is allowed, for a server that decodes greedily.
            chat: How the run renders prompts.

        Raises:
            DataError: The directory holds no labels, or prompts that were rendered otherwise.
            ConfigError: They were drawn and the divergence is not fkl, or they are at another temperature.
        """
        from specdistill.distill.answers.same_chat import check_same_chat
        from specdistill.distill.answers.shards import find_shards

        settings = self._settings()
        find_shards(self.directory)
        check_same_chat("--soft-labels", self.directory, chat)
        if settings["labels"] == "sampled" and kind != "fkl":
            raise ConfigError(
                f"drawn labels train fkl only, but {kind} is minimised; annotate with --labels top-k for it"
            )
        if temperature != settings["temperature"] or sampling_temperature not in (0, temperature):
            raise ConfigError(
                f"the labels in {self.directory} are at temperature {settings['temperature']}; set --temperature (or "
                "0) and --loss-temperature to it, or annotate again"
            )

    def require_likeliest(self, flag: str) -> None:
        """Refuses labels that were drawn, which hold a text's own tokens only by chance.

        Raises:
            ConfigError: They were drawn.
        """
        if self._settings()["labels"] == "sampled":
            raise ConfigError(
                f"{flag} reads the target's probability of the text, which drawn labels may lack; annotate "
                "with --labels top-k for it"
            )

    def blocks(self) -> dict[str, list[int]]:
        """Ids before each labelled block of raw text, by the block's name; empty where answers to prompts are labelled.

        Raises:
            DataError: A shard can't be read.
        """
        if self._settings().get("text") is None:
            return {}
        from specdistill.distill.answers.shards import find_shards
        from specdistill.files import parquet

        rows = (row for shard in find_shards(self.directory) for row in parquet.read(shard, "prompt_id", "prompt_ids"))
        return {row["prompt_id"]: row["prompt_ids"] for row in rows}

    def connect(self, say: Callable[[str], None]) -> None:
        """Has nothing to wait for."""

    def open(self, model: LanguageModel, connection: ModelServer | None, view: TargetView) -> OpenTarget:
        """Opens the labels.

        Raises:
            DataError: A shard can't be read.
        """
        from specdistill.data.soft_labels import LabelStore
        from specdistill.distill.answers.shards import find_shards
        from specdistill.distill.target.stored_answers import StoredAnswers

        store = LabelStore(find_shards(self.directory))
        labelled_by = run_settings.adapters_of(self.directory).get("target", str(self._settings()["target"]))
        answers = StoredAnswers(store, self.directory, model.vocab_size, labelled_by)
        return OpenTarget(model, model.max_context, view, store, stored=answers)

    def _settings(self) -> run_settings.FlatSettings:
        has_settings = self.directory.is_dir() and run_settings.exists(self.directory)
        settings = run_settings.read(self.directory) if has_settings else {}
        if "labels" not in settings:
            raise DataError(f"--soft-labels {self.directory} holds no soft labels; 'specdistill annotate' writes them")
        return settings


@dataclass(frozen=True)
class Served:
    """A vLLM or SGLang server of the target."""

    url: str
    model: str | None
    """Name that it serves the target under; None takes the only one."""
    top_k: int
    """Likeliest ids per token to ask for."""
    concurrency: int
    """Requests under way at a time."""
    patience: float
    """Seconds to keep trying while it is away."""
    memory: ClassVar[str] = "whole"
    name: ClassVar[PlaceName] = "served"
    has_weights: ClassVar[bool] = False

    def refuse_settings(self, method: str, settings: Mapping[str, Any]) -> None:
        """Refuses what a server does not tell.

        Raises:
            ConfigError: Names the first such setting.
        """
        _refuse_without_weights("--target-server", self.name, method, settings)
        if settings["temperature"] not in (0, 1) or settings["loss_temperature"] not in (0, 1):
            raise ConfigError(
                "a server tells probabilities at temperature 1 only; set --temperature 1 or 0, and --loss-temperature 1"
            )

    def check(self, kind: str, temperature: float, sampling_temperature: float, chat: ChatSettings) -> None:
        """Raises ConfigError where the URL is none."""
        check_url(self.url)

    def connect(self, say: Callable[[str], None]) -> ModelServer:
        """Waits until the server lists its models.

        Args:
            say: Where waiting announces itself.

        Raises:
            ServerError: It stays away, or does not serve the model.
        """
        return ModelServer(self.url, self.model, concurrency=self.concurrency, patience=self.patience, say=say)

    def open(self, model: LanguageModel, connection: ModelServer | None, view: TargetView) -> OpenTarget:
        """Compares tokenizers with the server.

        Raises:
            IncompatibleModelsError: Its model has another one.
        """
        from specdistill.distill.target.served import TargetServer

        assert connection is not None, "connect comes first"
        server = TargetServer(connection, model, self.top_k)
        return OpenTarget(model, server.max_context, view, server, server.write)


TargetPlace = InMemory | Stored | Served


def _refuse_without_weights(flag: str, place: PlaceName, method: str, settings: Mapping[str, Any]) -> None:
    allowed = methods_with(place)
    if method not in allowed:
        raise ConfigError(f"{flag} goes with --method {', '.join(allowed)}, not with {method}")
    if settings["target_memory"] != "whole":
        raise ConfigError(f"{flag} loads no target that --target-memory {settings['target_memory']} could keep small")
    for name in _NEED_WEIGHTS:
        if settings[name]:
            raise ConfigError(f"--{name} needs the target itself, not only its labels; leave {flag} away")
    if settings["top_k"] or settings["top_p"] < 1 or settings["min_p"]:
        raise ConfigError(f"{flag} knows unfiltered distributions only; leave --top-k, --top-p and --min-p away")
