"""Settings of `specdistill plan`, in parts. Imports nothing heavy, so that --help stays fast."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.errors import ConfigError
from specdistill.settings.checks import a_share, at_least, check_parallel, needs
from specdistill.settings.parts import ESSENTIALS, Config, box

_MOST_EPOCHS = 1_000_000
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def parse_count(text: str, flag: str) -> float:
    """Reads `70B`, `1.5b`, `135M` or plain digits as a number.

    Raises:
        ConfigError: The text is no number, or not above 0.
    """
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([KMBT]?)", text.strip(), re.IGNORECASE)
    try:
        value = float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ConfigError(f"{flag} {text} is no number of parameters; write it like 70B, 1.5B or 135M")
    return value


@dataclass(frozen=True, kw_only=True)
class PlannedModels:
    """Shapes of the two models."""

    draft_layers: int = 0
    """Layers of the draft; 0 estimates them from its parameters."""
    draft_width: int = 0
    """Width (hidden_size) of the draft; 0 estimates it from its parameters."""
    target_width: int = 0
    """Width (hidden_size) of the target; 0 estimates it from its parameters. For the states that a head reads."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of the target's weights and of activations; the draft's own weights are float32."""
    vocab_size: int = 128256
    """Rows of the output head; the default is Llama 3's."""
    target_resident_params: str | None = None
    """All parameters of the target, which memory holds. Set it for a mixture of experts."""
    experts: int = 0
    """Experts of a layer of the target, without shared ones; with them the plan knows what writing and checking several
    tokens at a time reads. num_experts, num_local_experts or n_routed_experts in its config.json."""
    experts_per_token: int = 0
    """Experts of a layer that each token is sent to; num_experts_per_tok in the target's config.json."""

    def __post_init__(self) -> None:
        at_least(self, 1, "vocab_size")
        at_least(self, 0, "draft_layers", "draft_width", "target_width", "experts", "experts_per_token")
        if bool(self.experts) != bool(self.experts_per_token):
            raise ConfigError("--experts and --experts-per-token go together")
        if self.experts and self.target_resident_params is None:
            raise ConfigError("--experts needs --target-resident-params: all parameters, beside the active ones")
        if self.experts and self.experts_per_token >= self.experts:
            raise ConfigError(f"--experts-per-token {self.experts_per_token} must be below --experts {self.experts}")

    @property
    def weight_bytes(self) -> int:
        """Bytes of one number in the target and in activations."""
        return 4 if self.dtype == "float32" else 2


@dataclass(frozen=True, kw_only=True)
class PlannedText:
    """The text that the draft is trained on."""

    prompts: int = 50_000
    """Prompts to train on."""
    rollouts_per_prompt: int = 4
    """Answers that the target writes for each prompt."""
    prompt_tokens: int = 300
    """Tokens of a prompt, on average."""
    answer_tokens: int = 400
    """Tokens of an answer, on average."""
    epochs: float = 2.0
    """How often each of the target's answers is trained on."""
    on_policy_fraction: float = 0.0
    """Share of training on answers that the draft writes itself (gkd 0.5, distillspec 0.4, for a trained draft)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "prompts", "rollouts_per_prompt", "prompt_tokens", "answer_tokens")
        if not 0 <= self.on_policy_fraction <= 1:
            raise ConfigError(f"--on-policy-fraction must be in [0, 1], got {self.on_policy_fraction}")
        if not 0 < self.epochs <= _MOST_EPOCHS:
            raise ConfigError(f"--epochs must be above 0 and at most {_MOST_EPOCHS}, got {self.epochs}")


@dataclass(frozen=True, kw_only=True)
class PlannedTraining:
    """Labels and batches."""

    labels: Literal["live", "stored"] = "live"
    """Source of the target's distributions. live: computed while training, once per sequence where its hidden states
    fit the cache. stored: written by 'specdistill annotate', so that training needs no target."""
    label_top_k: int = 64
    """Ids per token in stored labels."""
    batch_size: int = 64
    """Answers per optimiser step."""
    micro_batch_size: int = 8
    """Answers per forward and backward pass of one process."""
    parallel: int = 0
    """Tokens that a parallel draft guesses in one pass, as train-draft's --parallel; 0 is an ordinary draft."""
    parallel_keep: float = 0.5
    """As train-draft's --parallel-keep."""
    parallel_keep_least: float = 0.1
    """As train-draft's --parallel-keep-least."""

    def __post_init__(self) -> None:
        at_least(self, 1, "label_top_k", "batch_size", "micro_batch_size")
        check_parallel(self)
        needs(self, self.parallel > 0, "--parallel", "parallel_keep", "parallel_keep_least")

    @property
    def rows_per_token(self) -> float:
        """Rows that the draft reads in training for each token of an answer: its own and the masks that are kept."""
        kept = (max(self.parallel_keep**ahead, self.parallel_keep_least) for ahead in range(1, self.parallel))
        return 1 + sum(kept)


@dataclass(frozen=True, kw_only=True)
class PlannedHead:
    """An EAGLE-3 head of the target, which is planned beside the draft."""

    unroll: int = 3
    """Steps of a head's rounds, as train-draft's --unroll."""
    head_ids: int = 8192
    """Ids that a head proposes, as init-draft's --vocab-keep."""

    def __post_init__(self) -> None:
        at_least(self, 1, "unroll", "head_ids")


@dataclass(frozen=True, kw_only=True)
class PlannedMachine:
    """Speed of the accelerators."""

    gpu_tflops: float = 0.0
    """10^12 FLOP/s in bfloat16. For --gpu custom."""
    gpu_bandwidth: float = 0.0
    """Memory bandwidth in 10^9 byte/s. For --gpu custom."""
    gpu_memory: float = 0.0
    """Memory in GiB. For --gpu custom."""
    utilisation: float = 0.4
    """Share of the peak FLOP/s that training and prefill reach; well-tuned runs report 0.4."""
    decode_batch: int = 64
    """Answers that the engine writes at a time when the target generates."""
    decode_utilisation: float = 0.6
    """Share of the peak bandwidth (or FLOP/s, whichever limits) that decoding reaches."""

    def __post_init__(self) -> None:
        at_least(self, 1, "decode_batch")
        at_least(self, 0, "gpu_tflops", "gpu_bandwidth", "gpu_memory")
        a_share(self, "utilisation", "decode_utilisation")

    @property
    def custom(self) -> tuple[float, float, float]:
        """The user's own data sheet: 10^12 FLOP/s, 10^9 byte/s and GiB, 0 where not given."""
        return self.gpu_tflops, self.gpu_bandwidth, self.gpu_memory


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Config):
    """Estimate what training a draft takes before any download: tokens, accelerator hours, memory, storage."""

    target_params: Annotated[str, Parameter(group=ESSENTIALS)]
    """Parameters of the target, e.g. 70B; for a mixture of experts those that are active for a token."""
    draft_params: Annotated[str, Parameter(group=ESSENTIALS)]
    """Parameters of the draft, e.g. 1B."""
    gpus: Annotated[int, Parameter(group=ESSENTIALS)] = 8
    """Number of accelerators."""
    gpu: Annotated[Literal["h100", "h200", "a100", "l40s", "mi300x", "custom"], Parameter(group=ESSENTIALS)] = "h100"
    """Kind of accelerator. Its bfloat16 FLOP/s without sparsity, bandwidth and memory come from the data sheet."""
    json: Annotated[str | None, Parameter(group=ESSENTIALS)] = None
    """Also write the plan to this file."""
    text: Annotated[PlannedText, box("Text")] = field(default_factory=PlannedText)
    training: Annotated[PlannedTraining, box("Training")] = field(default_factory=PlannedTraining)
    models: Annotated[PlannedModels, box("Models")] = field(default_factory=PlannedModels)
    head: Annotated[PlannedHead, box("EAGLE-3 head, beside the draft")] = field(default_factory=PlannedHead)
    machine: Annotated[PlannedMachine, box("Accelerators")] = field(default_factory=PlannedMachine)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "gpus")
        custom = self.machine.custom
        if (self.gpu == "custom") != all(custom) or (self.gpu != "custom" and any(custom)):
            raise ConfigError("--gpu custom goes with --gpu-tflops, --gpu-bandwidth and --gpu-memory")
        if self.training.labels == "stored" and self.text.on_policy_fraction:
            raise ConfigError("stored labels are of the target's answers, not the draft's own; use --labels live")
        if self.training.parallel > self.text.answer_tokens:
            longest = self.text.answer_tokens
            raise ConfigError(
                f"--parallel {self.training.parallel} exceeds --answer-tokens {longest}: guesses from {longest + 1} on "
                "would never be trained; lower --parallel, or raise --answer-tokens"
            )
        if self.draft >= self.target:
            raise ConfigError(f"a draft of {self.draft_params} is no smaller than its target of {self.target_params}")
        if self.target_resident < self.target:
            raise ConfigError("--target-resident-params must be at least --target-params, the active ones")
        models = self.models
        if models.experts and self.target / self.target_resident < models.experts_per_token / models.experts:
            raise ConfigError(
                f"{self.target_params} active of {models.target_resident_params} parameters are less than "
                f"{models.experts_per_token} of {models.experts} experts: --target-params are all that one token uses, "
                "attention and embeddings included"
            )

    @property
    def target(self) -> float:
        """Active parameters of the target."""
        return parse_count(self.target_params, "--target-params")

    @property
    def draft(self) -> float:
        """Parameters of the draft."""
        return parse_count(self.draft_params, "--draft-params")

    @property
    def target_resident(self) -> float:
        """Parameters of the target that memory holds."""
        if self.models.target_resident_params is None:
            return self.target
        return parse_count(self.models.target_resident_params, "--target-resident-params")
