"""Settings of `specdistill plan`; imports nothing heavy, so --help stays fast."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError
from specdistill.settings.checks import at_least
from specdistill.settings.parts import Config

_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def parse_count(text: str, flag: str) -> float:
    """`70B`, `1.5b`, `135M` or plain digits as a number.

    Raises:
        ConfigError: It is none, or not above 0.
    """
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)\s*([KMBT]?)", text.strip(), re.IGNORECASE)
    try:
        value = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ConfigError(f"{flag} {text} is no number of parameters; write it like 70B, 1.5B or 135M")
    return value


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Config):
    """What training a draft will take, before anything is downloaded: tokens, accelerator hours, memory, storage."""

    target_params: str
    """Parameters of the target, e.g. 70B; of a mixture of experts those that are active for a token."""
    draft_params: str
    """Parameters of the draft, e.g. 1B."""
    draft_layers: int = 0
    """Layers of the draft; 0 guesses from its parameters."""
    draft_width: int = 0
    """Width (hidden_size) of the draft; 0 guesses from its parameters."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the target's weights and of what passes through both models; the draft's own weights are float32."""
    vocab_size: int = 128256
    """Rows of the output head (Llama 3's by default)."""
    target_resident_params: str | None = None
    """Of a mixture of experts: all parameters, which is what memory holds."""
    prompts: int = 50_000
    """Prompts to train on."""
    rollouts_per_prompt: int = 4
    """Answers that the target writes for each."""
    prompt_tokens: int = 300
    """Tokens of a prompt, on average."""
    answer_tokens: int = 400
    """Tokens of an answer, on average."""
    epochs: float = 2.0
    """How often each of the target's answers is trained on."""
    on_policy_fraction: float = 0.0
    """Share of training on answers that the draft writes itself (gkd 0.5, distillspec 0.4, for a trained draft)."""
    labels: Literal["live", "stored"] = "live"
    """Where the target's distributions come from. live: computed while training, once per sequence where its hidden
    states fit the cache. stored: by 'specdistill annotate', so that training needs no target."""
    label_top_k: int = 64
    """Of stored labels: ids per token."""
    batch_size: int = 64
    """Answers per optimiser step."""
    micro_batch_size: int = 8
    """Answers per forward and backward pass of one process."""
    gpus: int = 8
    """Accelerators."""
    gpu: Literal["h100", "h200", "a100", "l40s", "mi300x", "custom"] = "h100"
    """Which: their bfloat16 FLOP/s without sparsity, bandwidth and memory are those of the data sheets."""
    gpu_tflops: float = 0.0
    """Of custom: 10^12 FLOP/s in bfloat16."""
    gpu_bandwidth: float = 0.0
    """Of custom: memory bandwidth in 10^9 byte/s."""
    gpu_memory: float = 0.0
    """Of custom: memory in GiB."""
    utilisation: float = 0.4
    """Share of the peak FLOP/s that training and prefill reach (0.4 is what well-set runs report)."""
    decode_batch: int = 64
    """Answers that the engine writes at a time when the target generates."""
    decode_utilisation: float = 0.6
    """Share of the peak bandwidth (or FLOP/s, whichever binds) that decoding reaches."""
    json: str | None = None
    """Also write the plan to this file."""

    def __post_init__(self) -> None:
        at_least(self, 1, "vocab_size", "prompts", "rollouts_per_prompt", "prompt_tokens", "answer_tokens")
        at_least(self, 1, "label_top_k", "batch_size", "micro_batch_size", "gpus", "decode_batch")
        for name in ("utilisation", "decode_utilisation"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be in (0, 1], got {getattr(self, name)}")
        if not 0 <= self.on_policy_fraction <= 1:
            raise ConfigError(f"--on-policy-fraction must be in [0, 1], got {self.on_policy_fraction}")
        if self.epochs <= 0:
            raise ConfigError(f"--epochs must be above 0, got {self.epochs}")
        own = (self.gpu_tflops, self.gpu_bandwidth, self.gpu_memory)
        if (self.gpu == "custom") != all(own) or (self.gpu != "custom" and any(own)):
            raise ConfigError("--gpu custom goes with --gpu-tflops, --gpu-bandwidth and --gpu-memory")
        if self.labels == "stored" and self.on_policy_fraction:
            raise ConfigError("stored labels are of the target's answers, not the draft's own; use --labels live")
        if self.draft >= self.target:
            raise ConfigError(f"a draft of {self.draft_params} is no smaller than its target of {self.target_params}")
        if self.target_resident < self.target:
            raise ConfigError("--target-resident-params must be at least --target-params, the active ones")

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
        if self.target_resident_params is None:
            return self.target
        return parse_count(self.target_resident_params, "--target-resident-params")
