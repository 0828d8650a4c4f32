"""Settings of `specdistill generate`, in parts; imports nothing heavy, so that --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.distill.answers.settings import EngineSettings, JudgeSettings, RaySettings
from specdistill.errors import ConfigError
from specdistill.settings.adapter import AdapterSettings
from specdistill.settings.chat import ChatSettings
from specdistill.settings.checks import at_least, check_seed, needs
from specdistill.settings.machine import Machine
from specdistill.settings.parts import ESSENTIALS, MACHINE, Config, box
from specdistill.settings.sampling import Sampling
from specdistill.settings.scoring import LIKELIHOOD
from specdistill.settings.self_prompts import SelfPromptSettings, answers_read
from specdistill.settings.target_context import ContextSettings

MOST_COPIES = 10_000
"""Most answers to a prompt that a budget may buy; more are a slip of the pen in a price or a size."""


def check_copies(copies: float) -> None:
    """Refuses a budget that buys more answers than anybody wants.

    Args:
        copies: Answers of the second model to each prompt.

    Raises:
        ConfigError: More than `MOST_COPIES`.
    """
    if copies > MOST_COPIES:
        raise ConfigError(
            f"the budget buys {copies:.3g} answers of --other to each prompt, more than {MOST_COPIES:,}; both prices "
            "must be in one unit; lower --rollouts-per-prompt, or take a larger --other"
        )


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """A second model that answers the same prompts for the same budget."""

    other: str | None = None
    """A second, cheaper model of the same tokenizer that answers the same prompts for the same budget: more answers,
    each worse. Answers go to OUTPUT/target and OUTPUT/other."""
    match: Literal["compute", "cost"] = "compute"
    """Unit of the budget. compute counts sampling FLOPs, 2 x parameters x tokens; cost counts price x tokens."""
    target_price: float = 0.0
    """Price of a token of the target, in any unit; for --match cost."""
    other_price: float = 0.0
    """Price of a token of the other model, in the same unit; for --match cost."""
    scorer: str = LIKELIHOOD
    """How the report judges the answers: target-likelihood (of two models); exact-match, number (the last one in the
    text) or json, which compare with the field answer; or module:function. All but the first also say for how many
    prompts some answer is right, and how many different right ones there are."""
    score_threshold: float | None = None
    """Score from which on an answer is right. Left out: 1."""
    strict_scorer: str | None = None
    """A stricter scorer, of the same kinds, that judges the right answers again, with the same threshold; the
    report says which share it rejects (false positives)."""

    def __post_init__(self) -> None:
        at_least(self, 0, "target_price", "other_price")
        needs(self, self.other is not None, "a second model, --other", "match", "target_price", "other_price")
        _ = self.judge
        if self.match == "cost" and not (self.target_price > 0 and self.other_price > 0):
            raise ConfigError("--match cost needs --target-price and --other-price above 0")
        needs(self, self.match == "cost", "--match cost", "target_price", "other_price")

    @property
    def judge(self) -> JudgeSettings:
        """The scorers of the report."""
        return JudgeSettings(scorer=self.scorer, score_threshold=self.score_threshold, strict_scorer=self.strict_scorer)

    def token_price(self, role: str) -> float:
        """Price of a token of the target or of the other model."""
        return self.target_price if role == "target" else self.other_price


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How answers are written."""

    batch_size: int = 16
    """Answers written at a time, fewer where texts exceed 2,048 tokens; vLLM takes a file's together."""
    shard_size: int = 64
    """Answers per file; a kill costs at most these."""
    seed: int = 0
    """Random seed of sampling; each answer's own seed follows from it, its prompt's id and its number."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "shard_size")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Config):
    """Let the target write answers to train on; after a kill the same command goes on where it was."""

    target: Annotated[str, Parameter(group=ESSENTIALS)]
    """Model that writes: hub id, checkpoint or adapter directory, or .gguf file."""
    output: Annotated[str, Parameter(group=ESSENTIALS)]
    """Directory for the answers, which train-draft takes with --rollouts and datasets loads as it is. New, empty, or of
    the same command that was cut off."""
    prompts: Annotated[str, Parameter(group=ESSENTIALS)] = "builtin:train"
    """Prompts to answer; same forms as in train-draft, self:N included."""
    rollouts_per_prompt: Annotated[int, Parameter(group=ESSENTIALS)] = 4
    """Answers per prompt; always 1 at --temperature 0, where all would be the same. A finished directory can be taken
    further with a larger number."""
    max_new_tokens: Annotated[int, Parameter(group=ESSENTIALS)] = 128
    """Tokens per answer."""
    adapter: Annotated[AdapterSettings, box("Adapter")] = field(default_factory=AdapterSettings)
    chat: Annotated[ChatSettings, box("Chat template")] = field(default_factory=ChatSettings)
    self_prompts: Annotated[SelfPromptSettings, box("Prompts from the target itself")] = field(
        default_factory=SelfPromptSettings
    )
    context: Annotated[ContextSettings, box("What only the target sees")] = field(default_factory=ContextSettings)
    sampling: Annotated[Sampling, box("Sampling")] = field(default_factory=Sampling)
    comparison: Annotated[ComparisonSettings, box("Scores, and a second model for the same budget")] = field(
        default_factory=ComparisonSettings
    )
    batches: Annotated[BatchSettings, box("Batches and files")] = field(default_factory=BatchSettings)
    engine: Annotated[EngineSettings, box("Engine")] = field(default_factory=EngineSettings)
    cluster: Annotated[RaySettings, box("Ray cluster")] = field(default_factory=RaySettings)
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Parameter(group=MACHINE)] = "auto"
    """Data type of the weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    machine: Annotated[Machine, box(MACHINE)] = field(default_factory=Machine)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "rollouts_per_prompt", "max_new_tokens")
        self.sampling.refuse_idle_filters()
        self.engine.refuse_idle()
        scorers = self.comparison.scorer, self.comparison.strict_scorer
        self.self_prompts.check(self.prompts, "train", answers_read(scorers, self.context.target_hint))
        compares = self.comparison.other is not None
        if self.comparison.match == "cost":
            check_copies(self.copies * self.comparison.target_price / self.comparison.other_price)
        needs(self.batches, not self.engine.uses_engine, "--rollout-engine transformers", "batch_size")
        if self.engine.uses_engine and compares:
            raise ConfigError("--rollout-engine vllm writes one model's answers; leave --other away")
        if self.cluster.ray is not None and compares:
            raise ConfigError("--ray writes one model's answers; leave --other away")

    @property
    def copies(self) -> int:
        """Answers per prompt of the target."""
        return self.sampling.distinct_copies(self.rollouts_per_prompt)
