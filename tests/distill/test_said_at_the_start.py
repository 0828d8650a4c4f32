"""Lines before the work: how the prompts are split, which answers count, and what a trimmed head lacks."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import make_model
from tiny_runs import cut_config, example, prompt_rows, standard_models, train_config, write_folder

from specdistill import init_draft, train_draft
from specdistill.data import Prompt
from specdistill.decoding import Sampling
from specdistill.decoding.answers import write_answers
from specdistill.distill.cutting.kept_ids import head_line
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.models import load_pair
from specdistill.progress import Quiet


class Lines(Quiet):
    """Progress that keeps what it was told."""

    def __init__(self):
        self.said, self.notes = [], []

    def say(self, text):
        self.said.append(text)

    def note(self, text):
        self.notes.append(text)


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


def test_the_split_says_why_fewer_prompts_are_held_out_than_asked(folder, tmp_path):
    progress = Lines()
    settings = {"method": "sft", "steps": 1, "eval_every": 1, "heldout_prompts": 16}
    train_draft(train_config(folder, tmp_path / "out", **settings), progress)
    assert "8 prompts: 4 to train on, 4 held out (--heldout-prompts 16, but at most half)" in progress.said


@pytest.mark.parametrize(
    ("settings", "watched"),
    [
        ({"scorer": "tiny_runs:count_w7"}, "alpha (sampled)"),
        ({"scorer": "tiny_runs:count_w7", "rule": "greedy"}, "alpha (greedy)"),
        ({"scorer": "tiny_runs:count_w7", "watch": "score"}, None),
        ({}, None),
    ],
)
def test_a_scorer_that_is_not_watched_is_said_once(folder, tmp_path, settings, watched):
    progress = Lines()
    settings = {"method": "best-of-n", "steps": 2, "eval_every": 1, "heldout_prompts": 3} | settings
    train_draft(train_config(folder, tmp_path / "out", **settings), progress)
    lines = [line for line in progress.said if line.startswith("watched:")]
    assert lines == ([] if watched is None else [f"watched: {watched}; --watch score watches the scorer"])


REWARD = """
def right(prompt, text):
    return float(prompt.answer is not None and prompt.answer in text)

def words(prompt, text):
    return float(len(text))
"""


@pytest.mark.parametrize(("function", "answered"), [("right", 0), ("right", 5), ("right", 8), ("words", 0)])
def test_a_reward_that_tells_nothing_apart_is_said_before_the_first_step(
    folder, tmp_path, monkeypatch, function, answered
):
    (tmp_path / "start_rewards.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"w{number} w3", "id": str(number)} for number in range(8)]
    for row in rows[:answered]:
        row["answer"] = "no such words"
    prompts, progress = tmp_path / "prompts.jsonl", Lines()
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"method": "gkd", "lmbda": 1.0, "reward": f"start_rewards:{function}", "heldout_prompts": 3}
    settings |= {"steps": 1, "eval_every": 1, "prompts": str(prompts)}
    train_draft(train_config(folder, tmp_path / "out", **settings), progress)
    told = [line for line in progress.said if "tells nothing apart yet" in line]
    if function == "words":
        assert not told
        return
    (line,) = told
    start, missing = "warning: the held-out reward is 0.000 for all 3 prompts: it tells nothing apart yet", ""
    if answered < 8:
        missing = f'; {8 - answered} of 8 prompts have no field "answer" (the first is '
    assert line.startswith(start + missing) and (answered < 8 or line == start)
    assert answered == 8 or line.endswith("; the fields there are prompt, id), so prompt.answer is None there")
    first = next(number for number, said in enumerate(progress.said) if said.startswith("step 1:"))
    assert progress.said.index(line) < first


@pytest.mark.parametrize(("top_k", "warned"), [(1, 1), (65, 0)])
def test_skd_says_in_words_how_much_the_target_replaced_and_warns_once(folder, tmp_path, top_k, warned):
    progress = Lines()
    settings = {"method": "skd", "skd_top_k": top_k, "steps": 4, "eval_every": 2, "patience": 0}
    train_draft(train_config(folder, tmp_path / "out", **settings), progress)
    entries = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()][1:]
    rates = [entry["skd_rejection_rate"] for entry in entries]
    assert len(rates) == 2 and all((rate > 0.9) == bool(warned) for rate in rates)
    lines = [line for line in progress.said if "is nearly all the target's own" in line]
    assert len(lines) == warned
    share = f"arget replaced {100 * rates[0]:.0f} % of the draft's tokens"
    assert all(line.startswith(f"warning: the t{share}") for line in lines)
    assert any(f"  t{share}  " in note for note in progress.notes)


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
    assert line.startswith(f"warning: trimmed head: 4 ids hold {summary.head_covers:.2%} of the target's probability")
    assert f"Raise --vocab-keep ({zero})" in line


def test_a_head_that_holds_enough_is_not(folder, tmp_path):
    answers = [example([5 + number], [6] * 63, name=str(number)) for number in range(8)]
    held = "on answers held back from the choice (504 tokens)"
    assert head_line(8, 0.95, answers, 65) == f"trimmed head: 8 ids hold 95.00% of the target's probability {held}"
    assert head_line(8, 0.9499, answers, 65).endswith("or --calibration-prompts (8 were used)")
    assert "(441 tokens); these are too few to tell: raise" in head_line(8, 0.95, answers[:7], 65)
    assert "is unknown; raise --calibration-prompts (1 were used)" in head_line(8, None, answers[:1], 65)
    progress = Lines()
    init_draft(cut_config(folder, tmp_path / "head", layers=None, kind="eagle3"), progress)
    assert "trimmed head: all 65 ids are kept" in progress.said
    assert not [line for line in progress.said if line.startswith("warning: trimmed")]


@pytest.mark.parametrize("kind", ["model", "eagle3"])
def test_the_share_of_a_trimmed_head_holds_on_fresh_text(tmp_path, kind):
    """On the answers that chose them, ids of three answers hold nearly all; on others they hold half."""
    target = make_model(layers=3, scale=6.0)
    with torch.no_grad():
        target.model.lm_head.weight.mul_(6)
    folder = write_folder(tmp_path, {"target": target})
    settings = {"calibration_prompts": 4, "calibration_tokens": 6, "vocab_keep": 20, "kind": kind}
    settings |= {"layers": 1, "choose": "even"} if kind == "model" else {"layers": None}
    progress = Lines()
    summary = init_draft(cut_config(folder, tmp_path / "cut", **settings), progress)
    pair = load_pair(str(folder / "target"), str(tmp_path / "cut"), device="cpu")
    prompts = [Prompt(str(number), ()) for number in range(40)]
    encoded = [[3, 5 + number, 64 - number, 4] for number in range(40)]
    fresh = write_answers(pair.target, prompts, encoded, Sampling(), 16, 1, Quiet())
    held = torch.cat(
        [
            pair.target.logits(hidden).softmax(-1)[:, pair.draft.kept_ids].sum(-1)
            for one in fresh
            for hidden in answer_hidden_states(pair.target, [one], {})
        ]
    )
    assert held.mean() < 0.75
    assert summary.head_covers == pytest.approx(held.mean().item(), abs=0.15)
    (line,) = [line for line in progress.said if "trimmed head" in line]
    assert line.startswith("warning") and "held back from the choice (24 tokens)" in line
