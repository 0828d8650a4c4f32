"""Tables of speed and memory, from benchmarks/results."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.studies.bench_runs import BenchRun, present_runs
from benchmarks.support.bench_report import BenchReport
from benchmarks.support.results import load_result
from benchmarks.tables.cells import interval_cell, range_cell, table_row

CONTESTANTS = ("specdistill", "specdistill-packed", "specdistill-trimmed")
"""Our contestants in decoder_peers.json, in the order of the columns."""
PEERS = ("transformers", "flashspec")
REPAIRED_VLLM = "vllm-repaired"
"""The row of engines.json whose vLLM was repaired."""


def speed_table() -> str:
    lines = [
        "| | temperature 0 | temperature 1 |",
        "|---|---|---|",
    ]
    reports = [BenchReport.committed("smollm2_greedy.json"), BenchReport.committed("smollm2_sampled.json")]

    def predicted_length(report: BenchReport) -> float:
        return report.predicted_mean_acceptance_length[str(report.num_draft_tokens)]

    def check_cost(report: BenchReport) -> float:
        return report.verify_cost[str(report.num_draft_tokens + 1)]

    rows: dict[str, Callable[[BenchReport], str]] = {
        "draft tokens per target call (chosen by bench)": lambda report: str(report.num_draft_tokens),
        "tokens per target call, measured": lambda report: interval_cell(report.mean_acceptance_length),
        "tokens per target call, predicted": lambda report: f"{predicted_length(report):.3f}",
        "draft step, in target steps": lambda report: f"{report.cost_ratio:.3f}",
        "checking the draft, in target steps": lambda report: f"{check_cost(report):.2f}",
        "speed-up, measured": lambda report: interval_cell(report.speedup),
        "speed-up of a perfect draft at its best length": lambda report: f"{report.perfect_draft_speedup:.2f}",
        "verdict": lambda report: f"**{report.verdict}**",
    }
    lines += [table_row([label, *map(cell, reports)]) for label, cell in rows.items()]
    return "\n".join(lines)


def lossless_line(file: str = "lossless.json") -> str:
    result = load_result(file)
    outcome = "identical in all of them" if result["identical"] else f"{len(result['differences'])} differences"
    return (
        f"{result['prompts']} prompts x draft lengths {result['draft_lengths'][0]} to {result['draft_lengths'][-1]}, "
        f"{result['tokens_per_length']:,} tokens each: {outcome}."
    )


def decoder_table() -> str:
    result = load_result("decoder_speed.json")
    lines = ["| tokens per second, greedy, float32 | ratio |", "|---|---|"]
    for label, key in (
        ("`auto` over the plain target, this draft", "auto_over_plain_draft"),
        ("`auto` over the plain target, a draft that is never right", "auto_over_plain_useless_draft"),
    ):
        lines.append(f"| {label} | {interval_cell(result[key])} |")
    cells = {(cell["weights"], cell["threads"]): cell for cell in load_result("verify_cost.json")["cells"]}
    lines += [
        "",
        "| weights | plain step, 1 thread | checking 5 tokens, in plain steps: 1 thread | 2 threads "
        "| greedy output as without draft |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for label, kind in (("float32", "float32"), ("`--pack float16`", "float16"), ("`--pack int8`", "int8")):
        one, two = cells[kind, 1], cells[kind, 2]
        entry = result[kind]
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


def training_table() -> str:
    result = load_result("training_step.json")
    lines = [
        "| | tokens/s | ours over it | peak memory | of that, not held before the step |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["on_policy"].items():
        over = row.get("specdistill_tokens_per_second_over_it")
        ours = "" if over is None else interval_cell(over)
        memory = f"{row['peak_mib']:,} MiB | {row['peak_above_held_mib']:,} MiB"
        lines.append(f"| {name} | {row['tokens_per_second']:.1f} | {ours} | {memory} |")
    lines += [
        "",
        "An SKD step that trains on the hidden states of its own check takes "
        f"{interval_cell(result['skd']['seconds_over_second_pass'])} of the time of one with a second target pass.",
    ]
    return "\n".join(lines)


def packed_step_table() -> str:
    result = load_result("packed_step.json")
    lines = [
        "| text | texts of a step | padding | tokens/s | over padded | memory above what is held |",
        "|---|---|---|---|---|---|",
    ]
    for kind in ("fresh", "known"):
        for name, row in result[f"{kind} text"].items():
            over = "" if name == "padded" else interval_cell(row["over_padded"], places=2)
            speed, memory = f"{row['tokens_per_second']:.1f}", f"{row['peak_above_held_mib']:,} MiB"
            lines.append(table_row([kind, name, f"{row['padding']:.0%}", speed, over, memory]))
    return "\n".join(lines)


def parallel_step_table() -> str:
    """Steps of a parallel draft against an ordinary one, by what is dropped."""
    result = load_result("parallel_step.json")
    titles = ["text", "step", "guesses per token", "tokens of text per second, against an ordinary step"]
    lines = [table_row([*titles, "memory above what is held"]), "|---" * (len(titles) + 1) + "|"]
    for kind in ("fresh", "known"):
        for name, row in result[f"{kind} text"].items():
            over = "1" if name == "ordinary" else interval_cell(row["over_ordinary"])
            memory = f"{row['peak_above_held_mib']:,.0f} MiB"
            lines.append(table_row([kind, name, f"{row['guesses_per_token']:.1f}", over, memory]))
    return "\n".join(lines)


def head_step_table() -> str:
    """Steps of an EAGLE-3 head against an independent draft's, by the steps that are unrolled."""
    result = load_result("head_step.json")
    titles = ["text", "draft", "tokens of text per second, against an independent draft's step"]
    lines = [table_row([*titles, "memory above what is held", "kept per token of known text"]), "|---" * 5 + "|"]
    for kind in ("fresh", "known"):
        for name, row in result[f"{kind} text"].items():
            over = "1" if name == "independent" else interval_cell(row["over_independent"])
            kept = "" if kind == "fresh" else f"{row['state_bytes_per_token']:,} bytes"
            lines.append(table_row([kind, name, over, f"{row['peak_above_held_mib']:,.0f} MiB", kept]))
    return "\n".join(lines)


def engines_table() -> str:
    report = load_result("engines.json")
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
                row["version"] + (", its verification mended" if name == REPAIRED_VLLM else ""),
                temperature,
                f"`{row['rule']}`",
                interval_cell(row["mean_acceptance_length"]),
                f"{row['predicted_mean_acceptance_length']:.3f}",
                interval_cell(row["speedup"]),
                f"{row['round_cost']:.2f}",
                f"{same} of {row['prompts']}" if float(temperature) == 0 else "",
            ]
            lines.append(table_row(cells))
    return "\n".join(lines)


def bench_table(study: str, runs: Sequence[BenchRun]) -> str:
    """Bench results of a study's drafts."""
    lines = [
        "| draft | weights | temperature | draft tokens | tokens per target call: measured | predicted "
        "| draft step | check | speed-up: measured | predicted | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    results = load_result(study)["bench"]
    for run in present_runs(results, runs):
        row = results[run.name]
        length, checked = str(row["num_draft_tokens"]), str(row["num_draft_tokens"] + 1)
        weights = "as they are" if run.pack == "none" else f"`--pack {run.pack}`"
        cells = [run.row, weights, str(run.temperature), length]
        predicted = row["predicted_mean_acceptance_length"][length]
        cells += [interval_cell(row["mean_acceptance_length"]), f"{predicted:.3f}"]
        cells += [f"{row['cost_ratio']:.3f}", f"{row['verify_cost'][checked]:.2f}"]
        cells += [interval_cell(row["speedup"]), f"{row['predicted_speedup'][length]:.2f}", f"**{row['verdict']}**"]
        lines.append(table_row(cells))
    return "\n".join(lines)


def growth_table() -> str:
    report = load_result("growth.json")
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


def peers_lines(lengths: tuple[int, ...]) -> str:
    """Our decoder over its peers: with the same models, and with the packing and trimming that peers lack."""
    report = load_result("decoder_peers.json")
    lines = [
        f"{report['pair']}; {report['prompts']} prompts, {report['max_new_tokens']} tokens each.",
        "",
        "| temperature | draft tokens | over transformers | over FlashSpec | `--pack float32`, over transformers "
        "| over FlashSpec | and a trimmed head, over transformers | over FlashSpec | engine efficiency |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for temperature, rows in report["batch_1"].items():
        for length in map(str, lengths):
            over = rows[length]["over_peers"]
            cells = [interval_cell(over[name][peer], places=2) for name in CONTESTANTS for peer in PEERS]
            cells.append(f"{rows[length]['engine_efficiency']:.3f}")
            lines.append(f"| {float(temperature):g} | {length} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def peers_table() -> str:
    lines = [peers_lines((1, 4, 8)), ""]
    for temperature, row in load_result("decoder_peers.json")["batch_8"].items():
        over = row["over_one_by_one"]
        lines.append(
            f"A batch of 8 over the same prompts one by one, temperature {float(temperature):g}, 4 draft tokens: "
            f"{interval_cell(over['specdistill'], places=2)}.  "
        )
    return "\n".join(lines)


def loss_op_table() -> str:
    report = load_result("loss_op.json")
    lines = [
        "| tokens x ids | ours | Liger's time over ours | TRL's | plain torch's "
        "| extra MiB: ours | Liger | TRL | plain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in report["cases"]:
        cells = [f"{case['tokens']} x {case['vocab']}", f"{case['seconds']['specdistill']:.2f} s"]
        cells += [interval_cell(case["over_specdistill"][name], places=2) for name in ("liger", "trl", "plain")]
        cells += [f"{case['peak_mib'][name]:,}" for name in ("specdistill", "liger", "trl", "plain")]
        lines.append(table_row(cells))
    fetched = []
    for name, owner in (("liger", "Liger's"), ("trl", "TRL's"), ("plain", "plain torch's")):
        ratios = [case["seconds_glibc"][name] / case["seconds_glibc"]["specdistill"] for case in report["cases"]]
        fetched.append(f"{owner} {range_cell(ratios, 2)}")
    fetching = "With memory given back after every use and fetched again, one turn each"
    lines.append(f"\n{fetching}: {', '.join(fetched)} of our time.")
    for kind, case in report["more_kinds"].items():
        times, peak = interval_cell(case["over_specdistill"]["plain"], places=2), case["peak_mib"]
        size = f"{case['tokens']} x {case['vocab']}"
        lines.append(f"`{kind}`, {size}: plain torch's {times}, {peak['specdistill']} MiB for {peak['plain']}.")
    return "\n".join(lines)


def plan_hours_table() -> str:
    report = load_result("plan_hours.json")
    names = ("target writes", "target labels", "draft writes", "draft trains")
    lines = ["| draft | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for draft in report["drafts"]:
        cells = [f"{draft[name]['utilisation']:.0%}" for name in names]
        lines.append(f"| {draft['draft_params'] / 1e6:.1f}M | " + " | ".join(cells) + " |")
    return "\n".join(lines)
