"""What training a draft takes, reckoned from sizes: tokens, FLOPs, hours, memory per accelerator, storage.

The counting is the usual one (Kaplan et al. 2020, arXiv 2001.08361): 2 N FLOPs per token forward, 4 N backward,
attention scores left out, which are small below some thousand tokens. Writing is bound by memory: each step reads the
weights once for all answers of a batch. `tests/evaluation/test_plan.py` holds it against what small runs took.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from specdistill.data.soft_labels import bytes_per_token
from specdistill.evaluation.plan_config import PlanConfig

_GIB = 2.0**30
_ADAMW_BYTES = 16
"""Per trained parameter: float32 weight, gradient, and AdamW's two moments; the forward pass may be bfloat16."""
_ACTIVATIONS = 23
"""Numbers kept for backward per token, layer and unit of width in a Llama: about 10.7 of the MLP's gate, up, activation
and product (2.67 wide each), 8 of attention with its rotated queries and keys (not its scores), 4 of two norms."""
_TILE_BYTES = 2.0**27
"""At most, of the logits that the loss holds of each model: float32 on a CPU or bfloat16 on a GPU."""


@dataclass(frozen=True)
class Accelerator:
    """From the vendor's data sheet."""

    flops: float
    """bfloat16, dense, per second."""
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


def plan(config: PlanConfig) -> dict[str, Any]:
    """The whole reckoning, JSON-ready.

    Returns:
        `tokens`, `flops` and `hours` by stage (accelerator hours, all of them together), `wall_hours`, `memory` (bytes
        per accelerator by strategy, with `fits`), `storage` (bytes of stored labels and answers), `assumptions`.
    """
    gpu = accelerator(config)
    tokens = token_counts(config)
    flops = {
        # Each answer's prompt is read once by the writer.
        "target writes": 2 * config.target * (tokens["written"] + tokens["read"]),
        "target labels": 2 * config.target * tokens["labelled"],
        "draft writes": 2 * config.draft * tokens["own"],
        "draft trains": 6 * config.draft * tokens["trained_with_prompts"],
    }
    hours = {
        "target writes": _writing(config, gpu, tokens["written"], config.target, tokens["read"]),
        "target labels": flops["target labels"] / (gpu.flops * config.utilisation),
        "draft writes": _writing(config, gpu, tokens["own"], config.draft, 0),
        "draft trains": flops["draft trains"] / (gpu.flops * config.utilisation),
    }
    hours = {stage: seconds / 3600 for stage, seconds in hours.items()}
    memory = {name: {"bytes": size, "fits": size <= gpu.memory * 0.92} for name, size in memory_per_gpu(config).items()}
    each = bytes_per_token(config.label_top_k, config.vocab_size, "float16", with_draws=False)
    return {
        "settings": asdict(config),
        "tokens": tokens,
        "steps": math.ceil(tokens["trained"] / (config.batch_size * config.answer_tokens)),
        "flops": flops,
        "gpu_hours": hours | {"all": sum(hours.values())},
        "wall_hours": sum(hours.values()) / config.gpus,
        "memory_per_gpu": memory,
        "storage": {
            "answers": tokens["written"] * (2 if config.vocab_size <= 2**16 else 4),
            "labels": each * tokens["written"],
            "label_bytes_per_token": each,
        },
        "assumptions": [
            f"{config.utilisation:.0%} of peak FLOP/s in training and prefill, {config.decode_utilisation:.0%} of peak "
            f"bandwidth while decoding {config.decode_batch} answers at a time",
            "2 N FLOPs per token forward and 4 N backward; attention over long contexts comes on top",
            "weights spread evenly where they are sharded; communication overlaps with computation",
        ],
    }


def accelerator(config: PlanConfig) -> Accelerator:
    """The data sheet's numbers, or the user's own."""
    if config.gpu == "custom":
        return Accelerator(config.gpu_tflops * 1e12, config.gpu_bandwidth * 1e9, config.gpu_memory * _GIB)
    return ACCELERATORS[config.gpu]


def token_counts(config: PlanConfig) -> dict[str, float]:
    """Tokens by what is done with them.

    Returns:
        written: by the target. read: of prompts, while it writes. trained: answer tokens in the loss. own: written by
        the draft and trained on. labelled: read by the target for their distributions, prompts included.
        trained_with_prompts: passing through the draft.
    """
    answers = config.prompts * config.rollouts_per_prompt
    written = answers * config.answer_tokens
    trained = written * config.epochs
    own = trained * config.on_policy_fraction
    ratio = (config.prompt_tokens + config.answer_tokens) / config.answer_tokens
    # A stored answer is labelled once; the draft's own are new each time.
    fixed = written * min(1.0, config.epochs) if config.on_policy_fraction < 1 else 0.0
    return {
        "written": float(written),
        "read": float(answers * config.prompt_tokens),
        "trained": float(trained),
        "own": float(own),
        "labelled": float((fixed + own) * ratio),
        "trained_with_prompts": float(trained * ratio),
    }


def _writing(config: PlanConfig, gpu: Accelerator, tokens: float, params: float, read: float) -> float:
    """Accelerator seconds: a step reads all weights once, or computes for the batch, whichever takes longer."""
    step = max(
        params * weight_bytes(config) / (gpu.bandwidth * config.decode_utilisation),
        2 * params * config.decode_batch / (gpu.flops * config.decode_utilisation),
    )
    return tokens / config.decode_batch * step + 2 * params * read / (gpu.flops * config.utilisation)


def memory_per_gpu(config: PlanConfig) -> dict[str, float]:
    """Bytes per accelerator while training, by where the weights lie: what `--shard` and `--target-memory` choose."""
    draft, target = config.draft * _ADAMW_BYTES, config.target_resident * weight_bytes(config)
    working = working_bytes(config)
    if config.labels == "stored":
        return {
            "no target (--soft-labels)": draft + working,
            "no target, --shard draft": draft / config.gpus + working,
        }
    return {
        "whole (--shard none)": draft + target + working,
        "--shard draft": draft / config.gpus + target + working,
        "--shard target": draft + target / config.gpus + working,
        "--shard both": (draft + target) / config.gpus + working,
        # One layer at a time visits; an eightieth is a layer of the largest models.
        "--target-memory offloaded": draft + target / 80 + working,
        "--target-memory int8": draft + target / 2 + working,
        "--target-memory nf4": draft + target / 3.6 + working,
        "served elsewhere (--target-server)": draft + working,
    }


def working_bytes(config: PlanConfig) -> float:
    """Activations of one micro-batch in the draft; beside them the target's own pass, and then the loss's two tiles."""
    tokens = config.micro_batch_size * (config.prompt_tokens + config.answer_tokens)
    layers, width = shape_of(config.draft)
    layers, width = config.draft_layers or layers, config.draft_width or width
    each = weight_bytes(config)
    # The target keeps nothing for a backward pass: a few times one layer's width.
    passing = 8 * tokens * shape_of(config.target)[1] * each
    logits = config.micro_batch_size * config.answer_tokens * config.vocab_size * each
    return tokens * layers * width * _ACTIVATIONS * each + max(passing, 2 * min(logits, _TILE_BYTES))


def weight_bytes(config: PlanConfig) -> int:
    """Of one number in the target and in what passes through both models."""
    return 4 if config.dtype == "float32" else 2


def shape_of(params: float) -> tuple[float, float]:
    """(layers, width) of a transformer of that size, by the rule that families follow: 12 L w^2 parameters, w = 128 L.

    Models of less than some 300M parameters are mostly embeddings, and of another shape.
    """
    layers = (params / (12 * 128**2)) ** (1 / 3)
    return layers, 128 * layers
