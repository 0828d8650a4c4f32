"""Tables of kinds of drafts, from the results of `kinds.py`."""

from __future__ import annotations

from collections.abc import Sequence
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
    "head": "EAGLE-3 head",
    "head-before": "EAGLE-3 head of the target before fine-tuning",
    "head-skd": "EAGLE-3 head, on SKD's text",
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
ENGINES = {"specdistill": "our decoder", "vllm": "vLLM"}
Row = dict[str, Any]


def _rows(task: str) -> dict[str, Row]:
    """The task's drafts, by depth; rows that compare losses have a table of their own."""
    rows = load_result(f"kinds_{task}.json")["rows"]
    return dict(sorted(rows.items(), key=lambda item: str(item[1]["untrained"])))


def _titles(name: str, row: Row) -> list[str]:
    return [str(row["untrained"]), WAYS.get(name) or WAYS[name.split("-")[0]]]


def _by_seed(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _counts(values: list[int]) -> str:
    least, most = min(values), max(values)
    return str(least) if least == most else f"{least} to {most}"


def calls_table(task: str) -> str:
    """Predicted tokens per target call of every draft, by draft length, with what training took."""
    titles = ["layers", "draft", "steps", "processor seconds", *(f"at {length}" for length in LENGTHS)]
    lines = [table_row([*titles, "at 8, seed by seed"]), "|---" * (len(titles) + 1) + "|"]
    for name, row in _rows(task).items():
        if name in LOSSES:
            continue
        seeds, calls = row["seeds"], row["tokens_per_call"]
        cells = [*_titles(name, row), _counts([seed["steps"] for seed in seeds])]
        cells.append(f"{mean(seed['seconds'] for seed in seeds):.0f}")
        cells += [f"{calls[length]['mean']:.2f}" for length in LENGTHS]
        lines.append(table_row([*cells, _by_seed(calls["8"]["by_seed"])]))
    return "\n".join(lines)


def speed_table(task: str, temperature: int = 0) -> str:
    """Cost of a round and measured speed-up in each engine, by seed."""
    titles = ["engine", "layers", "draft", "draft tokens", "tokens per call, counted", "a round, in target steps"]
    lines = [
        table_row([*titles, "speed-up", "seed by seed", "after the first token"]),
        "|---" * (len(titles) + 3) + "|",
    ]
    for engine, where in ENGINES.items():
        for name, row in _rows(task).items():
            found = _benches(row, f"{engine}-{temperature}")
            if not found:
                continue
            cells = [where, *_titles(name, row), _counts([one["num_draft_tokens"] for one in found])]
            cells.append(f"{mean(one['mean_acceptance_length']['mean'] for one in found):.2f}")
            cells.append(f"{mean(_round_cost(one) for one in found):.2f}")
            speeds = [one["speedup"] for one in found]
            cells.append(f"{mean(speed['mean'] for speed in speeds):.2f}")
            cells.append("; ".join(interval_cell(speed, places=2) for speed in speeds))
            lines.append(table_row([*cells, _by_seed([one["speedup_after_first_token"] for one in found])]))
    return "\n".join(lines)


def _benches(row: Row, engine: str) -> list[Row]:
    return [seed[engine] for seed in row["seeds"] if engine in seed]


def _round_cost(one: Row) -> float:
    if "round_cost" in one:
        return one["round_cost"]
    length = str(one["num_draft_tokens"])
    return one["predicted_mean_acceptance_length"][length] / one["predicted_speedup"][length]


def over_lines(tasks: Sequence[str], pairs: Sequence[tuple[str, str]]) -> str:
    """One draft over another at temperature 0: ratio of measured speeds, of whole answers and after the first token."""
    lines = []
    for task in tasks:
        rows = _rows(task)
        for engine, where in ENGINES.items():
            for name, base in (pair for pair in pairs if rows.keys() >= set(pair)):
                benches = [
                    {seed["seed"]: seed[f"{engine}-0"] for seed in rows[row]["seeds"] if f"{engine}-0" in seed}
                    for row in (name, base)
                ]
                both = [(own, benches[1][seed]) for seed, own in benches[0].items() if seed in benches[1]]
                if both:
                    whole = [a["speedup"]["mean"] / b["speedup"]["mean"] for a, b in both]
                    rest = [a["speedup_after_first_token"] / b["speedup_after_first_token"] for a, b in both]
                    said = f"{name} is {mean(whole):.2f} times as fast as {base} ({_by_seed(whole)})"
                    lines.append(
                        f"- {task}, {where}: {said}; after the first token {mean(rest):.2f} ({_by_seed(rest)})"
                    )
    return "\n".join(lines)


def losses_table() -> str:
    """Losses, weights and anchors at equal steps: tokens per target call at K = 8, and paired differences."""
    titles = ["training", "processor seconds", "1 token", "8 tokens", "8, over `fkl`", "8, seed by seed"]
    lines = [table_row(titles), "|---" * len(titles) + "|"]
    rows = _rows("mails")
    for name, title in LOSSES.items():
        if name not in rows:
            continue
        row, calls = rows[name], rows[name]["tokens_per_call"]
        over = interval_cell(row["over_fkl"], "+", 2) if "over_fkl" in row else ""
        seconds = f"{mean(seed['seconds'] for seed in row['seeds']):.0f}"
        cells = [title, seconds, f"{calls['1']['mean']:.2f}", interval_cell(calls["8"], places=2), over]
        lines.append(table_row([*cells, _by_seed(calls["8"]["by_seed"])]))
    return "\n".join(lines)
