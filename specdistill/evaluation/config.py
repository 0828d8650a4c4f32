"""Settings of `specdistill bench`; imports nothing heavy, so that --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measure what a draft is worth: acceptance under every rule, speed against the plain target, and a verdict."""

    target: str
    """The model being served: hub id, checkpoint directory or .gguf file."""
    draft: str
    """The small model that proposes: hub id, checkpoint directory or .gguf file."""
    compare: str | None = None
    """A second draft (say, the one before training): its alpha and the paired difference are reported too."""
    prompts: str = "builtin:heldout"
    """builtin:train, builtin:heldout, humaneval, a .jsonl or .txt file, or a datasets name[:split]."""
    num_prompts: int = 32
    """Prompts to score, spread over the categories; 0 takes all."""
    latency_prompts: int = 0
    """How many of them to time against the plain target (the slow part); 0 takes all."""
    max_new_tokens: int = 128
    """Tokens per answer."""
    temperature: float = 0.0
    """Of the server; 0 is greedy."""
    top_k: int = 0
    """Keep the K most likely ids of both models; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of ids with this mass, in both models; 1 keeps all."""
    min_p: float = 0.0
    """Keep ids at least this fraction as likely as the likeliest, in both models; 0 keeps all."""
    rule: Literal["auto", "greedy", "sampled", "argmax_draft", "block", "lenient"] = "auto"
    """How the server accepts. auto: greedy at temperature 0, else sampled. Above temperature 0 vLLM's default, SGLang's
    standalone drafts and llama.cpp use argmax_draft. block judges drafts as a whole (exact); lenient is lossy."""
    lenience: float = 1.0
    """Of the rule lenient, below 1: a token may come up as often as its probability divided by this. LOSSY."""
    num_draft_tokens: int = 0
    """Draft tokens per verification in the timed run; 0 takes the length with the highest predicted speed-up."""
    max_draft_tokens: int = 8
    """Longest draft length that costs and predictions cover."""
    draft_length: Literal["fixed", "confidence", "auto"] = "fixed"
    """fixed: always num_draft_tokens. confidence: up to that many (0: max_draft_tokens), until the draft doubts. auto:
    whatever pays most by measured costs and the acceptance seen so far; plain decoding where drafting doesn't pay."""
    confidence: float = 0.4
    """Of draft_length confidence: draft until the product of the draft's probabilities falls under this."""
    batch_size: int = 1
    """Prompts decoded together in the timed run."""
    seed: int = 0
    """Of sampling."""
    device: str = "auto"
    """A torch device; auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    pack: Literal["none", "float16", "int8"] = "none"
    """Weights packed for small passes on an x86 CPU, of both models. float16 rounds the weights and stays exact for the
    rounded model; int8 is faster and not exact: tokens that share a pass share a scale."""
    threads: int = 0
    """CPU threads of torch; 0 leaves its default. One thread gives the steadiest timings."""
    json: str | None = None
    """Write the report as JSON (schema: METRICS in the documentation)."""
    html: str | None = None
    """Write the report as one self-contained HTML page with plots."""

    def __post_init__(self) -> None:
        for name in ("num_prompts", "latency_prompts", "num_draft_tokens", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be 0 or more, got {getattr(self, name)}")
        for name, least in (("max_new_tokens", 2), ("max_draft_tokens", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        if self.num_draft_tokens > self.max_draft_tokens:
            raise ConfigError(
                f"--num-draft-tokens {self.num_draft_tokens} exceeds --max-draft-tokens {self.max_draft_tokens}"
            )
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p < 1:
            raise ConfigError("--temperature and --top-k must be 0 or more, --top-p in (0, 1], --min-p in [0, 1)")
        if (self.rule == "lenient") != (self.lenience < 1) or not 0 < self.lenience <= 1:
            raise ConfigError("--rule lenient and --lenience go together; the lenience must be in (0, 1)")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"--confidence must be in (0, 1), got {self.confidence}")
        if self.pack != "none" and self.dtype not in ("auto", "float32"):
            raise ConfigError(f"--pack {self.pack} starts from float32 weights; leave out --dtype {self.dtype}")
        if self.rule != "auto" and (self.rule == "greedy") != (self.temperature == 0):
            raise ConfigError(f"--rule {self.rule} does not go with --temperature {self.temperature}")

    @property
    def served_rule(self) -> str:
        """How the timed run accepts."""
        if self.rule != "auto":
            return self.rule
        return "greedy" if self.temperature == 0 else "sampled"

    @property
    def predicting_rule(self) -> str:
        """The rule that predictions are made for: block and lenient keep at least as much as sampled."""
        return "sampled" if self.served_rule in ("block", "lenient") else self.served_rule

    @property
    def lossy(self) -> bool:
        """Whether the rule gives up the target's distribution."""
        return self.served_rule == "lenient"
