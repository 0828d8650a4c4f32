"""The two tasks of `students.py`: their prompts, and scores of a student's own answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.studies import service_mail, word_problems
from benchmarks.support.paths import MAIL_ADAPTER
from specdistill.data.prompts import Prompt

_NUMBER = re.compile(r"-?\d+")


def mail_score(prompt: Prompt, text: str) -> float:
    """1 where the answer is the mail's JSON object, however it is spaced; else 0."""
    return float(_object(text) == json.loads(prompt.answer or "{}"))


def mail_fields(prompt: Prompt, text: str) -> float:
    """Share of the mail's fields that the answer has right; 0 for text that is no JSON object."""
    wanted, got = json.loads(prompt.answer or "{}"), _object(text) or {}
    return sum(name in got and got[name] == value for name, value in wanted.items()) / len(wanted)


def problem_score(prompt: Prompt, text: str) -> float:
    """1 where the answer's last number is the solution's, on whatever way it was reached; else 0."""
    return float(_NUMBER.findall(text)[-1:] == _NUMBER.findall(prompt.answer or "")[-1:])


def problem_steps(prompt: Prompt, text: str) -> float:
    """1 where the answer is right and every step `a + b = c` in it is true; else 0."""
    steps = re.findall(r"(\d+) ([-+*]) (\d+) = (-?\d+)", text)
    results = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    true = all(results[sign](int(one), int(other)) == int(result) for one, sign, other, result in steps)
    return problem_score(prompt, text) * float(bool(steps) and true)


def _object(text: str) -> dict | None:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


@dataclass(frozen=True)
class Task:
    """A job that a teacher is fine-tuned for and students learn from it."""

    name: str
    write_records: Callable[[Path, int, int], None]
    """Writes so many prompts with answers of a seed."""
    scorer: str
    """The score as `--scorer` and `--reward` take it."""
    scores: dict[str, Callable[[Prompt, str], float]]
    """Column -> score of one answer; the first is the task's own."""
    max_new_tokens: int
    teacher_steps: int
    """Steps of the fine-tuning that makes the teacher, where it is no committed adapter."""
    warm_steps: int
    """Steps of a student's own fine-tuning: enough to do the job, and too few to do it as well as the teacher."""
    adapter: Path | None = None
    """The teacher as an adapter of SmolLM2."""


TASKS = {
    "mails": Task(
        "mails",
        service_mail.write_records,
        "benchmarks.studies.student_tasks:mail_score",
        {"exact match": mail_score, "fields right": mail_fields},
        max_new_tokens=160,
        teacher_steps=120,
        warm_steps=300,
        adapter=MAIL_ADAPTER,
    ),
    "problems": Task(
        "problems",
        word_problems.write_records,
        "benchmarks.studies.student_tasks:problem_score",
        {"right answer": problem_score, "right in every step": problem_steps},
        max_new_tokens=96,
        teacher_steps=300,
        warm_steps=700,
    ),
}
