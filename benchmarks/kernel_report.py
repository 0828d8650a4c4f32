"""What the compilers make of every kernel, for GPUs that this machine doesn't have.

    python benchmarks/kernel_report.py                 prints the table
    python benchmarks/kernel_report.py --check         also fails where a committed limit is exceeded (CI runs this)

Compiles each kernel ahead of time for sm_80, sm_90, sm_100 (NVIDIA) and gfx942 (AMD), and reads from the machine code:
registers, spills, shared memory, the width of loads in bytes, and bytes loaded per vocabulary entry. Needs triton and
no GPU; must not run under TRITON_INTERPRET. The last line of stdout is the table as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
# 3.10 flips the default; numbers should not depend on the version.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from specdistill_kernels.expected_acceptance import fused as acceptance
from specdistill_kernels.topk_membership import fused as membership

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class Case:
    """A kernel as its launcher runs it."""

    name: str
    kernel: Any
    signature: dict[str, str]
    block: int
    threads: int
    bytes_per_entry: float
    """Limit: bytes loaded per vocabulary entry, all passes."""
    aligned: bool = True
    """Whether rows start at multiples of 16 bytes; a vocabulary of 50257 does not."""


def acceptance_case(dtype: str, tokens: bool, aligned: bool = True) -> Case:
    size = {"bf16": 2, "fp32": 4}[dtype]
    return Case(
        f"expected_acceptance {dtype}{' +tokens' if tokens else ''}{'' if aligned else ' unaligned'}",
        acceptance.expected_acceptance_fwd_kernel,
        {
            "target_ptr": f"*{dtype}",
            "draft_ptr": f"*{dtype}",
            "token_ptr": "*i64" if tokens else "constexpr",
            "out_ptr": "*fp32",
            "argmax_ptr": "*i64",
            "target_stride": "i32",
            "draft_stride": "i32",
            "rows": "i32",
            "vocab": "i32",
            "BLOCK": "constexpr",
        },
        acceptance.BLOCK,
        acceptance.THREADS,
        2 * 2 * size,
        aligned,
    )


def membership_case(dtype: str, aligned: bool = True) -> Case:
    return Case(
        f"topk_membership {dtype}{'' if aligned else ' unaligned'}",
        membership.topk_membership_fwd_kernel,
        {
            "logits_ptr": f"*{dtype}",
            "token_ptr": "*i64",
            "out_ptr": "*i1",
            "stride": "i32",
            "vocab": "i32",
            "top_k": "i32",
            "BLOCK": "constexpr",
        },
        membership.BLOCK,
        membership.THREADS,
        {"bf16": 2, "fp32": 4}[dtype],
        aligned,
    )


CASES = [
    acceptance_case("bf16", tokens=False),
    acceptance_case("bf16", tokens=True),
    acceptance_case("fp32", tokens=True),
    acceptance_case("bf16", tokens=True, aligned=False),
    membership_case("bf16"),
    membership_case("fp32"),
    membership_case("bf16", aligned=False),
]


@dataclass(frozen=True)
class Row:
    """One kernel on one target."""

    kernel: str
    target: str
    registers: int
    spills: int
    shared: int
    widest_load: int
    """Bytes of the widest load instruction, per thread."""
    bytes_per_entry: float
    """Bytes that all passes together load per vocabulary entry."""


def compile_case(case: Case, target_name: str) -> Row:
    """Compiles for one target and reads the machine code."""
    constants: dict[str, Any] = {"BLOCK": case.block}
    if case.signature.get("token_ptr") == "constexpr":
        constants["token_ptr"] = None
    # What the JIT would find out from the arguments: pointers are 16-byte aligned, strides only sometimes.
    divisible = [
        index
        for index, (name, kind) in enumerate(case.signature.items())
        if kind.startswith("*") or (case.aligned and name in ("target_stride", "draft_stride", "stride", "vocab"))
    ]
    source = ASTSource(
        fn=case.kernel,
        signature=case.signature,
        constexprs=constants,
        attrs={(index,): [["tt.divisibility", 16]] for index in divisible},
    )
    warps = case.threads // TARGETS[target_name].warp_size
    compiled = triton.compile(source, target=TARGETS[target_name], options={"num_warps": warps})
    if "cubin" in compiled.asm:
        registers, spills, widths = read_cubin(compiled.asm["cubin"])
    else:
        registers, spills, widths = read_amdgcn(compiled.asm["amdgcn"])
    # In aligned kernels the passes load 16 bytes at a time; what is narrower fetches a token's own entry, once a row.
    passes = [width for width in widths if width >= 16] if case.aligned else widths
    return Row(
        case.name,
        target_name,
        registers,
        spills,
        compiled.metadata.shared,
        max(widths, default=0),
        sum(passes) * case.threads / case.block,
    )


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


def problems(case: Case, row: Row) -> list[str]:
    """What exceeds the limits: none may spill; aligned rows are loaded 16 bytes at a time, each entry once a pass."""
    found = []
    if row.spills:
        found.append(f"{row.spills} spills")
    if case.aligned and row.widest_load < 16:
        found.append(f"loads of {row.widest_load} bytes, expected 16")
    if case.aligned and row.bytes_per_entry > 1.05 * case.bytes_per_entry:
        found.append(f"{row.bytes_per_entry:.2f} bytes per entry, limit {case.bytes_per_entry:.2f}")
    return [f"{row.kernel} on {row.target}: {text}" for text in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    rows, bad = [], []
    print(f"{'kernel':40} {'target':8} {'regs':>5} {'spills':>7} {'shared':>7} {'load':>5} {'B/entry':>8}")
    for case in CASES:
        for target in TARGETS:
            row = compile_case(case, target)
            rows.append(row)
            bad += problems(case, row)
            print(
                f"{row.kernel:40} {row.target:8} {row.registers:5} {row.spills:7} {row.shared:7} {row.widest_load:5} "
                f"{row.bytes_per_entry:8.2f}",
                flush=True,
            )
    print(json.dumps([asdict(row) for row in rows]))
    if options.check and bad:
        sys.exit("\n".join(bad))


if __name__ == "__main__":
    main()
