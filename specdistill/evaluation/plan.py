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
from specdistill.evaluation.plan_config import PlanConfig, PlannedMachine
from specdistill.evaluation.plan_experts import PlannedExperts, planned_experts, weights_read
from specdistill.evaluation.plan_kinds import PlannedKind, planned_kinds
from specdistill.evaluation.plan_sizes import (
    ADAMW_BYTES,
    Accelerator,
    TokenCounts,
    accelerator,
    counts_of,
    largest_micro_batch,
    working_bytes,
)
from specdistill.evaluation.to_json import to_json


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Memory of one accelerator under one strategy."""

    bytes: float
    """Bytes while training."""
    fits: bool
    """Whether that leaves 8 % of the accelerator free."""
    largest_micro_batch: int | None
    """Largest --micro-batch-size, up to the planned one, with which it fits; null where none does."""


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
    kinds: dict[str, PlannedKind]
    """Kind of draft -> training it on the same text."""
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
    tokens = counts_of(config)
    answer_tokens = config.training.batch_size * config.text.answer_tokens
    hours = _gpu_hours(config, gpu, tokens)
    return Plan(
        settings=config,
        tokens=tokens,
        steps=math.ceil(tokens.trained / answer_tokens),
        flops=_flops(config, tokens),
        gpu_hours=hours | {"all": sum(hours.values())},
        wall_hours=sum(hours.values()) / config.gpus,
        memory_per_gpu={name: _memory_use(config, gpu, name, size) for name, size in memory_per_gpu(config).items()},
        storage=_storage(config, tokens.written),
        assumptions=_assumptions(config),
        kinds=planned_kinds(config, gpu),
        experts=planned_experts(config) if config.models.experts else None,
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
        "target labels": 3600 * gpu.hours(flops["target labels"], machine),
        "draft writes": _writing(machine, gpu, weight_bytes * config.draft, tokens.own, config.draft, 0),
        "draft trains": 3600 * gpu.hours(flops["draft trains"], machine),
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
        "an independent and a parallel draft read a state of each answer token, a head four of it and three of each "
        "prompt token; training keeps them up to 2 GiB and else computes them again in each epoch. Without the target, "
        "stored labels stand in for the first, and for a head its states on disk ('specdistill annotate --features')",
    ]


def _memory_use(config: PlanConfig, gpu: Accelerator, strategy: str, size: float) -> MemoryUse:
    largest = largest_micro_batch(config, gpu, lambda smaller: memory_per_gpu(smaller)[strategy])
    return MemoryUse(bytes=size, fits=gpu.holds(size), largest_micro_batch=largest)


def memory_per_gpu(config: PlanConfig) -> dict[str, float]:
    """Bytes per accelerator while training, by where the weights are: the choices of `--shard`, `--target-memory`."""
    draft, target = config.draft * ADAMW_BYTES, config.target_resident * config.models.weight_bytes
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
