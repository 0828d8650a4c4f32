"""The goals that this project set out to reach, and whether it did. Missed goals stay in the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.studies.bench_runs import DRIFTED_RUNS, present_runs
from benchmarks.support.results import load_result
from benchmarks.tables.cells import interval_cell, range_cell, table_row


@dataclass(frozen=True)
class Goal:
    """One line of the table."""

    goal: str
    measured_on: str
    measured: str
    is_met: bool


def goals_table() -> str:
    lines = ["| goal | of what | measured | |", "|---|---|---|---|"]
    for goal in (*decoder_goals(), *loss_goals(), *drifted_goals()):
        lines.append(table_row([goal.goal, goal.measured_on, goal.measured, "met" if goal.is_met else "**missed**"]))
    return "\n".join(lines)


def decoder_goals() -> Iterator[Goal]:
    report = load_result("decoder_peers.json")
    contestants = {
        "the same models": "specdistill",
        "`--pack float32`": "specdistill-packed",
        "`--pack float32` and a trimmed head": "specdistill-trimmed",
    }
    for models, name in contestants.items():
        ratios = [row["over_peers"][name]["transformers"]["mean"] for row in report["batch_1"]["0"].values()]
        yield Goal(
            "1.2 times transformers' tokens/s, batch 1, 1 to 8 draft tokens",
            f"{models}, temperature 0",
            range_cell(ratios, 2),
            min(ratios) >= 1.2,
        )
    for temperature, rows in report["batch_1"].items():
        shares = [row["engine_efficiency"] for row in rows.values()]
        measured_on = f"whole heads, temperature {temperature}"
        yield Goal("engine efficiency of 0.97", measured_on, range_cell(shares, 3), min(shares) >= 0.97)
    for temperature, row in report["batch_8"].items():
        ratio = row["over_one_by_one"]["specdistill"]
        yield Goal(
            "a batch of 8 twice as fast as one by one",
            f"temperature {temperature}",
            interval_cell(ratio, places=2),
            ratio["ci95"][0] >= 2,
        )


def loss_goals() -> Iterator[Goal]:
    cases = load_result("loss_op.json")["cases"]
    (large,) = [case for case in cases if (case["tokens"], case["vocab"]) == (4096, 49152)]
    share = large["peak_mib"]["plain"] / large["peak_mib"]["specdistill"]
    yield Goal("the loss in an eighth of plain torch's memory", "4096 tokens x 49152 ids", f"1/{share:.1f}", share >= 8)
    for name in ("liger", "trl"):
        ratios = [case["over_specdistill"][name] for case in cases]
        times = range_cell([ratio["mean"] for ratio in ratios], 2)
        # No slower: an interval may reach below 1, but none may lie there.
        is_met = min(ratio["ci95"][1] for ratio in ratios) >= 1
        yield Goal(f"the loss no slower than {name}'s", "all sizes", f"{times} of ours", is_met)


def drifted_goals() -> Iterator[Goal]:
    report = load_result("drifted.json")
    row, measured_on = report["rows"]["long-4"], "4 layers, 240 steps, `sampled`"
    alpha, gain = row["alpha"]["sampled"], row["over_stock"]["sampled"]
    yield Goal("drifted target: alpha of 0.8", measured_on, interval_cell(alpha), alpha["ci95"][0] >= 0.8)
    gain_text = interval_cell(gain, "+")
    yield Goal("drifted target: more than the draft of before", measured_on, gain_text, gain["ci95"][0] > 0)
    speedups = {
        run: report["bench"][run.name]["speedup"]
        for run in present_runs(report["bench"], DRIFTED_RUNS)
        if run.pack == "none"
    }
    fastest = max(speedups, key=lambda run: speedups[run]["mean"])
    yield Goal(
        "drifted target: 1.3 times the plain target",
        f"{fastest.row}, float32",
        interval_cell(speedups[fastest]),
        speedups[fastest]["ci95"][0] >= 1.3,
    )
