"""Registers, spills and loads of every kernel as the compilers make it, for GPUs that this machine doesn't have.

    python benchmarks/ops/kernel_report.py             prints the table, writes benchmarks/results/kernel_report.json
    python benchmarks/ops/kernel_report.py --check     fails where a committed limit is exceeded (CI runs this)

Runs every operation's own launcher on CPU tensors, records what it would launch, compiles that ahead of time for sm_80,
sm_90, sm_100 (NVIDIA) and gfx942 (AMD), and reads from the machine code: registers, spills, shared memory, the width of
loads in bytes, and bytes loaded per vocabulary entry. Needs triton and no GPU; must not run under TRITON_INTERPRET. The
last line of stdout is the table as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
# 3.10 flips the default; numbers should not depend on the version.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.ops.kernel_launches import DTYPES, Launch, all_launches
from benchmarks.ops.kernel_rows import KernelRow
from benchmarks.ops.machine_code import read_amdgcn, read_cubin
from benchmarks.support.paths import RESULTS

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

ROWS = ("logits_ptr", "draft_ptr", "target_ptr")
"""Arguments that are the rows which a kernel goes over."""


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


def compile_launch(launch: Launch, target_name: str) -> KernelRow:
    """Compiles for one target and reads the machine code."""
    signature, constants, aligned = signature_of(launch)
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = TARGETS[target_name]
    # The launcher counted warps of 32; see backend.warps_of.
    warps = max(1, launch.warps * 32 // target.warp_size)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    code = read_cubin(compiled.asm["cubin"]) if "cubin" in compiled.asm else read_amdgcn(compiled.asm["amdgcn"])
    # In aligned kernels rows are loaded 16 bytes at a time; narrower loads fetch a few numbers, once a row.
    row_loads = [width for width in code.load_widths if width >= 16 or not launch.case.aligned]
    streaming = launch.streaming
    traffic = sum(row_loads) * warps * target.warp_size / streaming.entries if streaming else 0.0
    return KernelRow(
        case=launch.case,
        kernel=launch.kernel_name.removesuffix("_kernel"),
        target=target_name,
        registers=code.registers,
        spills=code.spills,
        shared=compiled.metadata.shared,
        widest_load=max(code.load_widths, default=0),
        bytes_per_entry=traffic,
    )


def problems(launch: Launch, row: KernelRow) -> list[str]:
    """Limits that are exceeded: no spills, 16-byte loads where rows are aligned, each entry loaded once a pass."""
    exceeded = []
    if row.spills:
        exceeded.append(f"{row.spills} spills")
    streaming = launch.streaming
    if launch.case.aligned and streaming is not None:
        rows = next(rows for rows in map(launch.arguments.get, ROWS) if rows is not None)
        limit = streaming.reads * rows.element_size()
        if row.widest_load < 16:
            exceeded.append(f"loads of {row.widest_load} bytes, expected 16")
        if row.bytes_per_entry > 1.05 * limit:
            exceeded.append(f"{row.bytes_per_entry:.2f} bytes per entry, limit {limit:.2f}")
    return [f"{row.name} on {row.target}: {text}" for text in exceeded]


def distinct_launches(case_filter: str) -> Iterator[Launch]:
    """Launches of the chosen cases, each program once: an operation may launch a kernel twice with equal arguments."""
    seen = set()
    for launch in all_launches():
        program = (launch.case, launch.kernel_name, str(signature_of(launch)))
        if program not in seen and case_filter in launch.case.name:
            seen.add(program)
            yield launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where a limit is exceeded; write nothing")
    parser.add_argument("--only", default="", help="cases whose name contains this; write nothing")
    options = parser.parse_args()
    rows, exceeded = [], []
    print(f"{'kernel':62} {'target':8} {'regs':>5} {'spills':>7} {'shared':>7} {'load':>5} {'B/entry':>8}")
    for launch in distinct_launches(options.only):
        for target in TARGETS:
            row = compile_launch(launch, target)
            rows.append(row)
            exceeded += problems(launch, row)
            print(
                f"{row.name:62} {row.target:8} {row.registers:5} {row.spills:7} {row.shared:7} {row.widest_load:5} "
                f"{row.bytes_per_entry:8.2f}",
                flush=True,
            )
    print(json.dumps([row.to_json() for row in rows]))
    if options.check and exceeded:
        sys.exit("\n".join(exceeded))
    if not options.check and not options.only:
        lines = ",\n".join(json.dumps(row.to_json()) for row in rows)
        text = f'{{"triton": "{triton.__version__}", "rows": [\n{lines}\n]}}\n'
        (RESULTS / "kernel_report.json").write_text(text)


if __name__ == "__main__":
    main()
