"""A bench says where its prompts are those that the draft was trained on, or of another kind."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from tiny_runs import prompt_rows, standard_models, train, write_folder, write_rows

from specdistill import BenchConfig, ExportConfig, bench, export
from specdistill.cli import main
from specdistill.data import load_prompts
from specdistill.evaluation.training_prompts import training_prompts
from specdistill.files import run_settings
from specdistill.report.html import html_report
from specdistill.report.terminal import bench_tables

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A draft trained on prompts.jsonl, and other prompts of the kind: tomorrow.jsonl."""
    folder = write_folder(tmp_path_factory.mktemp("domain"), standard_models())
    train(folder, folder / "trained", steps=2, eval_every=2, rollouts_per_prompt=1)
    write_rows(folder / "tomorrow.jsonl", [{"prompt": f"w{i} w{i} w{i}"} for i in range(8)])
    shutil.copy(folder / "prompts.jsonl", folder / "copied.jsonl")
    # A third of yesterday's prompts, the way logs of two days overlap.
    write_rows(folder / "overlap.jsonl", [*prompt_rows(4), *({"prompt": f"w{i} w1 w2"} for i in range(8))])
    return folder


def config(folder, prompts="tomorrow.jsonl", **settings):
    source = prompts if prompts.startswith("builtin") else str(folder / prompts)
    short = {"max_new_tokens": 8, "max_draft_tokens": 2, "num_draft_tokens": 2}
    places = {"target": str(folder / "target"), "draft": str(folder / "trained"), "prompts": source}
    return BenchConfig.flat(**(places | short | settings))


def remarks(settings: BenchConfig):
    said: list[str] = []
    found = training_prompts(settings, load_prompts(settings.prompts), said.append) or []
    assert said == [f"warning: {entry.remark}" for entry in found]
    return found


@pytest.mark.parametrize(("prompts", "shared"), [("prompts.jsonl", 24), ("copied.jsonl", 24), ("overlap.jsonl", 4)])
def test_prompts_that_the_draft_was_trained_on_are_counted(folder, prompts, shared):
    (entry,) = remarks(config(folder, prompts))
    assert entry.shared_prompts == shared and entry.prompts == str(folder / "prompts.jsonl")
    total = len(load_prompts(str(folder / prompts)))
    assert f"trained or chosen on {shared} of the {total} prompts" in entry.remark and "--prompts" in entry.remark


@pytest.mark.parametrize("prompts", ["builtin:heldout", "builtin:train", "builtin"])
def test_the_built_in_prompts_are_another_domain_than_the_trainings(folder, prompts):
    (entry,) = remarks(config(folder, prompts))
    assert "the built-in prompts, which are of another domain" in entry.remark and entry.shared_prompts == 0


def test_new_prompts_need_no_remark(folder):
    assert remarks(config(folder)) == []


def test_a_draft_without_settings_needs_no_remark(folder):
    assert remarks(config(folder, "prompts.jsonl", draft=str(folder / "draft"))) == []
    assert remarks(config(folder, "prompts.jsonl", draft="some/hub-id")) == []


def test_the_compared_draft_is_judged_too(folder):
    (entry,) = remarks(config(folder, "prompts.jsonl", draft=str(folder / "draft"), compare=str(folder / "trained")))
    assert entry.draft == str(folder / "trained")


def test_a_draft_benched_under_other_template_arguments_is_named(folder):
    (entry,) = remarks(config(folder, chat_template_kwargs='{"enable_thinking": false}'))
    assert "other --chat-template-kwargs" in entry.remark


@pytest.mark.parametrize(
    ("trained", "benched", "words"),
    [
        ({"prompts": "builtin:train"}, "builtin:heldout", None),
        ({"prompts": "builtin:train"}, "builtin:train", "trained or chosen on"),
        ({"prompts": "builtin"}, "builtin:heldout", "trained or chosen on"),
        # The path was relative to another folder, or the file is gone.
        ({"prompts": "served.jsonl"}, "tomorrow.jsonl", None),
        ({"prompts": "served.jsonl"}, "builtin:heldout", "another domain"),
        # Raw text has no prompts.
        ({"prompts": "served.jsonl", "text": "corpus.txt"}, "builtin:heldout", None),
        ({"layers": 4}, "builtin:heldout", None),
    ],
)
def test_what_a_drafts_own_settings_say(folder, tmp_path, trained, benched, words):
    run_settings.write(tmp_path, trained)
    found = remarks(config(folder, benched, draft=str(tmp_path)))
    assert bool(found) == (words is not None) and all(words in entry.remark for entry in found)


def test_damaged_settings_of_a_draft_are_one_line(folder, tmp_path, capsys):
    shutil.copytree(folder / "trained", tmp_path / "draft")
    (tmp_path / "draft" / "specdistill.yaml").write_text("prompts: [")
    words = ["--target", str(folder / "target"), "--draft", str(tmp_path / "draft")]
    assert main(["bench", *words, "--prompts", str(folder / "tomorrow.jsonl")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{tmp_path / 'draft' / 'specdistill.yaml'} can't be read as settings" in line and "unexpected" not in line


@pytest.mark.parametrize("engine", ["specdistill", "transformers"])
def test_the_remark_is_in_the_report(folder, capsys, engine):
    report = bench(config(folder, "prompts.jsonl", num_prompts=4, engine=engine))
    (entry,) = report.to_json()["training_prompts"]
    assert entry["shared_prompts"] == 4 and entry["draft"] == str(folder / "trained")
    bench_tables(report)
    assert "BEWARE: " in capsys.readouterr().out
    assert "trained or chosen on 4 of the 4" in html_report(report)


def test_an_exported_draft_still_knows_its_training_prompts(folder, tmp_path):
    places = {"target": str(folder / "target"), "draft": str(folder / "trained"), "output": str(tmp_path / "out")}
    export(ExportConfig.flat(format="transformers", **places))
    (entry,) = remarks(config(folder, "prompts.jsonl", draft=str(tmp_path / "out")))
    assert entry.shared_prompts == 24


def test_a_report_without_a_remark_has_no_such_key(folder):
    assert "training_prompts" not in bench(config(folder, num_prompts=2)).to_json()


@pytest.mark.parametrize("page", [README, *sorted((README.parent / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_no_documented_flow_benches_on_other_or_on_training_prompts(page):
    text = page.read_text().replace("\\\n", " ")
    trained = set(re.findall(r"^specdistill train-draft .*--prompts (\S+)", text, re.MULTILINE))
    for line in re.findall(r"^specdistill bench (?!.*--draft cut).*", text, re.MULTILINE):
        source = re.search(r"--prompts (\S+)", line)
        assert source is not None and source.group(1) not in trained, line
