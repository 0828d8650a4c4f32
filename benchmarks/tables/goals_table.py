"""What this project set out to reach and whether it did, from benchmarks/results; missed goals stay in the table."""

from __future__ import annotations

from collections.abc import Iterator

from table_cells import between, load, spread

Goal = tuple[str, str, str, bool]
"""(goal, what was measured, the number, whether it is met)."""


def goals_table() -> str:
    lines = ["| goal | of what | measured | |", "|---|---|---|---|"]
    for goal, what, found, met in (*decoder(), *loss(), *drifted()):
        lines.append(f"| {goal} | {what} | {found} | {'met' if met else '**missed**'} |")
    return "\n".join(lines)


def decoder() -> Iterator[Goal]:
    report = load("decoder_peers.json")
    goal = "1.2 times transformers' tokens/s, batch 1, 1 to 8 draft tokens"
    named = {"the same models": "specdistill", "`--pack float32`": "specdistill-packed"}
    for what, name in (named | {"`--pack float32` and a trimmed head": "specdistill-trimmed"}).items():
        found = [row["over_peers"][name]["transformers"]["mean"] for row in report["batch_1"]["0"].values()]
        yield goal, f"{what}, temperature 0", between(found, 2), min(found) >= 1.2
    for temperature, rows in report["batch_1"].items():
        found = [row["engine_efficiency"] for row in rows.values()]
        what = f"whole heads, temperature {temperature}"
        yield "engine efficiency of 0.97", what, between(found, 3), min(found) >= 0.97
    for temperature, row in report["batch_8"].items():
        value = row["over_one_by_one"]["specdistill"]
        what = f"temperature {temperature}"
        yield "a batch of 8 twice as fast as one by one", what, spread(value, places=2), value["ci95"][0] >= 2


def loss() -> Iterator[Goal]:
    cases = load("loss_op.json")["cases"]
    (large,) = [case for case in cases if (case["tokens"], case["vocab"]) == (4096, 49152)]
    share = large["peak_mib"]["plain"] / large["peak_mib"]["specdistill"]
    yield "the loss in an eighth of plain torch's memory", "4096 tokens x 49152 ids", f"1/{share:.1f}", share >= 8
    for name in ("liger", "trl"):
        found = [case["over_specdistill"][name] for case in cases]
        times = between([value["mean"] for value in found], 2)
        # No slower: an interval that reaches below 1 may, but none lies there.
        yield (
            f"the loss no slower than {name}'s",
            "all sizes",
            f"{times} of ours",
            min(v["ci95"][1] for v in found) >= 1,
        )


def drifted() -> Iterator[Goal]:
    report = load("drifted.json")
    row, what = report["rows"]["long-4"], "4 layers, 240 steps, `sampled`"
    alpha, gain = row["alpha"]["sampled"], row["over_stock"]["sampled"]
    yield "drifted target: alpha of 0.8", what, spread(alpha), alpha["ci95"][0] >= 0.8
    yield "drifted target: more than the draft of before", what, spread(gain, "+"), gain["ci95"][0] > 0
    bench = report["bench"]
    name = max((each for each in bench if "-none-" in each), key=lambda each: bench[each]["speedup"]["mean"])
    fastest = bench[name]["speedup"]
    yield (
        "drifted target: 1.3 times the plain target",
        name.split("-none")[0] + ", float32",
        spread(fastest),
        (fastest["ci95"][0] >= 1.3),
    )
