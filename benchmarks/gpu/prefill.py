"""Reading a long prompt: our decoder's passes against transformers' own forward pass, time and memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.record import Record
from benchmarks.support.device_timing import PeakMemory
from benchmarks.support.random_models import LLAMA_8B, TINY_TARGET, random_model, random_prompts
from specdistill.decoding import Sampling, generate_plain
from specdistill.models import LanguageModel

REPEATS = 3


def ours(model: LanguageModel, prompts: list[list[int]]) -> list[int]:
    """The first token of each answer, by the decoder."""
    sampling = Sampling(temperature=0.0)
    written = generate_plain(model, prompts, sampling=sampling, max_new_tokens=1, seeds=[0] * len(prompts))
    return [generation.token_ids[0] for generation in written]


@torch.inference_mode()
def transformers(model: LanguageModel, prompts: list[list[int]]) -> list[int]:
    """The same by the library's own forward pass, with its KV cache."""
    ids = torch.tensor(prompts, device=model.device)
    return model.model(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()


def measured(run: Callable[[], list[int]], device: str) -> tuple[dict[str, Any], list[int]]:
    """Median time and largest memory, and the tokens."""
    seconds: list[float] = []
    tokens: list[int] = []
    with PeakMemory(device) as memory:
        for _ in range(REPEATS):
            start = time.perf_counter()
            # Tokens are read back, so the GPU is done.
            tokens = run()
            seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "each": seconds} | memory.to_json(), tokens


def compare(model: LanguageModel, prompts: list[list[int]], device: str) -> dict[str, Any]:
    """Both ways, in turn."""
    theirs, their_tokens = measured(lambda: transformers(model, prompts), device)
    own, our_tokens = measured(lambda: ours(model, prompts), device)
    return {
        "transformers": theirs,
        "specdistill": own,
        "seconds_over_transformers": own["seconds"] / theirs["seconds"],
        # In bfloat16 a near tie may fall either way.
        "same_first_tokens": sum(a == b for a, b in zip(our_tokens, their_tokens, strict=True)),
    }


def measure(record: Record) -> None:
    """Rows by length and batch."""
    shape = TINY_TARGET if record.dry else LLAMA_8B
    dtype = torch.float32 if record.dry else torch.bfloat16
    model = random_model(shape.config(), shape.name, device=record.device, dtype=dtype)
    sizes = ((64, 1), (40, 2)) if record.dry else ((32_000, 1), (8_000, 1), (2_000, 8), (512, 64))
    record.set("model", model.name)
    # Libraries' workspaces and compiled kernels are no part of the first row.
    compare(model, random_prompts(1, 32, model.vocab_size), record.device)
    for tokens, batch in sizes:
        prompts = random_prompts(batch, tokens, model.vocab_size)
        row = {"tokens": tokens, "batch": batch}
        record.attempt("rows", row, lambda prompts=prompts: compare(model, prompts, record.device))
