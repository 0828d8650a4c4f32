"""Tables of `students.py`, from benchmarks/results."""

from __future__ import annotations

from typing import Any

from benchmarks.support.results import load_result
from benchmarks.tables.cells import interval_cell, table_row

RULES = ("greedy", "sampled", "argmax_draft")


def students_table(task: str, layers: int) -> str:
    """Every row of one task's students of one depth: scores, differences over the start, alpha and training time."""
    rows = load_result("students.json")["tasks"][task][f"students of {layers} layers"]
    scores = [name for name in rows["start"]["mean"] if not name.startswith("alpha")]
    titles = ["method", scores[0], f"{scores[0]}, over the start", "seed by seed", *scores[1:]]
    titles += [f"alpha, `{rule}`" for rule in RULES] + ["training, s"]
    lines = [table_row(titles), "|---" * len(titles) + "|"]
    return "\n".join(lines + [table_row(_cells(name, row, scores)) for name, row in rows.items()])


def _cells(name: str, row: dict[str, Any], scores: list[str]) -> list[str]:
    main, *others = scores
    gain = interval_cell(row["over_start"][main], "+") if "over_start" in row else ""
    seeds = " ".join(f"{mean:.2f}" for mean in row["by_seed"][main]) if gain else ""
    cells = ["the start" if name == "start" else name, interval_cell(row["mean"][main]), gain, seeds]
    cells += [f"{row['mean'][other]['mean']:.3f}" for other in others]
    cells += [f"{row['mean'][f'alpha, {rule}']['mean']:.3f}" for rule in RULES]
    seconds = row["seconds"]
    return [*cells, f"{sum(seconds) / len(seconds):.0f}" if seconds else ""]


def prepared_lines() -> str:
    """What the stored answers, labels and teachers cost and are worth, a line per task."""
    lines = []
    for task, facts in load_result("students.json")["tasks"].items():
        main = next(iter(facts["teacher"]["mean"]))
        copies, small = facts["teacher_copies"], facts["small_teacher_copies"]
        lines.append(
            f"- {task}: the teacher's own {main} is {interval_cell(facts['teacher']['mean'][main])}. Its {copies} "
            f"answers to each prompt took {facts['answers_seconds']:.0f} s, their labels {facts['labels_seconds']:.0f} "
            f"s, the small teacher's {small} answers {facts['small_answers_seconds']:.0f} s."
        )
    return "\n".join(lines)
