"""Tables of parallel drafts against ordinary ones, from the results of `parallel.py`."""

from __future__ import annotations

from statistics import mean
from typing import Any

from benchmarks.support.results import load_result
from benchmarks.tables.cells import interval_cell, table_row

LENGTHS = ("1", "2", "4", "8", "12")
WAYS = {
    "start": "the start: a token per pass",
    "cold": "parallel, from the untrained cut",
    "single": "a token per pass",
    "parallel": "parallel",
}
LOSSES = {
    "loss-fkl": "`fkl`",
    "loss-ce": "cross entropy on the same answers",
    "loss-jsd": "`jsd`",
    "loss-tvd": "`tvd`",
    "loss-lk_lambda": "`lk_lambda`",
    "confidence": "`fkl`, `--parallel-confidence`",
    "rounds": "`fkl`, `--anchors rounds`",
}
Row = dict[str, Any]


def _rows(task: str) -> dict[str, Row]:
    return load_result(f"parallel_{task}.json")["rows"]


def _way(name: str) -> str:
    return WAYS[name.split("-")[0]]


def _by_seed(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _counts(values: list[int]) -> str:
    least, most = min(values), max(values)
    return str(least) if least == most else f"{least} to {most}"


def calls_table(task: str) -> str:
    """Predicted tokens per target call of every draft, by draft length, with what training took."""
    titles = ["layers", "draft", "steps", "processor seconds", *(f"{length} tokens" for length in LENGTHS)]
    lines = [table_row([*titles, "8, seed by seed"]), "|---" * (len(titles) + 1) + "|"]
    for name, row in sorted(_rows(task).items(), key=lambda item: item[1]["layers"]):
        if name in LOSSES:
            continue
        seeds, calls = row["seeds"], row["tokens_per_call"]
        cells = [str(row["layers"]), _way(name), _counts([seed["steps"] for seed in seeds])]
        cells.append(f"{mean(seed['seconds'] for seed in seeds):.0f}")
        cells += [f"{calls[length]['mean']:.2f}" for length in LENGTHS]
        lines.append(table_row([*cells, _by_seed(calls["8"]["by_seed"])]))
    return "\n".join(lines)


def speed_table(task: str, engine: str) -> str:
    """Cost of a round and measured speed-up in one engine, by seed."""
    titles = ["layers", "draft", "draft tokens", "tokens per call, counted", "a round, in target steps", "speed-up"]
    lines = [table_row([*titles, "seed by seed, with intervals"]), "|---" * (len(titles) + 1) + "|"]
    for name, row in sorted(_rows(task).items(), key=lambda item: item[1]["layers"]):
        found = [seed[engine] for seed in row["seeds"] if engine in seed]
        if not found:
            continue
        cells = [str(row["layers"]), _way(name), _counts([one["num_draft_tokens"] for one in found])]
        cells.append(f"{mean(one['mean_acceptance_length']['mean'] for one in found):.2f}")
        cells.append(f"{mean(_round_cost(one) for one in found):.2f}")
        speeds = [one["speedup"] for one in found]
        cells.append(f"{mean(speed['mean'] for speed in speeds):.2f}")
        lines.append(table_row([*cells, "; ".join(interval_cell(speed, places=2) for speed in speeds)]))
    return "\n".join(lines)


def _round_cost(one: Row) -> float:
    if "round_cost" in one:
        return one["round_cost"]
    length = str(one["num_draft_tokens"])
    return one["predicted_mean_acceptance_length"][length] / one["predicted_speedup"][length]


def speed_lines() -> str:
    """The parallel draft over the ordinary one of its depth and time: ratio of speeds, by seed."""
    lines = []
    for task in ("mails", "code"):
        rows = _rows(task)
        for engine, where in (("specdistill", "our decoder"), ("vllm", "vLLM")):
            for layers in (2, 4):
                pair = [rows[f"{kind}-{layers}"]["seeds"] for kind in ("parallel", "single")]
                both = [(a[engine], b[engine]) for a, b in zip(*pair, strict=False) if engine in a and engine in b]
                if both:
                    ratios = [a["speedup"]["mean"] / b["speedup"]["mean"] for a, b in both]
                    numbers = f"**{mean(ratios):.2f}** times as fast ({_by_seed(ratios)})"
                    lines.append(f"- {task}, {where}, {layers} layers: the parallel draft is {numbers}")
    return "\n".join(lines)


def losses_table() -> str:
    """Losses, weights and anchors at equal steps: tokens per target call at K = 8, and paired differences."""
    titles = ["training", "processor seconds", "1 token", "8 tokens", "8, over `fkl`", "8, seed by seed"]
    lines = [table_row(titles), "|---" * len(titles) + "|"]
    for name, title in LOSSES.items():
        row = _rows("mails").get(name)
        if row is None:
            continue
        calls = row["tokens_per_call"]
        over = interval_cell(row["over_fkl"], "+", 2) if "over_fkl" in row else ""
        seconds = f"{mean(seed['seconds'] for seed in row['seeds']):.0f}"
        cells = [title, seconds, f"{calls['1']['mean']:.2f}", interval_cell(calls["8"], places=2), over]
        lines.append(table_row([*cells, _by_seed(calls["8"]["by_seed"])]))
    return "\n".join(lines)
