"""The studies' made-up data: the same for a seed, right by construction, and not the same for two seeds. Their rows."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from specdistill import TrainConfig

STUDIES = Path(__file__).parents[1] / "benchmarks/studies"


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up.
    sys.modules[name] = script
    spec.loader.exec_module(script)
    return script


def test_answers_hold_what_the_mail_says():
    mails = load_script("service_mail")
    for record in mails.records(200, 7):
        answer, prompt = json.loads(record["answer"]), record["prompt"]
        assert list(answer) == mails.SCHEMA.split(", ")
        for name in ("customer", "email", "order_id", "product"):
            assert str(answer[name]) in prompt, (name, prompt)
        assert (answer["quantity"] > 1) == (f"({answer['quantity']} of them)" in prompt)
        assert answer["urgent"] == (answer["deadline"] is not None)
        if answer["urgent"]:
            _, month, day = answer["deadline"].split("-")
            assert f"{int(day)} {mails.MONTHS[int(month) - 1]}" in prompt
        assert any(text in prompt for text in mails.ISSUES[answer["issue"]])
        assert any(text in prompt for text in mails.ACTIONS[answer["action"]])


def test_every_way_of_solving_a_problem_is_true_and_ends_in_its_result():
    problems = load_script("word_problems")
    pick, ways = random.Random(7), Counter()
    for kind in problems.KINDS * 100:
        problem = kind(pick)
        assert 0 < problem.result < 100 + 50
        for steps in problem.solutions:
            assert all(eval(left) == int(right) for left, right in (step.split(" = ") for step in steps)), steps
            assert steps[-1].endswith(f"= {problem.result}")
        ways[problem.kind] += len(set(problem.solutions)) > 1
    assert all(count > 90 for count in ways.values()) and len(ways) == 4


def test_a_problem_holds_every_number_that_its_solution_starts_from():
    for record in load_script("word_problems").records(300, 3):
        assert record["answer"].endswith(".") and "The answer is" in record["answer"]
        shown = set(re.findall(r"\d+", record["prompt"])) | {"1", "2"}
        known = set(shown)
        for left, right in re.findall(r"(\d+ [-+*] \d+) = (-?\d+)", record["answer"]):
            assert set(re.findall(r"\d+", left)) <= known, record
            known.add(right)


@pytest.mark.parametrize("name", ["service_mail", "word_problems"])
def test_a_seed_is_a_set(name):
    script = load_script(name)
    assert script.records(50, 1) == script.records(60, 1)[:50]
    one, other = ({record["prompt"] for record in script.records(500, seed)} for seed in (1, 3))
    assert len(one) >= 498 and len(one & other) <= 2


@pytest.mark.parametrize("study", ["kinds", "students", "methods", "drifted"])
def test_a_row_is_a_run_that_train_draft_takes(study, monkeypatch):
    """A row that is refused would end a study of a night in the middle."""
    monkeypatch.syspath_prepend(STUDIES.parents[1])
    from benchmarks.studies import drifted_rows, kind_rows, method_rows, student_rows

    rows = {
        "kinds": kind_rows.rows(1, 1),
        "students": student_rows.ROWS,
        "methods": method_rows.METHOD_ROWS,
        "drifted": drifted_rows.DRIFTED_ROWS,
    }
    for name, row in rows[study].items():
        config = TrainConfig.flat(target="target", draft="draft", output=name, **row.settings)
        assert config.method == row.settings["method"], name


def _student(folder, scores):
    """A scored model of four prompts."""
    folder.mkdir()
    alpha = {"greedy": [[score * 2 for score in scores], [4] * 4]}
    (folder / "scores.json").write_text(json.dumps({"scores": {"right": scores}, "alpha": alpha}))
    return folder


def test_seeds_are_compared_with_the_start_that_they_went_on_from(tmp_path):
    """Another machine that goes on from the result file has to train the start again, and gets another one."""
    from benchmarks.studies.student_results import merged_task, seed_entry

    def collected(name, start, seeds, before):
        place = tmp_path / name
        place.mkdir()
        rows = {"start": {"seeds": [seed_entry(_student(place / "start", start), 0)]}}
        found = [seed_entry(_student(place / f"sft-{seed}", scores), seed) for seed, scores in seeds.items()]
        rows["sft"] = {"settings": {}, "seeds": found}
        task = merged_task({}, teacher, {4: rows}, before)
        return json.loads(json.dumps(task))

    teacher = _student(tmp_path / "teacher", [1, 1, 1, 1])
    low, high = [0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]
    first = collected("first", low, {0: [0.2] * 4, 1: [0.2] * 4}, None)
    both = collected("second", high, {2: [0.7] * 4}, first)["students of 4 layers"]
    assert first["students of 4 layers"]["sft"]["over_start"]["right"]["mean"] == pytest.approx(0.2)
    # The rows' mean is 1.1 / 3 and that of their starts 0.5 / 3; with one start for all it would be -0.13 or 0.37.
    assert both["sft"]["over_start"]["right"]["mean"] == pytest.approx(0.2)
    assert [seed["start"] for seed in both["sft"]["seeds"]] == [0, 0, 1]
    assert both["start"]["by_seed"]["right"] == [0, 0.5]
    again = collected("third", high, {seed: [0.7] * 4 for seed in range(3)}, {**first, "students of 4 layers": both})
    left = again["students of 4 layers"]
    assert left["start"]["by_seed"]["right"] == [0.5]
    assert left["sft"]["over_start"]["right"]["mean"] == pytest.approx(0.2)


def test_losses_are_compared_over_the_seeds_that_both_have(tmp_path, monkeypatch):
    """A machine may have trained other seeds of each, and older ones have no target calls."""
    from benchmarks.studies import kind_results
    from benchmarks.support import results

    for module in (kind_results, results):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    answers = np.array([9.0, 9.0, 17.0])

    def row(seeds, calls):
        rounds = {str(length): " ".join(map(str, calls)) for length in (1, kind_results.TOKENS)}
        one = {"steps": kind_results.LOSS_STEPS, "tokens_trained": 1, "rounds": rounds}
        return {"steps": kind_results.LOSS_STEPS, "seeds": [{"seed": seed} | one for seed in seeds]}

    def written(rows):
        kind_results.write_merged("mails", {"heldout_prompts": 3}, answers, rows)
        return json.loads((tmp_path / "kinds_mails.json").read_text())["rows"]

    found = written({"loss-fkl": row([0], [4, 4, 8]), "loss-tvd": row([1], [2, 2, 4])})
    assert "over_fkl" not in found["loss-tvd"]
    over = written({"loss-fkl": row([1], [4, 4, 8])})["loss-tvd"]["over_fkl"]
    assert over["mean"] == pytest.approx(32 / 8 - 32 / 16) and over["seeds"] == 1
