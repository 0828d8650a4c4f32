"""Lines before the work: how the prompts are split, which answers count, and what a trimmed head lacks."""

from __future__ import annotations

import json

import pytest
from tiny_runs import cut_config, prompt_rows, standard_models, train_config, write_folder

from specdistill import init_draft, train_draft
from specdistill.distill.cutting.kept_ids import head_line
from specdistill.progress import Quiet


class Lines(Quiet):
    """Progress that keeps what it was told."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("said"), standard_models(), prompt_rows(8))


@pytest.mark.parametrize(
    ("answered", "method", "more"),
    [
        (True, "distillspec", "; their 5 given answers are not trained on (--method sft does)"),
        (True, "sft", ""),
        (False, "distillspec", ""),
    ],
)
def test_the_split_is_said_once_and_answers_where_they_do_not_count(folder, tmp_path, answered, method, more):
    prompts, progress = tmp_path / "prompts.jsonl", Lines()
    rows = [{"prompt": f"w{number} w3"} | ({"answer": "w5 w6"} if answered else {}) for number in range(8)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"steps": 1, "eval_every": 1, "heldout_prompts": 3, "method": method, "prompts": str(prompts)}
    train_draft(train_config(folder, tmp_path / "out", **settings), progress)
    assert [line for line in progress.said if "held out (" in line] == [
        f"8 prompts: 5 to train on, 3 held out (--heldout-prompts){more}"
    ]
    warnings = [line for line in progress.said if line.startswith("warning")]
    assert len(warnings) == len(set(warnings))


@pytest.mark.parametrize(
    ("settings", "zero"),
    [
        ({"layers": 1, "choose": "even"}, "0 keeps all ids"),
        ({"layers": None, "kind": "eagle3"}, "0 stands for 8192"),
    ],
)
def test_a_head_that_holds_too_little_is_warned_of(folder, tmp_path, settings, zero):
    progress = Lines()
    summary = init_draft(cut_config(folder, tmp_path / "cut", vocab_keep=4, **settings), progress)
    assert summary.head_covers is not None and summary.head_covers < 0.95
    (line,) = [line for line in progress.said if "trimmed head" in line]
    assert line.startswith(f"warning: trimmed head: 4 ids hold {summary.head_covers:.2%} of the target's probability;")
    assert f"Raise --vocab-keep ({zero})" in line


def test_a_head_that_holds_enough_is_not(folder, tmp_path):
    assert head_line(8, 0.95, 3) == "trimmed head: 8 ids hold 95.00% of the target's probability"
    assert head_line(8, 0.9499, 3).endswith("or --calibration-prompts (3 were used)")
    progress = Lines()
    init_draft(cut_config(folder, tmp_path / "head", layers=None, kind="eagle3"), progress)
    assert "trimmed head: 65 ids hold 100.00% of the target's probability" in progress.said
    assert not [line for line in progress.said if line.startswith("warning: trimmed")]
