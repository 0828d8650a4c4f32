"""The pair, the prompts and the clock that training steps of ours and of TRL share."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Any

import torch

from benchmarks.support.device_timing import PeakMemory
from benchmarks.support.paths import TEST_SUPPORT
from benchmarks.support.random_models import LLAMA_1B, LLAMA_8B, TINY_DRAFT, TINY_TARGET, random_model
from specdistill.data.prompts import Prompt
from specdistill.models import LanguageModel, ModelPair

sys.path.insert(0, str(TEST_SUPPORT))
from tiny_models import make_tokenizer

WARMUP_STEPS = 1


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the steps."""

    prompt: int = 256
    """Words of each prompt, which are tokens."""
    new: int = 64
    """Tokens of each answer."""
    steps: int = 3
    """Steps that count."""


TINY = Sizes(prompt=12, new=8, steps=1)


def make_pair(device: str) -> ModelPair:
    """An 8B target in bfloat16 and a 1B draft whose weights are float32, as `train-draft` holds them; on a CPU tiny.

    The tokenizer knows words and the template of chats, so that TRL can ask; most ids of the models lie beyond it.
    """
    target, draft = (TINY_TARGET, TINY_DRAFT) if device == "cpu" else (LLAMA_8B, LLAMA_1B)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    tokenizer = make_tokenizer(first_word="w0")
    shared: dict[str, Any] = {"device": device, "tokenizer": tokenizer}
    models = (
        random_model(target.config(), target.name, dtype=dtype, **shared),
        random_model(draft.config(), draft.name, dtype=torch.float32, **shared),
    )
    models[1].model.requires_grad_(True)
    return ModelPair(*models)


def make_prompts(sizes: Sizes, count: int = 64) -> list[Prompt]:
    """Prompts of as many words each, all different."""
    texts = [" ".join(f"w{(number + 7 * place) % 60}" for place in range(sizes.prompt)) for number in range(count)]
    return [Prompt(f"p{number}", ({"role": "user", "content": text},)) for number, text in enumerate(texts)]


class Steps:
    """Times steps and their memory; warm-up steps don't count."""

    def __init__(self, device: str) -> None:
        self.tokens = 0
        self._device = device
        self._rows: list[dict[str, Any]] = []

    def begin(self) -> None:
        """Called before each step."""
        self._memory = PeakMemory(self._device)
        self._memory.__enter__()
        self.tokens, self._start = 0, time.perf_counter()

    def end(self) -> None:
        """Called after each step."""
        self._memory.__exit__()
        seconds = time.perf_counter() - self._start
        self._rows.append({"seconds": seconds, "tokens": self.tokens, **self._memory.to_json()})

    def result(self) -> dict[str, Any]:
        """Speed and memory of the steps that count."""
        rows = self._rows[WARMUP_STEPS:]
        seconds, tokens = (sum(row[name] for row in rows) for name in ("seconds", "tokens"))
        largest = {name: max(row[name] for row in rows) for name in ("held_mib", "peak_mib", "extra_mib")}
        return {"tokens_per_second": tokens / seconds, "seconds_per_step": seconds / len(rows), **largest, "each": rows}


def describe(model: LanguageModel) -> str:
    """Name and dtype of a model."""
    return f"{model.name}, {str(model.model.dtype).removeprefix('torch.')}"
