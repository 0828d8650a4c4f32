"""Tables of the kernels, from benchmarks/results."""

from __future__ import annotations

from benchmarks.ops.kernel_rows import BFLOAT16, KernelRow
from benchmarks.support.results import load_result
from benchmarks.tables.cells import table_row


def kernel_speed_table() -> str:
    report = load_result("kernel_speed.json")
    lines = [
        f"On one {report['device']} (torch {report['torch']}, triton {report['triton']}, vLLM {report['vllm']}; "
        f"{report['vocab']} ids, bfloat16, 4 draft tokens, captured graphs):",
        "",
        "| `verify` | batch | ours, ms | torch / ours | vLLM / ours | extra MiB: ours | torch | vLLM |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["verify"]:
        rule = ", ".join(
            [row["rule"], *(f"{name.replace('_', '-')} {value}" for name, value in row["filters"].items())]
        )
        times, memory = row["times_ours"], row["extra_mebibytes"]
        cells = [rule, row["batch"], f"{row['milliseconds']['specdistill']:.3f}"]
        cells += [f"{times[name]:.2f}" if name in times else "-" for name in ("torch", "vllm")]
        cells += [f"{memory[name]:.1f}" if name in memory else "-" for name in ("specdistill", "torch", "vllm")]
        lines.append(table_row(list(map(str, cells))))
    lines += [
        "",
        "| operation | ours, ms | torch / ours | Liger / ours | extra MiB: ours | torch | Liger |",
        "|---|---|---|---|---|---|---|",
    ]
    named = [(f"{row['operation']}, {row['rows']} rows", row) for row in report["scoring"]]
    named += [
        (f"`fused_divergence` {row['kind']}, {row['tokens']} tokens, forward and backward", row)
        for row in report["fused_divergence"]
    ]
    for name, row in named:
        times, memory = row["times_ours"], row["extra_mebibytes"]
        cells = [name, f"{row['milliseconds']['specdistill']:.2f}"]
        cells += [f"{times[peer]:.2f}" if peer in times else "-" for peer in ("torch", "liger")]
        cells += [f"{memory[peer]:.0f}" if peer in memory else "-" for peer in ("specdistill", "torch", "liger")]
        lines.append(table_row(cells))
    return "\n".join(lines)


def traffic_table() -> str:
    report = load_result("verify_traffic.json")
    lines = [
        f"{report['requests']} requests of {report['draft_tokens']} draft tokens, no filters; {report['vllm']}:",
        "",
        "| rule | ours: read | written | vLLM: read | written | vLLM / ours |",
        "|---|---|---|---|---|---|",
    ]
    for rule, row in report["bytes_per_entry"].items():
        cells = [f"{row[name][way]:.1f}" for name in ("specdistill", "vllm") for way in ("read", "written")]
        lines.append(f"| `{rule}` | " + " | ".join(cells) + f" | {row['vllm_over_ours']:.1f} |")
    return "\n".join(lines)


def kernel_report_table() -> str:
    """Each kernel by its largest numbers over its aligned bfloat16 cases."""
    rows = [KernelRow.from_json(row) for row in load_result("kernel_report.json")["rows"]]
    rows = [row for row in rows if row.case.dtype == BFLOAT16 and row.case.aligned]
    targets = list(dict.fromkeys(row.target for row in rows))
    lines = ["| kernel | " + " | ".join(targets) + " | bytes read per entry |", "|---" * (len(targets) + 2) + "|"]
    for kernel in dict.fromkeys(row.kernel for row in rows):
        own = [row for row in rows if row.kernel == kernel]
        cells = [_largest([row for row in own if row.target == target]) for target in targets]
        traffic = max(row.bytes_per_entry for row in own if row.target == targets[0])
        lines.append(f"| `{kernel}` | " + " | ".join(cells) + (f" | {traffic:g} |" if traffic else " | |"))
    return "\n".join(lines)


def _largest(rows: list[KernelRow]) -> str:
    """`registers / spills / shared memory`."""
    largest = (max(row.registers for row in rows), max(row.spills for row in rows), max(row.shared for row in rows))
    return " / ".join(map(str, largest))
