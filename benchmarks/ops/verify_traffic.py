"""Bytes that verification moves per entry of the target's logits: ours, and vLLM's path from the head to the tokens.

    python benchmarks/ops/verify_traffic.py --vllm .venv-vllm/lib/python3.11/site-packages/vllm      (a minute; no GPU)

Runs the Triton kernels of both in Triton's interpreter on the same logits and counts every byte that a lane loads or
stores, with masks and branches as they fall. vLLM copies bfloat16 logits into float32 before its kernels; that copy is
counted by the sizes of the tensors. bfloat16 logits, 2 requests of 4 draft tokens, 32768 ids, temperature 0.7 where a
rule samples, no filters. These are the bytes that the code asks for; a GPU's cache may serve some of them. Writes
benchmarks/results/verify_traffic.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.paths import TEST_SUPPORT

sys.path.insert(0, str(TEST_SUPPORT))

import torch
import triton
import triton.language as tl
import triton_interpreter
from triton.runtime import interpreter

import specdistill_kernels as ours
from benchmarks.ops.vllm_sources import vllm_kernels
from benchmarks.support.results import write_result

REQUESTS, DRAFTED, VOCAB, TEMPERATURE = 2, 4, 32768, 0.7
RULES = ("greedy", "argmax_draft", "sampled", "block")


class Meter:
    """Counts bytes of the loads and stores of every interpreted kernel."""

    def __init__(self) -> None:
        self.loaded = self.stored = 0
        builder = interpreter.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store

        def masked_load(this, pointers, mask, *rest):
            self.loaded += self._bytes(pointers, mask)
            return load(this, pointers, mask, *rest)

        def masked_store(this, pointers, value, mask, *rest):
            self.stored += self._bytes(pointers, mask)
            return store(this, pointers, value, mask, *rest)

        for name, counted in (("create_masked_load", masked_load), ("create_masked_store", masked_store)):
            setattr(builder, name, counted)

    def _bytes(self, pointers, mask) -> int:
        return int(mask.data.sum()) * pointers.get_element_ty().primitive_bitwidth // 8

    def per_entry(self, call: Callable[[], object]) -> dict[str, float]:
        self.loaded = self.stored = 0
        call()
        entries = REQUESTS * (DRAFTED + 1) * VOCAB
        return {"read": round(self.loaded / entries, 3), "written": round(self.stored / entries, 3)}


class Requests:
    """Logits of both models, similar enough that some tokens are accepted, and the other inputs of both sides."""

    def __init__(self, rule: str) -> None:
        torch.manual_seed(0)
        target = 6 * torch.randn(REQUESTS, DRAFTED + 1, VOCAB)
        draft = target[:, :-1] + 0.3 * torch.randn(REQUESTS, DRAFTED, VOCAB)
        self.rule = rule
        self.target, self.draft = target.flatten(0, 1).bfloat16(), draft.bfloat16()
        if rule in ("greedy", "argmax_draft"):
            self.ids = draft.argmax(-1)
        else:
            self.ids = torch.distributions.Categorical(logits=draft / TEMPERATURE).sample()
        self.temperature = torch.full((REQUESTS,), 0.0 if rule == "greedy" else TEMPERATURE)
        self.seeds, self.positions = torch.arange(REQUESTS), torch.full((REQUESTS,), 7)

    def ours(self) -> None:
        draft = None if self.rule in ("greedy", "argmax_draft") else self.draft.flatten(0, 1)
        cu = torch.arange(1, REQUESTS + 1) * DRAFTED
        ours.verify(
            self.target, self.ids.flatten(), cu, draft, rule=self.rule, seeds=self.seeds, positions=self.positions,
            temperature=self.temperature, backend="fused",
        )  # fmt: skip

    def vllm(self, kernels) -> None:
        rows, width = REQUESTS * (DRAFTED + 1), DRAFTED + 1
        request = torch.arange(REQUESTS, dtype=torch.int32)
        # It wants one more draft token in front of each request's first row, and doesn't read it.
        drafted = torch.cat([self.ids[:, :1], self.ids], 1).flatten().int()
        logits = self.target.float()
        requests = request.repeat_interleave(width)
        if self.rule != "greedy":
            kernels.apply_temperature(logits, requests, self.temperature)
        draft = None if self.rule in ("greedy", "argmax_draft") else self.draft
        kernels.reject(
            logits, draft, drafted, torch.arange(REQUESTS + 1, dtype=torch.int32) * width, torch.arange(rows), request,
            requests, torch.arange(width, dtype=torch.int32).repeat(REQUESTS), self.temperature, self.seeds, DRAFTED,
            use_block_verification=self.rule == "block",
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, required=True, help="folder site-packages/vllm")
    options = parser.parse_args()
    triton_interpreter.install()
    kernels = vllm_kernels(options.vllm, 100, types.SimpleNamespace(log1p=lambda x: tl.log(1 + x)))
    meter = Meter()
    version = next(options.vllm.parent.glob("vllm*.dist-info")).name.removesuffix(".dist-info")
    result: dict = {"triton": triton.__version__, "vllm": version, "requests": REQUESTS, "draft_tokens": DRAFTED}
    result |= {"vocab": VOCAB, "temperature": TEMPERATURE, "bytes_per_entry": {}}
    for rule in RULES:
        requests = Requests(rule)
        mine, theirs = meter.per_entry(requests.ours), meter.per_entry(lambda requests=requests: requests.vllm(kernels))
        # The copy to float32 is torch's.
        theirs = {"read": round(theirs["read"] + 2, 3), "written": round(theirs["written"] + 4, 3)}
        times = sum(theirs.values()) / sum(mine.values())
        result["bytes_per_entry"][rule] = {"specdistill": mine, "vllm": theirs, "vllm_over_ours": round(times, 2)}
        print(rule, json.dumps(result["bytes_per_entry"][rule]), flush=True)
    write_result("verify_traffic.json", result)


if __name__ == "__main__":
    main()
