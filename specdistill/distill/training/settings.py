"""Settings of the optimiser, of held-out evaluation and of checkpoints. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.errors import ConfigError
from specdistill.settings.checks import at_least, within_one
from specdistill.settings.parts import ESSENTIALS


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """How the draft's weights change."""

    steps: Annotated[int, Parameter(group=ESSENTIALS)] = 300
    """Optimiser steps at most."""
    batch_size: int = 8
    """Answers per optimiser step."""
    micro_batch_size: int = 0
    """Answers per forward and backward pass (gradient accumulation); lower it when memory runs out. 0 takes all at
    once. The loss is the mean over the tokens of the whole step either way."""
    learning_rate: Annotated[float, Parameter(group=ESSENTIALS)] = 0.0
    """Peak learning rate of AdamW. 0 chooses by the draft's size (below 100M, below 300M, above): 3e-4, 1e-4, 1e-5 for
    a trained model, which higher rates spoil; 1.5e-3, 5e-4, 1e-4 for one that init-draft just cut, for one that learns
    to guess in parallel, or for LoRA."""
    warmup: float = 0.1
    """Share of steps with a rising learning rate; after it a cosine falls to a tenth of the peak."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    lora_rank: int = 0
    """Train LoRA adapters of this rank (needs specdistill[lora]) and save the merged weights. 0 trains all weights,
    which raises alpha more."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the draft's forward pass; its weights, their gradients and the loss stay float32. auto: bfloat16 on
    a GPU that computes in it, else float32."""
    packing: bool | None = None
    """Lay texts of different lengths behind each other in the rows of a pass, instead of padding all to the longest.
    Loss and gradients are the same up to rounding. Left out: a model packs if a proof on a few tokens of its own says
    that it may, which recurrent layers don't. Parallel drafts and heads are padded. --packing=false pads all."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass to save memory; rollouts keep their KV cache."""

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch_size")
        at_least(self, 0, "learning_rate", "weight_decay", "micro_batch_size", "lora_rank")
        within_one(self, "warmup")
        if not self.max_grad_norm > 0:
            raise ConfigError(f"--max-grad-norm must be above 0, got {self.max_grad_norm}")

    def check_machine(self) -> None:
        """Raises ConfigError where this machine lacks what the settings need; needs no model."""
        import torch

        from specdistill.distill.training import lora

        if self.lora_rank:
            lora.check_installed()
        if self.precision == "float16" and not torch.cuda.is_available():
            raise ConfigError("--precision float16 needs a GPU; use bfloat16 or float32")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """When the draft is scored on held-out prompts, and when the run is saved."""

    rule: Annotated[Literal["greedy", "sampled", "argmax_draft"], Parameter(group=ESSENTIALS)] = "sampled"
    """Acceptance rule whose alpha is watched: take the one that the server uses."""
    watch: Literal["auto", "alpha", "tokens_per_call", "score", "reward", "loss"] = "auto"
    """Held-out number that decides which draft is best and when to stop early. alpha: under --rule (for a draft of
    another tokenizer, the likelihood of the target's text). tokens_per_call: tokens per target call that a parallel
    draft or a head gives. score: of answers that the draft writes itself greedily, by --scorer. reward: of answers that
    it samples, by --reward. loss: the run's own, on given answers where the method trains on them, else on the
    target's. auto: reward with --reward; tokens_per_call with --parallel or a head; for sft of a model that is its own
    target, and best-of-n of one, score with a scorer, else (sft) loss; alpha otherwise. Of drafts with equal
    numbers the one with the best alpha is kept, or the latest of a model that is its own target."""
    keep: Literal["best", "last"] = "best"
    """Draft that --output holds in the end. best: the one with the best watched number, which may be the start. last:
    the last step's, bit for bit."""
    eval_every: int = 25
    """Steps between evaluations on the held-out prompts; the draft to keep so far is saved each time."""
    patience: int = 5
    """Stop after this many evaluations without a better watched number; 0 never stops early."""
    checkpoint_every: int = 0
    """Steps between checkpoints to resume from, a multiple of --eval-every; 0 writes one at every evaluation. The two
    newest are kept while the run goes on."""
    report_to: tuple[str, ...] = ()
    """Trackers besides history.jsonl: tensorboard, wandb, mlflow, or another that transformers knows."""

    def __post_init__(self) -> None:
        # A YAML file gives a list.
        object.__setattr__(self, "report_to", tuple(self.report_to))
        at_least(self, 1, "eval_every")
        at_least(self, 0, "patience", "checkpoint_every")
        if self.checkpoint_every % self.eval_every:
            raise ConfigError(
                f"--checkpoint-every {self.checkpoint_every} must be a multiple of --eval-every {self.eval_every}"
            )
