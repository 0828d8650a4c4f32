"""Fills the tables of the READMEs and the docs from benchmarks/results, so that no number is typed by hand.

python benchmarks/readme_tables.py           writes them
python benchmarks/readme_tables.py --check   fails if one is out of date (a test runs this)
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from smollm2 import RESULTS

ROOT = Path(__file__).parents[1]


def load(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def spread(value: dict[str, Any], sign: str = "") -> str:
    low, high = value["ci95"]
    return f"{value['mean']:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def alpha_table() -> str:
    lines = ["| rule | cut, untrained | distilled | paired difference |", "|---|---|---|---|"]
    greedy, sampled = load("smollm2_greedy.json"), load("smollm2_sampled.json")
    rows = [("`greedy`, temperature 0", greedy, "greedy")]
    rows += [(f"`{rule}`, temperature 1", sampled, rule) for rule in ("sampled", "argmax_draft")]
    for label, report, rule in rows:
        compare = report["compare"]
        lines.append(
            f"| {label} | {spread(compare['alpha'][rule])} | {spread(report['acceptance']['alpha'][rule])} "
            f"| {spread(compare['difference'][rule], '+')} |"
        )
    return "\n".join(lines)


def speed_table() -> str:
    lines = [
        "| | temperature 0 | temperature 1 |",
        "|---|---|---|",
    ]
    reports = [load("smollm2_greedy.json"), load("smollm2_sampled.json")]

    def row(label: str, cell) -> None:
        lines.append(f"| {label} | " + " | ".join(cell(report) for report in reports) + " |")

    row("draft tokens per target call (chosen by bench)", lambda r: str(r["setup"]["num_draft_tokens"]))
    row("tokens per target call, measured", lambda r: spread(r["acceptance"]["mean_acceptance_length"]))
    row(
        "tokens per target call, predicted",
        lambda r: f"{r['acceptance']['predicted_mean_acceptance_length'][str(r['setup']['num_draft_tokens'])]:.3f}",
    )
    row("draft step, in target steps", lambda r: f"{r['economics']['cost_ratio']:.3f}")
    row(
        "checking the draft, in target steps",
        lambda r: f"{r['economics']['verify_cost'][str(r['setup']['num_draft_tokens'] + 1)]:.2f}",
    )
    row("speed-up, measured", lambda r: spread(r["latency"]["speedup"]))
    row("speed-up of a perfect draft", lambda r: f"{r['economics']['perfect_draft_speedup']:.2f}")
    row("verdict", lambda r: f"**{r['economics']['verdict']}**")
    return "\n".join(lines)


def layers_table() -> str:
    found = load("layer_choice.json")
    steps = [entry["step"] for entry in found["even"]["heldout"]]
    lines = ["| layers kept | " + " | ".join(f"{step} steps" for step in steps) + " |", "|---" * (len(steps) + 1) + "|"]
    for name, entry in found.items():
        cells = [f"{each['heldout_alpha_greedy']:.3f}" for each in entry["heldout"]]
        lines.append(f"| {name} {entry['layers']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def lossless_line() -> str:
    found = load("lossless.json")
    outcome = "identical in all of them" if found["identical"] else f"{len(found['differences'])} differences"
    return (
        f"{found['prompts']} prompts x draft lengths {found['draft_lengths'][0]} to {found['draft_lengths'][-1]}, "
        f"{found['tokens_per_length']:,} tokens each: {outcome}."
    )


def decoder_table() -> str:
    found = load("decoder_speed.json")
    lines = ["| tokens per second, greedy, float32 | ratio |", "|---|---|"]
    for label, key in (
        ("over transformers' assisted generation, 4 draft tokens, batch 1", "over_transformers"),
        ("batch of 8 over the same prompts one by one", "batch_8_over_sequential"),
        ("`auto` over the plain target, this draft", "auto_over_plain_draft"),
        ("`auto` over the plain target, a draft that is never right", "auto_over_plain_useless_draft"),
    ):
        lines.append(f"| {label} | {spread(found[key])} |")
    cells = {(each["weights"], each["threads"]): each for each in load("verify_cost.json")["cells"]}
    lines += [
        "",
        "| weights | plain step, 1 thread | checking 5 tokens, in plain steps: 1 thread | 2 threads "
        "| greedy output as without draft |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for label, kind in (("float32", "float32"), ("`--pack float16`", "float16"), ("`--pack int8`", "int8")):
        one, two = cells[kind, 1], cells[kind, 2]
        entry = found[kind]
        same = (
            f"{entry['greedy_identical_prompts']} of {entry['of_prompts']}"
            if "of_prompts" in entry
            else "all, see below"
        )
        lines.append(
            f"| {label} | {1000 * one['target_step_seconds']:.0f} ms | {one['verify_cost']['5']:.2f} "
            f"| {two['verify_cost']['5']:.2f} | {same} |"
        )
    return "\n".join(lines)


def divergence_line() -> str:
    found = load("divergence_cpu.json")
    ratios = ", ".join(f"`{kind}` {value:.2f}x" for kind, value in found["unfused_over_tiled"].items())
    tiled, unfused = (found["peak_mib"][name] for name in ("tiled", "unfused"))
    return (
        f"{ratios} as fast as plain torch, and {tiled:.0f} MiB instead of {unfused:.0f} MiB "
        f"({found['tokens']} tokens x {found['vocab']} ids)."
    )


def methods_table() -> str:
    found = load("methods.json")
    start = found["start"]
    lines = [
        "| method | `sampled` | `argmax_draft` | `greedy` | replaced |",
        "|---|---|---|---|---|",
    ]
    rules = ("sampled", "argmax_draft", "greedy")
    lines.append("| the start | " + " | ".join(spread(start[rule]) for rule in rules) + " | |")
    for name, row in found["rows"].items():
        cells = [spread(row["over_start"][rule], "+") for rule in rules]
        replaced = "" if row["rejection_rate"] is None else f"{row['rejection_rate']:.2f}"
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {replaced} |")
    cells = [spread(found["online_over_offline"][rule], "+") for rule in rules]
    lines.append("| online over offline (target-fkl minus seqkd) | " + " | ".join(cells) + " | |")
    return "\n".join(lines)


def training_table() -> str:
    found = load("training_step.json")
    lines = [
        "| | tokens/s | ours over it | peak memory | of that, not held before the step |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["on_policy"].items():
        over = row.get("specdistill_tokens_per_second_over_it")
        ours = "" if over is None else spread(over)
        memory = f"{row['peak_mib']:,} MiB | {row['peak_above_held_mib']:,} MiB"
        lines.append(f"| {name} | {row['tokens_per_second']:.1f} | {ours} | {memory} |")
    lines += [
        "",
        "An SKD step that trains on the hidden states of its own check takes "
        f"{spread(found['skd']['seconds_over_second_pass'])} of the time of one with a second target pass.",
    ]
    return "\n".join(lines)


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


def kernel_speed_table() -> str:
    report = load("kernel_speed.json")
    lines = [
        f"On one {report['device']} (torch {report['torch']}, triton {report['triton']}, vLLM {report['vllm']}; "
        f"{report['vocab']} ids, bfloat16, 4 draft tokens, captured graphs):",
        "",
        "| `verify` | batch | ours, ms | torch / ours | vLLM / ours | extra MiB: ours | torch | vLLM |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["verify"]:
        rule = row["rule"] + (", top-k 50, top-p 0.9" if row["filters"] else "")
        times, memory = row["times_ours"], row["extra_mebibytes"]
        cells = [rule, row["batch"], f"{row['milliseconds']['specdistill']:.3f}"]
        cells += [f"{times[name]:.2f}" if name in times else "-" for name in ("torch", "vllm")]
        cells += [f"{memory[name]:.1f}" if name in memory else "-" for name in ("specdistill", "torch", "vllm")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
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
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def engines_table() -> str:
    report = load("engines.json")
    lines = [
        f"{report['pair']}; {report['num_draft_tokens']} draft tokens, {report['max_new_tokens']} tokens at most, "
        "batch 1, one thread.",
        "",
        "| engine | temperature | accepts by | tokens per target call: counted | predicted | speed-up "
        "| a round, in target steps | greedy output as alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for temperature, rows in report["temperatures"].items():
        for name, row in rows.items():
            same = row["prompts"] - len(row["differences"])
            cells = [
                row["version"] + (", its verification mended" if name == "vllm-repaired" else ""),
                temperature,
                f"`{row['rule']}`",
                spread(row["mean_acceptance_length"]),
                f"{row['predicted_mean_acceptance_length']:.3f}",
                spread(row["speedup"]),
                f"{row['round_cost']:.2f}",
                f"{same} of {row['prompts']}" if float(temperature) == 0 else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drifted_table() -> str:
    report = load("drifted.json")
    lines = [
        "| draft | seeds | `greedy` | `sampled` | `argmax_draft` | `sampled`, whole head "
        "| `sampled` over the stock draft |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        cells = [name, str(row.get("seeds", 1))]
        cells += [spread(row["alpha"][rule]) for rule in ("greedy", "sampled", "argmax_draft")]
        cells.append(spread(row["alpha_whole_head"]["sampled"]) if "alpha_whole_head" in row else "")
        cells.append(spread(row["over_stock"]["sampled"], "+") if "over_stock" in row else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def drifted_speed_table() -> str:
    lines = [
        "| draft | weights | temperature | draft tokens | tokens per target call: measured | predicted "
        "| draft step | check | speed-up: measured | predicted | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in load("drifted.json")["bench"].items():
        draft, pack, temperature = name.rsplit("-", 2)
        gamma = str(row["num_draft_tokens"])
        cells = [draft, "float32" if pack == "none" else f"packed to {pack}", temperature, gamma]
        cells += [spread(row["mean_acceptance_length"]), f"{row['predicted_mean_acceptance_length'][gamma]:.3f}"]
        cells += [f"{row['cost_ratio']:.3f}", f"{row['verify_cost'][str(int(gamma) + 1)]:.2f}"]
        cells += [spread(row["speedup"]), f"{row['predicted_speedup'][gamma]:.2f}", f"**{row['verdict']}**"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def growth_table() -> str:
    report = load("growth.json")
    lines = ["| context | target step | draft step | check of 5 tokens, in steps there |", "|---|---|---|---|"]
    for context, row in report["context"].items():
        cells = [f"{row[name]:.2f}" for name in ("target_step", "draft_step", "check_of_5")]
        lines.append(f"| {context} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| batch | target step, per row | draft step, per row | check of 5 | perfect draft of 4, speed-up |",
        "|---|---|---|---|---|",
    ]
    for batch, row in report["batch"].items():
        names = ("target_step_per_row", "draft_step_per_row", "check_of_5", "perfect_draft_speedup_4")
        lines.append(f"| {batch} | " + " | ".join(f"{row[name]:.2f}" for name in names) + " |")
    heads = report["head"]
    lines += ["", "| ids in the draft's head | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines.append("| draft step, in target steps | " + " | ".join(f"{value:.3f}" for value in heads.values()) + " |")
    return "\n".join(lines)


TABLES = {
    "engines": engines_table,
    "soft-labels": soft_labels_table,
    "methods": methods_table,
    "training": training_table,
    "alpha": alpha_table,
    "speed": speed_table,
    "layers": layers_table,
    "lossless": lossless_line,
    "decoder": decoder_table,
    "divergence": divergence_line,
}


KERNEL_TABLES = {"kernel-speed": kernel_speed_table}
STUDY_TABLES = {
    "drifted": drifted_table,
    "drifted-speed": drifted_speed_table,
    "growth": growth_table,
}
PLACES: tuple[tuple[str, dict[str, Callable[[], str]]], ...] = (
    ("README.md", TABLES),
    ("kernels/README.md", KERNEL_TABLES),
    ("docs/serving.md", {"engines": engines_table}),
    ("docs/study.md", STUDY_TABLES),
)


def filled(path: Path, tables: dict[str, Callable[[], str]]) -> str:
    """The file's text with every marked block replaced."""
    text = path.read_text()
    for name, make in tables.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not block.search(text):
            sys.exit(f"{path} has no block <!-- {name} -->")
        text = block.sub(lambda match, make=make: match[1] + make() + "\n" + match[2], text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for name, tables in PLACES:
        path = ROOT / name
        wanted = filled(path, tables)
        if check and wanted != path.read_text():
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run `python benchmarks/readme_tables.py`")
        if not check:
            path.write_text(wanted)


if __name__ == "__main__":
    main()
