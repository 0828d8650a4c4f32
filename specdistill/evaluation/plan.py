"""Estimates what training a draft takes from sizes: tokens, FLOPs, hours, memory per accelerator, storage.

The counting is the usual one (Kaplan et al. 2020, arXiv 2001.08361): 2 N FLOPs per token forward, 4 N backward.
Attention scores are left out; they are small below some thousand tokens. Writing is limited by memory: each step reads
the weights once for all answers of a batch. `tests/evaluation/test_plan.py` compares the estimates with small runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from specdistill.data.soft_labels import bytes_per_token
from specdistill.evaluation.plan_config import PlanConfig, PlannedMachine, PlannedText
from specdistill.evaluation.plan_experts import PlannedExperts, planned_experts, weights_read
from specdistill.evaluation.to_json import to_json

_GIB = 2.0**30
_ADAMW_BYTES = 16
"""Per trained parameter: float32 weight, gradient, and AdamW's two moments; the forward pass may be bfloat16."""
_ACTIVATIONS = 23
"""Numbers kept for backward per token, layer and unit of width in a Llama: about 10.7 of the MLP's gate, up, activation
and product (2.67 wide each), 8 of attention with its rotated queries and keys (not its scores), 4 of two norms."""
_TILE_BYTES = 2.0**27
"""Most bytes of logits that the loss holds per model: float32 on a CPU or bfloat16 on a GPU."""
_USABLE_MEMORY = 0.92
"""Share of an accelerator's memory that a run may fill."""


@dataclass(frozen=True)
class Accelerator:
    """Numbers of the vendor's data sheet."""

    flops: float
    """bfloat16 FLOP/s, dense."""
    bandwidth: float
    """Bytes per second."""
    memory: float
    """Bytes."""


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


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Memory of one accelerator under one strategy."""

    bytes: float
    """Bytes while training."""
    fits: bool
    """Whether that leaves 8 % of the accelerator free."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Disk space."""

    answers: float
    """Bytes of the target's answers as ids."""
    labels: float
    """Bytes of stored labels over these answers."""
    label_bytes_per_token: float
    """Bytes of stored labels per token."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that `plan` estimates."""

    settings: PlanConfig
    """The configuration; its flat settings in JSON."""
    tokens: TokenCounts
    """Tokens by what is done with them."""
    steps: int
    """Optimiser steps."""
    flops: dict[str, float]
    """Stage -> FLOPs."""
    gpu_hours: dict[str, float]
    """Stage, and `all` -> accelerator hours, of all accelerators together."""
    wall_hours: float
    """Hours on all accelerators at once."""
    memory_per_gpu: dict[str, MemoryUse]
    """Strategy -> memory of one accelerator while training."""
    storage: Storage
    """Disk space."""
    assumptions: list[str]
    """Assumptions of the estimate, a sentence each."""
    experts: PlannedExperts | None = None
    """Present with --experts."""

    def to_json(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers."""
        return to_json(self)


def plan(config: PlanConfig) -> Plan:
    """Estimates everything. Needs no model and no network.

    Raises:
        ConfigError: A size can't be read.
    """
    gpu = accelerator(config.gpu, config.machine)
    tokens = token_counts(config.text, config.training.rows_per_token)
    answer_tokens = config.training.batch_size * config.text.answer_tokens
    hours = _gpu_hours(config, gpu, tokens)
    memory = memory_per_gpu(config)
    return Plan(
        settings=config,
        tokens=tokens,
        steps=math.ceil(tokens.trained / answer_tokens),
        flops=_flops(config, tokens),
        gpu_hours=hours | {"all": sum(hours.values())},
        wall_hours=sum(hours.values()) / config.gpus,
        memory_per_gpu={
            name: MemoryUse(bytes=size, fits=size <= gpu.memory * _USABLE_MEMORY) for name, size in memory.items()
        },
        storage=_storage(config, tokens.written),
        assumptions=_assumptions(config),
        experts=planned_experts(config) if config.models.experts else None,
    )


def accelerator(name: str, machine: PlannedMachine) -> Accelerator:
    """The data sheet's numbers, or the user's own where the name is `custom`."""
    if name == "custom":
        tflops, bandwidth, memory = machine.custom
        return Accelerator(tflops * 1e12, bandwidth * 1e9, memory * _GIB)
    return ACCELERATORS[name]


def token_counts(text: PlannedText, rows_per_token: float = 1.0) -> TokenCounts:
    """Counts tokens by what is done with them.

    Args:
        text: The text.
        rows_per_token: Rows that the draft reads in training for each token of an answer, guesses included.
    """
    answers = text.prompts * text.rollouts_per_prompt
    written = answers * text.answer_tokens
    trained = written * text.epochs
    own = trained * text.on_policy_fraction
    ratio = (text.prompt_tokens + text.answer_tokens) / text.answer_tokens
    # A stored answer is labelled once; the draft's own are new each time.
    fixed = written * min(1.0, text.epochs) if text.on_policy_fraction < 1 else 0.0
    return TokenCounts(
        written=float(written),
        read=float(answers * text.prompt_tokens),
        trained=float(trained),
        own=float(own),
        labelled=float((fixed + own) * ratio),
        trained_with_prompts=float(trained * (ratio - 1 + rows_per_token)),
    )


def _flops(config: PlanConfig, tokens: TokenCounts) -> dict[str, float]:
    return {
        # Each answer's prompt is read once by the writer.
        "target writes": 2 * config.target * (tokens.written + tokens.read),
        "target labels": 2 * config.target * tokens.labelled,
        "draft writes": 2 * config.draft * tokens.own,
        "draft trains": 6 * config.draft * tokens.trained_with_prompts,
    }


def _gpu_hours(config: PlanConfig, gpu: Accelerator, tokens: TokenCounts) -> dict[str, float]:
    flops, machine, weight_bytes = _flops(config, tokens), config.machine, config.models.weight_bytes
    read = weights_read(config, machine.decode_batch)
    seconds = {
        "target writes": _writing(machine, gpu, weight_bytes * read, tokens.written, config.target, tokens.read),
        "target labels": flops["target labels"] / (gpu.flops * machine.utilisation),
        "draft writes": _writing(machine, gpu, weight_bytes * config.draft, tokens.own, config.draft, 0),
        "draft trains": flops["draft trains"] / (gpu.flops * machine.utilisation),
    }
    return {stage: value / 3600 for stage, value in seconds.items()}


def _writing(
    machine: PlannedMachine, gpu: Accelerator, step_bytes: float, tokens: float, params: float, read: float
) -> float:
    """Accelerator seconds: a step reads its weights once, or computes for the batch, whichever takes longer."""
    step = max(
        step_bytes / (gpu.bandwidth * machine.decode_utilisation),
        2 * params * machine.decode_batch / (gpu.flops * machine.decode_utilisation),
    )
    return tokens / machine.decode_batch * step + 2 * params * read / (gpu.flops * machine.utilisation)


def _storage(config: PlanConfig, written: float) -> Storage:
    vocab_size = config.models.vocab_size
    per_token = bytes_per_token(config.training.label_top_k, vocab_size, "float16", with_draws=False)
    return Storage(
        answers=written * (2 if vocab_size <= 2**16 else 4),
        labels=per_token * written,
        label_bytes_per_token=per_token,
    )


def _assumptions(config: PlanConfig) -> list[str]:
    machine, lines = config.machine, []
    if config.models.experts:
        lines = ["every expert is as likely as any other; routers that prefer some read fewer weights at a time"]
    elif weights_read(config, machine.decode_batch) > config.target:
        lines = [
            f"writing {machine.decode_batch} answers at a time reads all of the mixture's weights; --experts and "
            "--experts-per-token tell better"
        ]
    return [
        *lines,
        f"{machine.utilisation:.0%} of peak FLOP/s in training and prefill, {machine.decode_utilisation:.0%} of peak "
        f"bandwidth while decoding {machine.decode_batch} answers at a time",
        "2 N FLOPs per token forward and 4 N backward; attention over long contexts comes on top",
        "weights spread evenly where they are sharded; communication overlaps with computation",
    ]


def memory_per_gpu(config: PlanConfig) -> dict[str, float]:
    """Bytes per accelerator while training, by where the weights are: the choices of `--shard`, `--target-memory`."""
    draft, target = config.draft * _ADAMW_BYTES, config.target_resident * config.models.weight_bytes
    working = working_bytes(config)
    if config.training.labels == "stored":
        shared = {"no target, --shard draft": draft / config.gpus + working} if config.gpus > 1 else {}
        return {"no target (--soft-labels)": draft + working} | shared
    shared = {
        "--shard draft": draft / config.gpus + target + working,
        "--shard target": draft + target / config.gpus + working,
        "--shard both": (draft + target) / config.gpus + working,
    }
    return {
        "whole (--shard none)": draft + target + working,
        # One accelerator shares with nobody.
        **(shared if config.gpus > 1 else {}),
        # One layer at a time visits; an eightieth is a layer of the largest models.
        "--target-memory offloaded": draft + target / 80 + working,
        "--target-memory int8": draft + target / 2 + working,
        "--target-memory nf4": draft + target / 3.6 + working,
        "served elsewhere (--target-server)": draft + working,
    }


def working_bytes(config: PlanConfig) -> float:
    """Bytes of one micro-batch: the draft's activations, and the target's own pass or the loss's two tiles."""
    models, text, answers = config.models, config.text, config.training.micro_batch_size
    layers, width = shape_of(config.draft)
    layers, width = models.draft_layers or layers, models.draft_width or width
    tokens, guesses = answers * text.prompt_tokens, answers * text.answer_tokens * config.training.rows_per_token
    # The target keeps nothing for a backward pass: a few times one layer's width.
    passing = 8 * answers * (text.prompt_tokens + text.answer_tokens) * shape_of(config.target)[1] * models.weight_bytes
    logits = guesses * models.vocab_size * models.weight_bytes
    return (tokens + guesses) * layers * width * _ACTIVATIONS * models.weight_bytes + max(
        passing, 2 * min(logits, _TILE_BYTES)
    )


def shape_of(params: float) -> tuple[float, float]:
    """(layers, width) of a transformer of that size, by the rule that families follow: 12 L w^2 parameters, w = 128 L.

    Models of less than some 300M parameters are mostly embeddings, and of another shape.
    """
    layers = (params / (12 * 128**2)) ** (1 / 3)
    return layers, 128 * layers
