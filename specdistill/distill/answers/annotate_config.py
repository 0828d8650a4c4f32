"""Settings of `specdistill annotate`, in parts; imports nothing heavy, so that --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.distill.answers.settings import RaySettings, check_text_block
from specdistill.errors import ConfigError
from specdistill.settings.adapter import AdapterSettings
from specdistill.settings.chat import ChatSettings
from specdistill.settings.checks import at_least, check_seed, check_temperature, needs
from specdistill.settings.machine import Machine
from specdistill.settings.parts import ESSENTIALS, MACHINE, Config, box
from specdistill.settings.self_prompts import SelfPromptSettings, answers_read
from specdistill.settings.target_context import FLAGS, ContextSettings


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Labels that are stored of the target's distributions."""

    labels: Literal["top-k", "sampled"] = "top-k"
    """Ids to store. top-k: the likeliest ids of each token, exact, and the rest as one outcome; any divergence can be
    trained, and the gradient is off by at most twice the rest's probability. sampled: ids drawn from the target; the
    gradient is right on average and takes fewer bytes, but only fkl can be trained."""
    top_k: int = 64
    """Ids per token; for --labels top-k."""
    draws: int = 64
    """Draws per token; likely ids are drawn several times and stored once. For --labels sampled."""
    temperature: float = 1.0
    """Divides the target's logits: the loss must then use this temperature."""
    precision: Literal["float16", "float32"] = "float16"
    """Precision of the stored log-probabilities."""
    seed: int = 0
    """Random seed of the draws; each answer's own seed follows from it, its prompt's id and its number."""

    def __post_init__(self) -> None:
        at_least(self, 1, "top_k", "draws")
        check_temperature(self, "temperature")
        if self.temperature <= 0:
            raise ConfigError(f"--temperature must be above 0, got {self.temperature}: at 0 every label is one id")
        needs(self, not self.drawn, "--labels top-k", "top_k")
        needs(self, self.drawn, "--labels sampled", "draws")
        check_seed(self.seed)
        if self.draws > 2**16 - 1:
            raise ConfigError(f"--draws must be at most 65535, got {self.draws}")

    @property
    def drawn(self) -> bool:
        """Whether ids are drawn instead of being the likeliest."""
        return self.labels == "sampled"

    @property
    def kept(self) -> int:
        """Ids per token at most."""
        return self.draws if self.drawn else self.top_k


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Hidden states of the target that are stored beside the labels, for an EAGLE-3 head."""

    features: Literal["auto", "float16", "bfloat16", "float32"] | None = None
    """Also store the hidden states that a head is trained on, as numbers of this format; train-draft --soft-labels then
    trains a head without the target. They take far more room than labels, which is said before anything is written.
    auto: the format of the target's weights where that has 16 bits, else float16. A number beyond float16's 65504 ends
    the command; then set bfloat16, which rounds eight times as much. Left out: labels alone."""
    feature_layers: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True)] = None
    """The three layers of the target after which a head reads its states, where they aren't the usual ones (2, L / 2
    and L - 3 of L); for --features."""

    def __post_init__(self) -> None:
        needs(self, self.features is not None, "--features", "feature_layers")
        if self.feature_layers is not None and len(self.feature_layers) != 3:
            raise ConfigError(f"--feature-layers takes three layers, got {len(self.feature_layers)}")


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig(Config):
    """Store the target's distribution over answers, so that training needs no target; the same command resumes."""

    target: Annotated[str, Parameter(group=ESSENTIALS)]
    """Model whose distribution is stored: hub id, checkpoint or adapter directory, or .gguf file."""
    output: Annotated[str, Parameter(group=ESSENTIALS)]
    """Directory for the labelled answers, which train-draft takes with --soft-labels and datasets loads as it is. New,
    empty, or of the same command that was cut off."""
    rollouts: Annotated[str | None, Parameter(group=ESSENTIALS)] = None
    """Answers to label: a directory that 'specdistill generate' or train-draft (its folder rollouts) wrote, by the
    target or by any other model of its tokenizer. Left out: the prompts' own answers (field answer)."""
    prompts: Annotated[str, Parameter(group=ESSENTIALS)] = "builtin:train"
    """Prompts with answers, where there are no --rollouts; same forms as in train-draft. With --target-system and the
    like also the prompts that the --rollouts answer."""
    text: Annotated[str | None, Parameter(group=ESSENTIALS)] = None
    """Raw text to label instead of answers, in blocks; same forms as in train-draft. It is read as a stream."""
    text_block: Annotated[int | None, Parameter(group=ESSENTIALS)] = None
    """Tokens per block of --text. Left out: 512, or the target's context where that is shorter."""
    max_new_tokens: Annotated[int, Parameter(group=ESSENTIALS)] = 128
    """The prompts' own answers are cut at this many tokens."""
    adapter: Annotated[AdapterSettings, box("Adapter")] = field(default_factory=AdapterSettings)
    chat: Annotated[ChatSettings, box("Chat template")] = field(default_factory=ChatSettings)
    self_prompts: Annotated[SelfPromptSettings, box("Prompts from the target itself")] = field(
        default_factory=SelfPromptSettings
    )
    context: Annotated[ContextSettings, box("What only the target sees")] = field(default_factory=ContextSettings)
    labels: Annotated[LabelSettings, box("Labels")] = field(default_factory=LabelSettings)
    head: Annotated[FeatureSettings, box("States for an EAGLE-3 head")] = field(default_factory=FeatureSettings)
    cluster: Annotated[RaySettings, box("Ray cluster")] = field(default_factory=RaySettings)
    batch_size: Annotated[int, Parameter(group=MACHINE)] = 8
    """Answers per pass of the target."""
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Parameter(group=MACHINE)] = "auto"
    """Data type of the weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    machine: Annotated[Machine, box(MACHINE)] = field(default_factory=Machine)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "batch_size")
        at_least(self, 2, "max_new_tokens")
        check_text_block(self.text, self.text_block)
        if self.text is not None and self.rollouts is not None:
            raise ConfigError("--text and --rollouts are two things to label; choose one")
        if self.text is not None and self.context.adds_something:
            raise ConfigError(f"--text has no prompts, to which {FLAGS} could add something; leave one of them away")
        if self.head.features is not None and self.context.adds_something:
            raise ConfigError(
                f"--features stores what a head reads, which must be what the target sees when it is served; leave "
                f"{FLAGS} away"
            )
        own = self.text is None and self.rollouts is None
        needs(self, own, "the prompts' own answers; leave --text and --rollouts away", "max_new_tokens")
        # Prompts of stored answers are read where the target sees more of them.
        asked = own or self.context.adds_something
        needs(self, asked, "the prompts' own answers; leave --text and --rollouts away", "prompts")
        answers = "annotate without --rollouts" if own else answers_read((), self.context.target_hint)
        self.self_prompts.check(self.prompts, "train", answers)
