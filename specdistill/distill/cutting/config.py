"""Settings of `specdistill init-draft`, in parts; imports nothing heavy, so that --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.errors import ConfigError
from specdistill.settings.adapter import AdapterSettings
from specdistill.settings.chat import ChatSettings
from specdistill.settings.checks import at_least, check_seed, needs
from specdistill.settings.machine import Machine
from specdistill.settings.parts import ESSENTIALS, MACHINE, Config, box
from specdistill.settings.self_prompts import SelfPromptSettings


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """How the layers are chosen."""

    choose: Literal["auto", "even", "ends", "greedy"] = "auto"
    """Layers to keep: evenly spaced, first and last ones, or added greedily by alpha on the calibration answers. auto
    trains all three for a few steps and keeps the one with the highest alpha."""
    probe_steps: int = 20
    """Steps of auto's short training of each candidate; 0 compares them untrained."""
    calibration_prompts: int = 32
    """Prompts to calibrate on, taken from --prompts."""
    calibration_tokens: int = 64
    """Tokens that the target writes for each, sampled at temperature 1."""
    seed: int = 0
    """Random seed of the calibration answers."""

    def __post_init__(self) -> None:
        at_least(self, 2, "calibration_prompts", "calibration_tokens")
        at_least(self, 0, "probe_steps")
        needs(self, self.choose == "auto", "--choose auto", "probe_steps")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class InitDraftConfig(Config):
    """Cut a draft out of the target's own layers, or fit a small model of another family to its vocabulary."""

    target: Annotated[str, Parameter(group=ESSENTIALS)]
    """Model being served: hub id, checkpoint or adapter directory, or .gguf file."""
    output: Annotated[str, Parameter(group=ESSENTIALS)]
    """Directory for the draft; must be new or empty."""
    kind: Annotated[Literal["model", "eagle3"], Parameter(group=ESSENTIALS)] = "model"
    """Kind of draft. model: a model of its own, cut or donated. eagle3: a head of one layer that reads three of the
    target's hidden states (docs/heads.md); it takes no --layers."""
    layers: Annotated[int | None, Parameter(group=ESSENTIALS)] = None
    """Number of the target's layers to keep; with --donor, of the donor's layers, of which all stay by default."""
    donor: Annotated[str | None, Parameter(group=ESSENTIALS)] = None
    """Small model of another family to start from, in place of the target's layers; same forms as --target. It gets
    the target's tokenizer: tokens of equal text keep its rows, others take the mean of the rows of their pieces."""
    vocab_keep: Annotated[int, Parameter(group=ESSENTIALS)] = 0
    """Trim the output head to the N ids that the target uses most: in small drafts the head is most of a step's cost.
    0 keeps all. The saved weights keep the full vocabulary, for engines that demand it. A head holds no others, and 0
    stands for 8192."""
    own_embedding: Annotated[bool, Parameter(group=ESSENTIALS)] = False
    """Give a head an embedding of its own, which is trained too. By default it reads the target's."""
    prompts: Annotated[str, Parameter(group=ESSENTIALS)] = "builtin:train"
    """Prompts whose answers calibrate the choice; same forms as in train-draft, self:N included."""
    adapter: Annotated[AdapterSettings, box("Adapter")] = field(default_factory=AdapterSettings)
    chat: Annotated[ChatSettings, box("Chat template")] = field(default_factory=ChatSettings)
    self_prompts: Annotated[SelfPromptSettings, box("Prompts from the target itself")] = field(
        default_factory=SelfPromptSettings
    )
    choice: Annotated[LayerSettings, box("Choice of layers")] = field(default_factory=LayerSettings)
    machine: Annotated[Machine, box(MACHINE)] = field(default_factory=Machine)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "eagle3":
            self._check_head()
        elif self.own_embedding:
            raise ConfigError("--own-embedding goes with --kind eagle3; any other draft has one")
        elif self.layers is None and self.donor is None:
            raise ConfigError("--layers is required without --donor; give the number of the target's layers to keep")
        if self.layers is not None:
            at_least(self, 1, "layers")
        at_least(self, 0, "vocab_keep")
        needs(self.choice, self.layers is not None, "--layers", "choose", "probe_steps")
        self.self_prompts.check(self.prompts, "train")

    def _check_head(self) -> None:
        """Refuses what only other drafts are made with."""
        for name in ("layers", "donor"):
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"--{name} makes a model of its own, and --kind eagle3 a head; leave one of them away"
                )
