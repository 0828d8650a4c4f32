"""One row of the kernel report: a compiled kernel on one GPU. Needs neither torch nor triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BFLOAT16 = "bf16"


@dataclass(frozen=True)
class Case:
    """A launch of an operation with one kind of logits."""

    operation: str
    dtype: str
    aligned: bool = True
    """Whether rows start at multiples of 16 bytes; those of a vocabulary of 50257 do not."""

    @property
    def name(self) -> str:
        """`operation dtype`, followed by `unaligned` where rows are."""
        return f"{self.operation} {self.dtype}{'' if self.aligned else ' unaligned'}"

    @classmethod
    def from_name(cls, name: str) -> Case:
        """Inverse of `name`."""
        aligned_name = name.removesuffix(" unaligned")
        operation, _, dtype = aligned_name.rpartition(" ")
        return cls(operation, dtype, aligned_name == name)


@dataclass(frozen=True)
class KernelRow:
    """One kernel of one case on one target."""

    case: Case
    kernel: str
    target: str
    registers: int
    spills: int
    shared: int
    widest_load: int
    """Bytes of the widest load instruction, per thread."""
    bytes_per_entry: float
    """Bytes that the kernel's code loads per vocabulary entry; 0 for kernels that don't go over the vocabulary."""

    @property
    def name(self) -> str:
        """The case and the kernel, as reports name them."""
        return f"{self.case.name} / {self.kernel}"

    def to_json(self) -> dict[str, Any]:
        """The row of benchmarks/results/kernel_report.json."""
        return {
            "kernel": self.name,
            "target": self.target,
            "registers": self.registers,
            "spills": self.spills,
            "shared": self.shared,
            "widest_load": self.widest_load,
            "bytes_per_entry": self.bytes_per_entry,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> KernelRow:
        """Inverse of `to_json`."""
        case, _, kernel = row["kernel"].partition(" / ")
        numbers = {key: value for key, value in row.items() if key != "kernel"}
        return cls(Case.from_name(case), kernel, **numbers)
