"""Tables of acceptance, from benchmarks/results."""

from __future__ import annotations

from smollm2 import kept_as
from table_cells import load, spread

ALPHA_COLUMNS = ("greedy", "sampled", "argmax_draft")


def alpha_table() -> str:
    lines = [
        "| rule | cut, untrained | distilled | paired difference | distilled, seed by seed |",
        "|---|---|---|---|---|",
    ]
    for rule, temperature in (("greedy", 0), ("sampled", 1), ("argmax_draft", 1)):
        reports = [load(kept_as(seed, "sampled.json" if temperature else "greedy.json")) for seed in range(3)]
        alphas = [report["acceptance"]["alpha"][rule] for report in reports]
        compare = reports[0]["compare"]
        cells = [f"`{rule}`, temperature {temperature}", spread(compare["alpha"][rule]), spread(alphas[0])]
        cells += [spread(compare["difference"][rule], "+"), " ".join(f"{alpha['mean']:.3f}" for alpha in alphas)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def layers_table() -> str:
    found = load("layer_choice.json")
    steps = [entry["step"] for entry in found["even"]["heldout"]]
    lines = ["| layers kept | " + " | ".join(f"{step} steps" for step in steps) + " |", "|---" * (len(steps) + 1) + "|"]
    for name, entry in found.items():
        cells = [f"{each['heldout_alpha_greedy']:.3f}" for each in entry["heldout"]]
        lines.append(f"| {name} {entry['layers']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def methods_table() -> str:
    found = load("methods.json")
    start = found["start"]
    lines = [
        "| method | `sampled` | `argmax_draft` | `greedy` | replaced | `sampled`, seed by seed |",
        "|---|---|---|---|---|---|",
    ]
    rules = ("sampled", "argmax_draft", "greedy")
    lines.append("| the start | " + " | ".join(spread(start[rule]) for rule in rules) + " | | |")
    for name, row in found["rows"].items():
        cells = [spread(row["over_start"][rule], "+") for rule in rules]
        replaced = "" if row["rejection_rate"] is None else f"{row['rejection_rate']:.2f}"
        seeds = _gains(row["alpha_by_seed"]["sampled"], [start["sampled"]["mean"]] * row["seeds"])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {replaced} | {seeds} |")
    cells = [spread(found["online_over_offline"][rule], "+") for rule in rules]
    lines.append("| online over offline (target-fkl minus seqkd) | " + " | ".join(cells) + " | | |")
    return "\n".join(lines)


def hard_depths_table() -> str:
    lines = [
        "| layers | `greedy` | `sampled` | `argmax_draft` | `sampled`, seed by seed | `sampled`, whole head |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in load("methods.json")["depths"].items():
        cells = [name.removeprefix("depth-"), *(spread(row["alpha"][rule]) for rule in ALPHA_COLUMNS)]
        cells.append(" ".join(f"{mean:.3f}" for mean in row["alpha_by_seed"]["sampled"]))
        lines.append("| " + " | ".join([*cells, spread(row["alpha_whole_head"]["sampled"])]) + " |")
    return "\n".join(lines)


def _gains(seeds: list[float], starts: list[float]) -> str:
    return " ".join(f"{mean - start:+.3f}" for mean, start in zip(seeds, starts, strict=False))


def soft_labels_table() -> str:
    found = load("soft_labels.json")
    lines = [
        "| labels | bytes per token | gradient's cosine, mean (least) | `sampled` over the start "
        "| over the target in memory | `argmax_draft` over it |",
        "|---|---|---|---|---|---|",
        f"| the target in memory | | 1 | {spread(found['online_over_start']['sampled'], '+')} | | |",
    ]
    for name, row in found["rows"].items():
        size = f"{row['bytes_per_token']:.0f}" if "bytes_per_token" in row else ""
        angle = f"{row['gradient']['mean']:.4f} ({row['gradient']['least']:.4f})"
        cells = [spread(row["over_start"]["sampled"], "+")]
        cells += [spread(row["over_online"][rule], "+") for rule in ("sampled", "argmax_draft")]
        lines.append(f"| {name} | {size} | {angle} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drifted_table() -> str:
    report = load("drifted.json")
    lines = [
        "| draft | `greedy` | `sampled` | `argmax_draft` | `sampled`, seed by seed | `sampled`, whole head "
        "| `sampled` over the stock draft |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        if "over_warm" in row:
            continue
        cells = [name, *(spread(row["alpha"][rule]) for rule in ALPHA_COLUMNS)]
        cells.append(" ".join(f"{mean:.3f}" for mean in row.get("alpha_by_seed", {}).get("sampled", [])))
        cells.append(spread(row["alpha_whole_head"]["sampled"]) if "alpha_whole_head" in row else "")
        cells.append(spread(row["over_stock"]["sampled"], "+") if "over_stock" in row else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drifted_methods_table() -> str:
    rows = load("drifted.json")["rows"]
    rules = ("sampled", "argmax_draft", "greedy")
    lines = ["| method | `sampled` | `argmax_draft` | `greedy` | `sampled`, seed by seed |", "|---|---|---|---|---|"]
    cells = [spread(rows["warm-4"]["alpha"][rule]) for rule in rules]
    starts = rows["warm-4"]["alpha_by_seed"]["sampled"]
    lines.append("| the start | " + " | ".join(cells) + " | " + " ".join(f"{mean:.3f}" for mean in starts) + " |")
    for name, row in rows.items():
        if "over_warm" in row:
            cells = [spread(row["over_warm"][rule], "+") for rule in rules]
            seeds = _gains(row["alpha_by_seed"]["sampled"], starts)
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {seeds} |")
    return "\n".join(lines)
