"""Registers, spills and loads of a compiled kernel, read from its machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from triton import knobs


@dataclass(frozen=True)
class MachineCode:
    """Facts that limit a kernel's speed."""

    registers: int
    spills: int
    """Instructions that spill a register to memory or load it back."""
    load_widths: list[int]
    """Bytes per thread of each global load."""


def read_cubin(cubin: bytes) -> MachineCode:
    """Reads NVIDIA's binary with NVIDIA's own disassembler."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run_tool(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path))
        code = _run_tool(knobs.nvidia.nvdisasm.path, "-c", str(path))
    registers = re.search(r"REG:(\d+)", usage)
    assert registers is not None, usage
    widths = []
    for modifiers in re.findall(r"\bLDG((?:\.\w+)*)", code):
        width = re.search(r"\.(128|64|U16|S16|U8|S8)\b", modifiers)
        widths.append({"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}[width[1]] if width else 4)
    return MachineCode(int(registers[1]), len(re.findall(r"\b(?:LDL|STL)\b", code)), widths)


def read_amdgcn(text: str) -> MachineCode:
    """Reads AMD's assembly text."""
    registers, spills = re.search(r"\.vgpr_count:\s+(\d+)", text), re.search(r"\.vgpr_spill_count:\s+(\d+)", text)
    assert registers is not None and spills is not None
    size = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short_d16": 2, "ubyte": 1}
    names = re.findall(r"\b(?:global|buffer|flat)_load_(\w+?)(?:_hi|_lo)?\s", text)
    widths = [size.get(name, 2 if "short" in name else 4) for name in names]
    return MachineCode(int(registers[1]), int(spills[1]), widths)


def _run_tool(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
