"""Sizes that `plan` estimates with: accelerators, tokens by what is done with them, shapes, memory of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from specdistill.evaluation.plan_config import PlanConfig, PlannedMachine, PlannedText

GIB = 2.0**30
ADAMW_BYTES = 16
"""Per trained parameter: float32 weight, gradient, and AdamW's two moments; the forward pass may be bfloat16."""
ACTIVATIONS = 23
"""Numbers kept for backward per token, layer and unit of width in a Llama: about 10.7 of the MLP's gate, up, activation
and product (2.67 wide each), 8 of attention with its rotated queries and keys (not its scores), 4 of two norms."""
USABLE_MEMORY = 0.92
"""Share of an accelerator's memory that a run may fill."""
KEPT_STATES = 2 * GIB
"""Most bytes of the target's hidden states that training keeps for text that comes again."""
_TILE_BYTES = 2.0**27
"""Most bytes of logits that the loss holds per model: float32 on a CPU or bfloat16 on a GPU."""


@dataclass(frozen=True)
class Accelerator:
    """Numbers of the vendor's data sheet."""

    flops: float
    """bfloat16 FLOP/s, dense."""
    bandwidth: float
    """Bytes per second."""
    memory: float
    """Bytes."""

    def hours(self, flops: float, machine: PlannedMachine) -> float:
        """Accelerator hours of work that computing limits."""
        return flops / (self.flops * machine.utilisation) / 3600

    def holds(self, size: float) -> bool:
        """Whether so many bytes leave 8 % of its memory free."""
        return size <= self.memory * USABLE_MEMORY


ACCELERATORS = {
    "h100": Accelerator(989e12, 3.35e12, 80e9),
    "h200": Accelerator(989e12, 4.8e12, 141e9),
    "a100": Accelerator(312e12, 2.04e12, 80e9),
    "l40s": Accelerator(362e12, 0.864e12, 48e9),
    "mi300x": Accelerator(1307e12, 5.3e12, 192e9),
}


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Tokens by what is done with them."""

    written: float
    """Answer tokens that the target writes."""
    read: float
    """Prompt tokens that the target reads while it writes."""
    trained: float
    """Answer tokens in the loss."""
    own: float
    """Answer tokens that the draft writes itself and is trained on."""
    labelled: float
    """Tokens that the target reads for its distributions, prompts included."""
    trained_with_prompts: float
    """Tokens that pass through the draft in training, prompts and a parallel draft's masks included."""

    def by_stage(self) -> dict[str, float]:
        """Stage -> the tokens that it counts."""
        return {
            "target writes": self.written,
            "target labels": self.labelled,
            "draft writes": self.own,
            "draft trains": self.trained_with_prompts,
        }


def accelerator(name: str, machine: PlannedMachine) -> Accelerator:
    """The data sheet's numbers, or the user's own where the name is `custom`."""
    if name == "custom":
        tflops, bandwidth, memory = machine.custom
        return Accelerator(tflops * 1e12, bandwidth * 1e9, memory * GIB)
    return ACCELERATORS[name]


def token_counts(text: PlannedText, rows_per_token: float = 1.0, *, labelled_once: bool = True) -> TokenCounts:
    """Counts tokens by what is done with them.

    Args:
        text: The text.
        rows_per_token: Rows that the draft reads in training for each token of an answer, guesses included.
        labelled_once: Whether what the target says of its answers is kept for the epochs that follow.
    """
    answers = text.prompts * text.rollouts_per_prompt
    written = answers * text.answer_tokens
    trained = written * text.epochs
    own = trained * text.on_policy_fraction
    ratio = (text.prompt_tokens + text.answer_tokens) / text.answer_tokens
    # A stored answer is labelled once; the draft's own are new each time.
    fixed = trained - own
    if labelled_once:
        fixed = written * min(1.0, text.epochs) if text.on_policy_fraction < 1 else 0.0
    return TokenCounts(
        written=float(written),
        read=float(answers * text.prompt_tokens),
        trained=float(trained),
        own=float(own),
        labelled=float((fixed + own) * ratio),
        trained_with_prompts=float(trained * (ratio - 1 + rows_per_token)),
    )


def counts_of(config: PlanConfig) -> TokenCounts:
    """Tokens of a plan's own draft."""
    states = config.text.prompts * config.text.rollouts_per_prompt * config.text.answer_tokens * state_bytes(config)
    kept = config.training.labels == "stored" or states <= KEPT_STATES
    return token_counts(config.text, config.training.rows_per_token, labelled_once=kept)


def largest_micro_batch(config: PlanConfig, gpu: Accelerator, size_of: Callable[[PlanConfig], float]) -> int | None:
    """The largest --micro-batch-size, up to the plan's own, with which a run fits; None where none does.

    Args:
        config: The plan.
        gpu: The accelerator.
        size_of: Plan -> bytes of one accelerator while training; more answers at a time never take less.
    """
    planned = config.training.micro_batch_size
    if gpu.holds(size_of(config)):
        return planned
    fitting, beyond = 0, planned
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        if gpu.holds(size_of(config.replace(micro_batch_size=middle))):
            fitting = middle
        else:
            beyond = middle
    return fitting or None


def state_bytes(config: PlanConfig) -> float:
    """Bytes of one of the target's hidden states."""
    return target_shape(config)[1] * config.models.weight_bytes


def working_bytes(config: PlanConfig) -> float:
    """Bytes of one micro-batch: the draft's activations, and the target's own pass or the loss's two tiles."""
    text, answers = config.text, config.training.micro_batch_size
    layers, width = shape_of(config.draft)
    layers, width = config.models.draft_layers or layers, config.models.draft_width or width
    tokens, guesses = answers * text.prompt_tokens, answers * text.answer_tokens * config.training.rows_per_token
    return (tokens + guesses) * layers * width * ACTIVATIONS * config.models.weight_bytes + max(
        target_pass_bytes(config), loss_bytes(config, guesses, config.models.vocab_size)
    )


def target_pass_bytes(config: PlanConfig) -> float:
    """Bytes of the target's pass over a micro-batch: nothing is kept for backward, so a few times a layer's width."""
    text = config.text
    return 8 * config.training.micro_batch_size * (text.prompt_tokens + text.answer_tokens) * state_bytes(config)


def loss_bytes(config: PlanConfig, guesses: float, ids: float) -> float:
    """Bytes of both models' logits that the loss holds at a time."""
    return 2 * min(guesses * ids * config.models.weight_bytes, _TILE_BYTES)


def target_shape(config: PlanConfig) -> tuple[float, float]:
    """(layers, width) of the target."""
    layers, width = shape_of(config.target)
    return layers, config.models.target_width or width


def shape_of(params: float) -> tuple[float, float]:
    """(layers, width) of a transformer of that size, by the rule that families follow: 12 L w^2 parameters, w = 128 L.

    Models of less than some 300M parameters are mostly embeddings, and of another shape.
    """
    layers = (params / (12 * 128**2)) ** (1 / 3)
    return layers, 128 * layers
