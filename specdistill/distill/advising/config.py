"""Settings of `specdistill advise`, in parts. Imports nothing heavy, so that --help stays fast."""

# Without `from __future__ import annotations`: cyclopts reads inherited fields of `ServedSampling`.
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.errors import ConfigError
from specdistill.evaluation.config import MeasureConfig, ServedSampling
from specdistill.settings.adapter import AdapterSettings
from specdistill.settings.chat import ChatSettings
from specdistill.settings.checks import at_least, check_seed, within_answers
from specdistill.settings.machine import Machine
from specdistill.settings.parts import ESSENTIALS, MACHINE, Config, Unasked, box
from specdistill.settings.self_prompts import SelfPromptSettings

TARGET, GIVEN = "target", "given"
"""Values of --answers that name no directory."""
_SHARED = ("target", "prompts", "num_prompts", "max_new_tokens", "json")


@dataclass(frozen=True, kw_only=True)
class ServerRuleSettings:
    """How the server accepts draft tokens, and how many it asks for."""

    rule: Literal["auto", "greedy", "sampled", "argmax_draft"] = "auto"
    """How the server accepts. auto: greedy at temperature 0, else sampled. Set argmax_draft for vLLM, SGLang and
    llama.cpp as they come, where you serve above temperature 0."""
    max_draft_tokens: int = 8
    """Longest draft length that is timed and predicted."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_draft_tokens")


@dataclass(frozen=True, kw_only=True)
class ComparedDraftSettings:
    """Drafts that are compared."""

    cut_layers: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (2, 4)
    """Layers of the target that independent and parallel drafts keep, a draft of each kind for each number."""
    vocab_keep: int = 8192
    """Ids of trimmed output heads, as init-draft's --vocab-keep; 0 keeps all, and gives an EAGLE-3 head 8192."""
    parallel: int = Unasked(8)
    """Tokens that a parallel draft guesses in one pass. Left out, it is 8, or --max-new-tokens where that is less."""
    unroll: int = 3
    """Steps of an EAGLE-3 head's rounds in training."""

    def __post_init__(self) -> None:
        # A YAML file gives a list, and a single number may be given as it is.
        layers = (self.cut_layers,) if isinstance(self.cut_layers, int) else tuple(self.cut_layers)
        object.__setattr__(self, "cut_layers", layers)
        if not layers or min(layers) < 1 or len(set(layers)) < len(layers):
            named = " ".join(map(str, layers)) or "none"
            raise ConfigError(f"--cut-layers takes different numbers of layers from 1 on, such as 2 4; got {named}")
        at_least(self, 0, "vocab_keep")
        at_least(self, 2, "parallel")
        at_least(self, 1, "unroll")


@dataclass(frozen=True, kw_only=True)
class AdviceTimingSettings:
    """How steps are timed."""

    batch_size: int = 1
    """Prompts decoded together; set it to the batch that you serve with."""
    seed: int = 0
    """Random seed of the target's answers."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto is bfloat16 on a GPU and float32 on a CPU."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class AdviseConfig(Config):
    """Compare a cut, a parallel draft, an EAGLE-3 head, free drafting and no drafting before any draft is trained."""

    target: Annotated[str, Parameter(group=ESSENTIALS)]
    """The model being served: hub id, checkpoint or adapter directory, or .gguf file."""
    prompts: Annotated[str, Parameter(group=ESSENTIALS)] = "builtin:heldout"
    """Prompts of your job; same forms as in bench. What you serve is best."""
    answers: Annotated[str, Parameter(group=ESSENTIALS)] = TARGET
    """Answers that copying is counted on. target: the target writes them now. given: the prompts' own field answer,
    which the target should have written. Else a directory that 'specdistill generate' wrote for these prompts."""
    num_prompts: Annotated[int, Parameter(group=ESSENTIALS)] = 24
    """Prompts whose answers are looked at, spread over the categories; 0 takes all."""
    max_new_tokens: Annotated[int, Parameter(group=ESSENTIALS)] = 128
    """Tokens per answer."""
    training_minutes: Annotated[float, Parameter(group=ESSENTIALS)] = 60.0
    """Minutes of training on this machine that drafts are compared at, answers included."""
    json: Annotated[str | None, Parameter(group=ESSENTIALS)] = None
    """Write the advice as JSON to this file."""
    adapter: Annotated[AdapterSettings, box("Adapter")] = field(default_factory=AdapterSettings)
    chat: Annotated[ChatSettings, box("Chat template")] = field(default_factory=ChatSettings)
    self_prompts: Annotated[SelfPromptSettings, box("Prompts from the target itself")] = field(
        default_factory=SelfPromptSettings
    )
    sampling: Annotated[ServedSampling, box("Sampling")] = field(default_factory=ServedSampling)
    served: Annotated[ServerRuleSettings, box("Acceptance rule and draft length")] = field(
        default_factory=ServerRuleSettings
    )
    drafts: Annotated[ComparedDraftSettings, box("Drafts that are compared")] = field(
        default_factory=ComparedDraftSettings
    )
    timing: Annotated[AdviceTimingSettings, box("Timing")] = field(default_factory=AdviceTimingSettings)
    machine: Annotated[Machine, box(MACHINE)] = field(default_factory=Machine)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = "--answers given" if self.answers == GIVEN else None
        self.self_prompts.check(self.prompts, "heldout", given)
        at_least(self, 0, "num_prompts")
        if not self.training_minutes > 0:
            raise ConfigError(f"--training-minutes must be above 0, got {self.training_minutes}")
        if not isinstance(self.drafts.parallel, Unasked):
            within_answers(self.drafts.parallel, self.max_new_tokens, "--max-new-tokens")
        elif self.drafts.parallel > self.max_new_tokens >= 2:
            shorter = replace(self.drafts, parallel=Unasked(self.max_new_tokens))
            object.__setattr__(self, "drafts", shorter)
        # Refuses what bench would refuse, in the same words.
        _ = self.as_bench

    @property
    def as_bench(self) -> MeasureConfig:
        """The settings that bench has too."""
        return MeasureConfig.flat(
            **{name: getattr(self, name) for name in _SHARED},
            **vars(self.adapter),
            **vars(self.chat),
            **vars(self.self_prompts),
            **vars(self.sampling),
            **vars(self.served),
            **vars(self.timing),
            **vars(self.machine),
        )
