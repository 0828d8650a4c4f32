"""Tables of acceptance, from benchmarks/results."""

from __future__ import annotations

from benchmarks.studies.bench_runs import DEPTHS, depth_row
from benchmarks.support.bench_report import BenchReport
from benchmarks.support.paths import main_study_result
from benchmarks.support.results import load_result
from benchmarks.tables.cells import interval_cell, table_row

ALPHA_COLUMNS = ("greedy", "sampled", "argmax_draft")


def alpha_table() -> str:
    lines = [
        "| rule | cut, untrained | distilled | paired difference | distilled, seed by seed |",
        "|---|---|---|---|---|",
    ]
    for rule, temperature in (("greedy", 0), ("sampled", 1), ("argmax_draft", 1)):
        file = "sampled.json" if temperature else "greedy.json"
        reports = [BenchReport.committed(main_study_result(seed, file)) for seed in range(3)]
        first = reports[0]
        cells = [f"`{rule}`, temperature {temperature}", interval_cell(first.compared_alpha[rule])]
        cells += [interval_cell(first.alpha[rule]), interval_cell(first.alpha_over_compared[rule], "+")]
        cells.append(" ".join(f"{report.alpha[rule]['mean']:.3f}" for report in reports))
        lines.append(table_row(cells))
    return "\n".join(lines)


def layers_table() -> str:
    choices = load_result("layer_choice.json")
    steps = [entry["step"] for entry in choices["even"]["heldout"]]
    lines = ["| layers kept | " + " | ".join(f"{step} steps" for step in steps) + " |", "|---" * (len(steps) + 1) + "|"]
    for name, choice in choices.items():
        cells = [f"{entry['heldout_alpha_greedy']:.3f}" for entry in choice["heldout"]]
        lines.append(table_row([f"{name} {choice['layers']}", *cells]))
    return "\n".join(lines)


def methods_table() -> str:
    study = load_result("methods.json")
    start = study["start"]
    lines = [
        "| method | `sampled` | `argmax_draft` | `greedy` | replaced | `sampled`, seed by seed |",
        "|---|---|---|---|---|---|",
    ]
    rules = ("sampled", "argmax_draft", "greedy")
    lines.append("| the start | " + " | ".join(interval_cell(start[rule]) for rule in rules) + " | | |")
    for name, row in study["rows"].items():
        cells = [interval_cell(row["over_start"][rule], "+") for rule in rules]
        replaced = "" if row["rejection_rate"] is None else f"{row['rejection_rate']:.2f}"
        seeds = _gains(row["alpha_by_seed"]["sampled"], [start["sampled"]["mean"]] * row["seeds"])
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {replaced} | {seeds} |")
    cells = [interval_cell(study["online_over_offline"][rule], "+") for rule in rules]
    lines.append("| online over offline (target-fkl minus seqkd) | " + " | ".join(cells) + " | | |")
    return "\n".join(lines)


def hard_depths_table() -> str:
    lines = [
        "| layers | `greedy` | `sampled` | `argmax_draft` | `sampled`, seed by seed | `sampled`, whole head |",
        "|---|---|---|---|---|---|",
    ]
    rows = load_result("methods.json")["depths"]
    for layers in DEPTHS:
        row = rows[depth_row(layers)]
        cells = [str(layers), *(interval_cell(row["alpha"][rule]) for rule in ALPHA_COLUMNS)]
        cells.append(" ".join(f"{mean:.3f}" for mean in row["alpha_by_seed"]["sampled"]))
        lines.append(table_row([*cells, interval_cell(row["alpha_whole_head"]["sampled"])]))
    return "\n".join(lines)


def _gains(seeds: list[float], starts: list[float]) -> str:
    return " ".join(f"{mean - start:+.3f}" for mean, start in zip(seeds, starts, strict=False))


def soft_labels_table() -> str:
    study = load_result("soft_labels.json")
    lines = [
        "| labels | bytes per token | gradient's cosine, mean (least) | `sampled` over the start "
        "| over the target in memory | `argmax_draft` over it |",
        "|---|---|---|---|---|---|",
        f"| the target in memory | | 1 | {interval_cell(study['online_over_start']['sampled'], '+')} | | |",
    ]
    for name, row in study["rows"].items():
        size = f"{row['bytes_per_token']:.0f}" if "bytes_per_token" in row else ""
        angle = f"{row['gradient']['mean']:.4f} ({row['gradient']['least']:.4f})"
        cells = [interval_cell(row["over_start"]["sampled"], "+")]
        cells += [interval_cell(row["over_online"][rule], "+") for rule in ("sampled", "argmax_draft")]
        lines.append(f"| {name} | {size} | {angle} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drifted_table() -> str:
    report = load_result("drifted.json")
    lines = [
        "| draft | `greedy` | `sampled` | `argmax_draft` | `sampled`, seed by seed | `sampled`, whole head "
        "| `sampled` over the stock draft |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        if "over_warm" in row:
            continue
        cells = [name, *(interval_cell(row["alpha"][rule]) for rule in ALPHA_COLUMNS)]
        cells.append(" ".join(f"{mean:.3f}" for mean in row.get("alpha_by_seed", {}).get("sampled", [])))
        cells.append(interval_cell(row["alpha_whole_head"]["sampled"]) if "alpha_whole_head" in row else "")
        cells.append(interval_cell(row["over_stock"]["sampled"], "+") if "over_stock" in row else "")
        lines.append(table_row(cells))
    return "\n".join(lines)


def drifted_methods_table() -> str:
    rows = load_result("drifted.json")["rows"]
    rules = ("sampled", "argmax_draft", "greedy")
    lines = ["| method | `sampled` | `argmax_draft` | `greedy` | `sampled`, seed by seed |", "|---|---|---|---|---|"]
    cells = [interval_cell(rows["warm-4"]["alpha"][rule]) for rule in rules]
    starts = rows["warm-4"]["alpha_by_seed"]["sampled"]
    lines.append("| the start | " + " | ".join(cells) + " | " + " ".join(f"{mean:.3f}" for mean in starts) + " |")
    for name, row in rows.items():
        if "over_warm" in row:
            cells = [interval_cell(row["over_warm"][rule], "+") for rule in rules]
            seeds = _gains(row["alpha_by_seed"]["sampled"], starts)
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {seeds} |")
    return "\n".join(lines)


def donor_table() -> str:
    rows = load_result("donor.json")["rows"]
    lines = [
        "| start | parameters per step | draft step | `sampled`, before | after | `sampled`, seed by seed "
        "| `greedy`, before | after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [name, f"{row['parameters_per_step'] / 1e6:.1f}M", f"{row['cost_ratio']:.2f}"]
        seeds = " ".join(f"{mean:.3f}" for mean in row.get("after_by_seed", {}).get("sampled", []))
        for rule in ("sampled", "greedy"):
            cells += [interval_cell(row["before"][rule]), interval_cell(row["after"][rule]) if "after" in row else ""]
            cells += [seeds] if rule == "sampled" else []
        lines.append(table_row(cells))
    for name, row in rows.items():
        if "beside" in row:
            when = "after" if "after_over_cut" in row else "before"
            gains = {rule: interval_cell(row[f"{when}_over_cut"][rule], "+") for rule in ("sampled", "greedy")}
            cells = ["", gains["sampled"], "", "", gains["greedy"]]
            if when == "before":
                cells = [gains["sampled"], "", "", gains["greedy"], ""]
            lines.append(table_row([f"{name} over {row['beside']}", "", "", *cells]))
    return "\n".join(lines)


def self_kinds_table() -> str:
    """Prompts that SmolLM2 wrote, beside the built-in ones."""
    prompts = load_result("self_prompts.json")["prompts"]
    counts, kinds = prompts["counts"], prompts["kinds"]
    words = {"truncated": "cut off", "duplicate": "repeated", "empty": "empty", "marked": "with special tokens"}
    dropped = ", ".join(f"{counts[reason]} {text}" for reason, text in words.items())
    lines = [
        f"`--prompts self:{counts['train']}`: {counts['draws']:,} draws, {prompts['usable']:.1%} usable "
        f"({counts['train']:,} to train on, {counts['heldout']:,} held out); dropped: {dropped}.",
        "",
        "| prompts | tokens, mean (median) | different first three words | " + " | ".join(kinds["self"]) + " |",
        "|---" * (3 + len(kinds["self"])) + "|",
    ]
    for name, text in (("of SmolLM2's own", "self"), ("built-in, for training", "builtin")):
        tokens, first = prompts["tokens"][text], prompts["distinct_first_three_words"][text]
        shares = [f"{share:.0%}" for share in kinds[text].values()]
        lines.append(table_row([name, f"{tokens['mean']:.0f} ({tokens['median']:.0f})", f"{first:.0%}", *shares]))
    return "\n".join(lines)


def self_alpha_table() -> str:
    """Alpha after training on the target's own prompts, against the built-in ones."""
    study = load_result("self_prompts.json")
    lines = ["| trained on | `greedy` | `sampled` | `argmax_draft` |", "|---|---|---|---|"]
    names = {"builtin": "answers to built-in prompts", "self": "answers to the target's own prompts"}
    for row, name in names.items():
        lines.append(table_row([name, *(interval_cell(study["rows"][row]["alpha"][rule]) for rule in ALPHA_COLUMNS)]))
    cells = [interval_cell(study["self_over_builtin"][rule], "+") for rule in ALPHA_COLUMNS]
    return "\n".join([*lines, table_row(["own minus built-in, paired", *cells])])
