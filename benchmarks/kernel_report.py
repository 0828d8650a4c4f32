"""What the compilers make of every kernel, for GPUs that this machine doesn't have.

    python benchmarks/kernel_report.py                 prints the table, writes benchmarks/results/kernel_report.json
    python benchmarks/kernel_report.py --check         also fails where a committed limit is exceeded (CI runs this)

Runs every operation's own launcher on CPU tensors, records what it would launch, compiles that ahead of time for sm_80,
sm_90, sm_100 (NVIDIA) and gfx942 (AMD), and reads from the machine code: registers, spills, shared memory, the width of
loads in bytes, and bytes loaded per vocabulary entry. Needs triton and no GPU; must not run under TRITON_INTERPRET. The
last line of stdout is the table as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)
# 3.10 flips the default; numbers should not depend on the version.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from specdistill_kernels.expected_acceptance import fused as acceptance
from specdistill_kernels.filter_threshold import fused as threshold
from specdistill_kernels.fused_divergence import DIVERGENCES
from specdistill_kernels.fused_divergence import fused as divergence
from specdistill_kernels.noise import TARGET, TILE
from specdistill_kernels.sample import fused as sample
from specdistill_kernels.sampling_settings import SamplingSettings
from specdistill_kernels.topk_membership import fused as membership
from specdistill_kernels.verify import fused as verify

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
RESULT = Path(__file__).parent / "results/kernel_report.json"
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64", torch.int32: "i32",
          torch.bool: "i1"}  # fmt: skip


@dataclass(frozen=True)
class Streaming:
    """How a kernel that reads rows goes over the vocabulary."""

    entries: int
    """Columns that its code handles between two jumps back."""
    reads: int
    """How often that code may load an entry, all rows and passes together."""


# Kernels that are not here read a few numbers per row.
STREAMING = {
    "expected_acceptance_fwd_kernel": Streaming(acceptance.BLOCK, 4),
    "topk_membership_fwd_kernel": Streaming(membership.BLOCK, 1),
    # Log-sum-exps, sums and gradient of two rows (`ce` with a target has no use for the third pass of the target's).
    "divergence_rows_kernel": Streaming(divergence.BLOCK, 6),
    # Maximum, search by count, mass, search by mass. The searches run once per two bits; ptxas unrolls the others by 4.
    "filter_threshold_kernel": Streaming(threshold.BLOCK, 10),
    "sample_pick_kernel": Streaming(4 * TILE, 1),
    "verify_statistics_kernel": Streaming(4 * TILE, 1),
    "verify_masses_kernel": Streaming(TILE, 2),
    "verify_resample_kernel": Streaming(4 * TILE, 2),
}


@dataclass(frozen=True)
class Launch:
    """A kernel as its launcher called it."""

    case: str
    kernel: Any
    arguments: dict[str, Any]
    warps: int
    aligned: bool
    """Whether rows start at multiples of 16 bytes; those of a vocabulary of 50257 do not."""

    @property
    def streaming(self) -> Streaming | None:
        return STREAMING.get(self.kernel.fn.__name__)


def launches(case: str, aligned: bool, call: Callable[[], Any]) -> list[Launch]:
    """Runs launcher code on CPU tensors and records the kernels that it would launch, with their real arguments."""
    found = []

    def record(kernel, *args, grid, warmup, num_warps, **constants):
        names = [parameter.name for parameter in kernel.params]
        arguments = dict(zip(names, args, strict=False)) | constants
        found.append(Launch(case, kernel, arguments, num_warps, aligned))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return found


def logits(rows: int, dtype: torch.dtype, aligned: bool) -> Tensor:
    return torch.zeros(rows, 49152 if aligned else 50257, dtype=dtype)


def operation_cases() -> Iterator[Launch]:
    """Every operation in the dtypes and alignments that engines hold."""
    for dtype, aligned in ((torch.bfloat16, True), (torch.float32, True), (torch.bfloat16, False)):
        end = f"{DTYPES[dtype]}{'' if aligned else ' unaligned'}"
        for case, call in calls(dtype, aligned).items():
            yield from launches(f"{case} {end}", aligned, call)


def calls(dtype: torch.dtype, aligned: bool) -> dict[str, Callable[[], Any]]:
    """Launchers of two requests with two draft tokens each."""
    four, six = logits(4, dtype, aligned), logits(6, dtype, aligned)
    tokens, cu = torch.zeros(4, dtype=torch.int64), torch.tensor([2, 4])
    keys = [torch.zeros(2, dtype=torch.int64)] * 2
    settings = SamplingSettings(torch.ones(2), torch.full((2,), 40), torch.full((2,), 0.9), torch.full((2,), 0.1))
    per_row = SamplingSettings(*(each.repeat(2) for each in settings))
    row_keys = [tokens] * 3

    def verifying(rule: str, draft: Tensor | None, filtered: bool, given: bool = False) -> Callable[[], Any]:
        return lambda: verify.verify_fused(six, tokens, cu, draft, rule, keys, settings, 1.0, filtered, given)

    def diverging(kind: str, cap: float | None = None) -> Callable[[], Any]:
        arguments = (logits(4, dtype, aligned), four, tokens, torch.ones(4), kind, 0.5, 3.0, 0.7, cap, cap, True)
        return lambda: divergence.divergence_tile(*arguments)

    hidden, out = torch.zeros(4, 576, dtype=dtype), torch.zeros(four.shape[1], 576)
    found: dict[str, Callable[[], Any]] = {
        "fused_divergence lk_lambda": diverging("lk_lambda"),
        "fused_divergence head": lambda: divergence.add_weight_gradient(out, four, hidden),
        "expected_acceptance": lambda: acceptance.expected_acceptance_fused(four, four, tokens),
        "topk_membership": lambda: membership.topk_membership_fused(four, tokens, 25),
        "filter_threshold": lambda: threshold.filter_threshold_fused(four, per_row),
        "sample": lambda: sample.sample_fused(four, row_keys, TARGET, per_row, False, True),
        "verify sampled": verifying("sampled", four, True),
    }
    if dtype == torch.bfloat16 and aligned:
        found |= {
            "expected_acceptance no tokens": lambda: acceptance.expected_acceptance_fused(four, four, None),
            "sample greedy": lambda: sample.sample_fused(four, row_keys, TARGET, per_row, True, False),
            **{f"fused_divergence {kind}": diverging(kind) for kind in DIVERGENCES if kind != "lk_lambda"},
            "fused_divergence capped": diverging("fkl", 30.0),
            "verify greedy": verifying("greedy", None, False),
            "verify one-hot": verifying("argmax_draft", None, False),
            "verify block": verifying("block", four, True),
            # A number that is 1 becomes a constant, which is another program.
            "verify one request": lambda: verify.verify_fused(
                six[:3],
                tokens[:2],
                cu[:1],
                four[:2],
                "sampled",
                [key[:1] for key in keys],
                SamplingSettings(*(each[:1] for each in settings)),
                1.0,
                True,
                False,
            ),
            "verify block, probabilities": verifying("block", four.float(), True, True),
        }
    return found


@dataclass(frozen=True)
class Row:
    """One kernel on one target."""

    kernel: str
    """The case, a slash, and the kernel's name."""
    target: str
    registers: int
    spills: int
    shared: int
    widest_load: int
    """Bytes of the widest load instruction, per thread."""
    bytes_per_entry: float
    """Bytes that the kernel's code loads per vocabulary entry; 0 for kernels that don't go over the vocabulary."""


def signature_of(launch: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], list]]:
    """Types, constants and alignments by the JIT's own rules: 1 and None are constants, multiples of 16 are known."""
    signature, constants, aligned = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = f"*{DTYPES[value.dtype]}"
            aligned[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                aligned[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, aligned


def compile_launch(launch: Launch, target_name: str) -> Row:
    """Compiles for one target and reads the machine code."""
    signature, constants, aligned = signature_of(launch)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = TARGETS[target_name]
    # The launcher counted warps of 32; see backend.warps_of.
    warps = max(1, launch.warps * 32 // target.warp_size)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    if "cubin" in compiled.asm:
        registers, spills, widths = read_cubin(compiled.asm["cubin"])
    else:
        registers, spills, widths = read_amdgcn(compiled.asm["amdgcn"])
    # In aligned kernels rows are loaded 16 bytes at a time; what is narrower fetches a few numbers, once a row.
    passes = [width for width in widths if width >= 16] if launch.aligned else widths
    streaming = launch.streaming
    traffic = sum(passes) * warps * target.warp_size / streaming.entries if streaming else 0.0
    name = f"{launch.case} / {launch.kernel.fn.__name__.removesuffix('_kernel')}"
    return Row(name, target_name, registers, spills, compiled.metadata.shared, max(widths, default=0), traffic)


def read_cubin(cubin: bytes) -> tuple[int, int, list[int]]:
    """Registers, spill instructions and the widths of global loads, from NVIDIA's own disassembler."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _tool(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path))
        code = _tool(knobs.nvidia.nvdisasm.path, "-c", str(path))
    found = re.search(r"REG:(\d+)", usage)
    assert found is not None, usage
    widths = []
    for modifiers in re.findall(r"\bLDG((?:\.\w+)*)", code):
        width = re.search(r"\.(128|64|U16|S16|U8|S8)\b", modifiers)
        widths.append({"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}[width[1]] if width else 4)
    return int(found[1]), len(re.findall(r"\b(?:LDL|STL)\b", code)), widths


def read_amdgcn(text: str) -> tuple[int, int, list[int]]:
    """The same from AMD's assembly text."""
    registers, spills = re.search(r"\.vgpr_count:\s+(\d+)", text), re.search(r"\.vgpr_spill_count:\s+(\d+)", text)
    assert registers is not None and spills is not None
    size = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short_d16": 2, "ubyte": 1}
    names = re.findall(r"\b(?:global|buffer|flat)_load_(\w+?)(?:_hi|_lo)?\s", text)
    return int(registers[1]), int(spills[1]), [size.get(name, 2 if "short" in name else 4) for name in names]


def _tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def problems(launch: Launch, row: Row) -> list[str]:
    """What exceeds the limits: none may spill; aligned rows are loaded 16 bytes at a time, each entry once a pass."""
    found = []
    if row.spills:
        found.append(f"{row.spills} spills")
    streaming = launch.streaming
    if launch.aligned and streaming is not None:
        rows = launch.arguments.get("logits_ptr", launch.arguments.get("draft_ptr"))
        assert rows is not None
        limit = streaming.reads * rows.element_size()
        if row.widest_load < 16:
            found.append(f"loads of {row.widest_load} bytes, expected 16")
        if row.bytes_per_entry > 1.05 * limit:
            found.append(f"{row.bytes_per_entry:.2f} bytes per entry, limit {limit:.2f}")
    return [f"{row.kernel} on {row.target}: {text}" for text in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    rows, bad = [], []
    print(f"{'kernel':62} {'target':8} {'regs':>5} {'spills':>7} {'shared':>7} {'load':>5} {'B/entry':>8}")
    seen = set()
    for launch in operation_cases():
        # One operation may launch a kernel twice alike.
        key = (launch.case, launch.kernel.fn.__name__, str(signature_of(launch)))
        if key in seen or options.only not in launch.case:
            continue
        seen.add(key)
        for target in TARGETS:
            row = compile_launch(launch, target)
            rows.append(row)
            bad += problems(launch, row)
            print(
                f"{row.kernel:62} {row.target:8} {row.registers:5} {row.spills:7} {row.shared:7} {row.widest_load:5} "
                f"{row.bytes_per_entry:8.2f}",
                flush=True,
            )
    print(json.dumps([asdict(row) for row in rows]))
    if options.check and bad:
        sys.exit("\n".join(bad))
    if not options.check and not options.only:
        lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
        RESULT.write_text(f'{{"triton": "{triton.__version__}", "rows": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
