"""Settings of `specdistill init-draft` and `specdistill train-draft`; imports nothing heavy, so --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class InitDraftConfig:
    """Cut a draft out of the target's own layers, for families without a small sibling."""

    target: str
    """The model being served: hub id, checkpoint directory or .gguf file."""
    output: str
    """Directory for the draft; must be new or empty."""
    layers: int
    """How many of the target's layers to keep."""
    choose: Literal["auto", "even", "ends", "greedy"] = "auto"
    """Which layers: evenly spaced, first and last ones, or added greedily by alpha on the calibration answers; auto
    trains all three for a few steps and keeps the one with the highest alpha."""
    probe_steps: int = 20
    """Steps of auto's short training of each candidate; 0 compares them untrained."""
    vocab_keep: int = 0
    """Trim the output head to the N ids that the target uses most (for small drafts the head is most of a step's cost);
    0 keeps all. The saved weights keep the full vocabulary, for engines that demand it."""
    prompts: str = "builtin:train"
    """Prompts whose answers calibrate the choice; same forms as in train-draft."""
    calibration_prompts: int = 32
    """How many of them."""
    calibration_tokens: int = 64
    """Tokens that the target writes for each, sampled at temperature 1."""
    seed: int = 0
    """Of the calibration answers."""
    device: str = "auto"
    """A torch device; auto takes the GPU where there is one."""
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "layers")
        _at_least(self, 2, "calibration_prompts")
        _at_least(self, 2, "calibration_tokens")
        _at_least(self, 0, "vocab_keep", "threads", "probe_steps")


METHODS = ("seqkd", "supervised-kd", "gkd", "distillspec", "skd")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Distil a draft (student) toward its target (teacher)."""

    target: str
    """The model being served: hub id, checkpoint directory or .gguf file. It is never changed."""
    draft: str
    """Where the draft starts: hub id, checkpoint directory or .gguf file; 'specdistill init-draft' makes one."""
    output: str
    """Directory for the trained draft; must be new or empty."""
    method: Literal["seqkd", "supervised-kd", "gkd", "distillspec", "skd"] = "distillspec"
    """seqkd: cross entropy on the target's answers. supervised-kd: forward KL on given answers (field answer). gkd:
    JSD on a mixture of the draft's and fixed answers. distillspec: forward KL on the target's sampled answers, then on
    the draft's own. skd: forward KL on answers that draft and target write together (speculative KD)."""
    divergence: Literal["auto", "fkl", "rkl", "jsd", "jeffreys", "tvd", "lk_alpha", "lk_lambda"] = "auto"
    """What is minimised; auto takes the method's own. For a server that samples, lk_lambda ends nearest to alpha."""
    prompts: str = "builtin:train"
    """builtin:train, humaneval, a .jsonl or .txt file, or a datasets name[:split]. The served domain is best."""
    heldout_prompts: int = 16
    """Prompts kept out of training, split off by a hash of their text; early stopping watches them."""
    rollouts: str | None = None
    """Take the target's answers from this rollouts.jsonl of an earlier run instead of generating them."""
    rollouts_per_prompt: int = 4
    """Answers that the target samples per prompt (several sampled ones beat one greedy one)."""
    max_new_tokens: int = 128
    """Tokens per answer, in rollouts and on the held-out prompts."""
    temperature: float = 1.0
    """Of all rollouts: train at the temperature that will be served. 0 rolls out greedily."""
    top_k: int = 0
    """Of all rollouts; 0 keeps all ids."""
    top_p: float = 1.0
    """Of all rollouts; 1 keeps all ids."""
    min_p: float = 0.0
    """Of all rollouts; 0 keeps all ids."""
    beta: float = 0.5
    """Of jsd: 0 < beta < 1, the target's weight in the mixture."""
    eta: float = 3.0
    """Of lk_lambda: how fast it moves from fkl to tvd as alpha grows (3 as published for EAGLE-3)."""
    lmbda: float = 0.5
    """Of gkd: share of steps that train on the draft's own answers."""
    target_fraction: float | None = None
    """Of distillspec: share of steps on the target's answers before the draft's own begin. Left out: 0.6, or 1 for a
    draft that init-draft just cut, whose own answers are still noise to learn from."""
    skd_top_k: int = 25
    """Of skd: a draft token outside the target's top K is replaced (25 as published)."""
    skd_num_draft_tokens: int = 5
    """Of skd: draft tokens per check by the target (5 as published)."""
    steps: int = 300
    """Optimiser steps at most."""
    batch_size: int = 8
    """Answers per step."""
    learning_rate: float = 0.0
    """Peak of AdamW; 0 chooses by the draft's size (below 100M, below 300M, above): 3e-4, 1e-4, 1e-5 for a trained
    model, which higher rates spoil, and 1.5e-3, 5e-4, 1e-4 for one that init-draft just cut."""
    warmup: float = 0.1
    """Share of steps with a rising learning rate; after it a cosine falls to a tenth of the peak."""
    weight_decay: float = 0.0
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    rule: Literal["greedy", "sampled", "argmax_draft"] = "sampled"
    """The alpha that early stopping watches: take the rule that the server uses."""
    eval_every: int = 25
    """Steps between looks at the held-out alpha; the best draft so far is saved each time."""
    patience: int = 5
    """Stop after this many looks without a new best; 0 never stops early."""
    seed: int = 0
    """Of sampling, shuffling and the mixture's coin."""
    device: str = "auto"
    """A torch device; auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the target's weights; the draft trains in float32."""
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""

    def __post_init__(self) -> None:
        _at_least(
            self,
            1,
            "heldout_prompts",
            "rollouts_per_prompt",
            "skd_top_k",
            "skd_num_draft_tokens",
            "steps",
            "batch_size",
        )
        _at_least(self, 1, "eval_every")
        _at_least(self, 2, "max_new_tokens")
        _at_least(self, 0, "temperature", "top_k", "learning_rate", "weight_decay", "patience", "threads")
        if self.method not in METHODS:
            raise ConfigError(f"unknown --method {self.method!r}; choose one of {', '.join(METHODS)}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise ConfigError(f"--min-p must be in [0, 1), got {self.min_p}")
        if not 0 < self.beta < 1:
            raise ConfigError(f"--beta must be in (0, 1), got {self.beta}; use --divergence fkl or rkl for the ends")
        for name in ("lmbda", "target_fraction", "warmup"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be in [0, 1], got {getattr(self, name)}")
        if self.eta < 0 or self.max_grad_norm <= 0:
            raise ConfigError("--eta must be 0 or more and --max-grad-norm above 0")
        if self.method == "seqkd" and self.divergence != "auto":
            raise ConfigError("--method seqkd minimises cross entropy; leave --divergence away, or use supervised-kd")
        if self.rollouts is not None and self.method in ("supervised-kd", "skd"):
            raise ConfigError(f"--rollouts are the target's answers, which --method {self.method} does not use")

    @property
    def loss(self) -> str:
        """The divergence that is minimised."""
        if self.divergence != "auto":
            return self.divergence
        return {"seqkd": "ce", "gkd": "jsd"}.get(self.method, "fkl")


def _at_least(config: object, least: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}")
