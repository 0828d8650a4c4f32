"""Answers that are there are used and never lost: changed prompts, moved lines, two runs at a time, kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from tiny_models import make_model, save
from tiny_runs import (
    Said,
    annotate_config,
    before_each_step,
    generate_config,
    prompt_rows,
    standard_models,
    train_config,
    write_folder,
    write_rows,
)

from specdistill import annotate, generate, train_draft
from specdistill.cli import main
from specdistill.data import Prompt
from specdistill.data.prompts import encode, load_prompts
from specdistill.distill.answers.matching import prompts_of, select_rows
from specdistill.distill.answers.shards import read_rollouts
from specdistill.distill.sequences import build
from specdistill.errors import DataError, OutputError
from specdistill.files import locks
from specdistill.models import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("kept"), standard_models())


def numbered(count, start=0):
    """Prompts without ids, which then are line numbers; of different lengths, so that growth changes their order."""
    return [{"prompt": " ".join(f"w{(i + k) % 60}" for k in range(1 + i % 4))} for i in range(start, start + count)]


def answered(directory, prompts, tokenizer):
    """How often each prompt of a set is answered in a directory, by the ids of its text."""
    counts = Counter(tuple(row["prompt_ids"]) for row in read_rollouts(directory))
    return [counts[tuple(encode(prompt, tokenizer))] for prompt in prompts]


def small(folder, output, prompts, **settings):
    return generate_config(
        folder, output, **({"prompts": str(prompts), "rollouts_per_prompt": 2, "shard_size": 8} | settings)
    )


# ---- generate


def changes(rows):
    """How a prompt file changes while people work."""
    return {
        "grown": rows + numbered(3, 100),
        "one line inserted in front": numbered(1, 100) + rows,
        "some removed": rows[:5] + rows[9:],
        "reordered": rows[::-1],
        "one edited": [*rows[:7], {"prompt": "w50 w51 w52"}, *rows[8:]],
        "one twice": [*rows, rows[3]],
    }


@pytest.mark.parametrize("change", list(changes(numbered(20))))
def test_a_changed_prompt_file_leaves_no_prompt_without_answers(folder, tmp_path, change):
    """43 prompts, 40 of them answered before: 3 were left without answers, 3 were answered twice."""
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out"
    write_rows(prompts, numbered(20))
    generate(small(folder, output, prompts))
    before = {(tuple(row["prompt_ids"]), row["copy"], tuple(row["answer_ids"])) for row in read_rollouts(output)}
    rows = changes(numbered(20))[change]
    write_rows(prompts, rows)
    said = Said()
    summary = generate(small(folder, output, prompts), said)
    tokenizer = load_model(str(folder / "target")).tokenizer
    now = load_prompts(str(prompts))
    wanted = [2 * sum(other.messages == prompt.messages for other in now) for prompt in now]
    assert answered(output, now, tokenizer) == wanted
    after = {(tuple(row["prompt_ids"]), row["copy"], tuple(row["answer_ids"])) for row in read_rollouts(output)}
    assert before <= after, "finished answers stay"
    assert summary.generators["target"].rollouts == 2 * len(rows)
    told = any("the prompts have changed" in line for line in said.lines)
    assert told == (change != "reordered")
    shards = sorted(path.name for path in output.glob("*.parquet"))
    generate(small(folder, output, prompts))
    assert sorted(path.name for path in output.glob("*.parquet")) == shards, "nothing is left to do"


def test_a_grown_file_killed_in_the_middle_goes_on(folder, tmp_path, monkeypatch):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out"
    write_rows(prompts, numbered(20))
    generate(small(folder, output, prompts))
    write_rows(prompts, numbered(20) + numbered(20, 100))
    from specdistill.distill.answers import shards

    original, calls = shards._answer, iter(range(100))

    def breaking(*arguments):
        if next(calls) == 3:
            raise ZeroDivisionError
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(shards, "_answer", breaking)
        generate(small(folder, output, prompts))
    summary = generate(small(folder, output, prompts, rollouts_per_prompt=3))
    assert summary.generators["target"].rollouts == 120
    assert set(answered(output, load_prompts(str(prompts)), load_model(str(folder / "target")).tokenizer)) == {3}


def test_a_grown_file_goes_on_on_ray(folder, tmp_path):
    ray = pytest.importorskip("ray")
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out"
    write_rows(prompts, numbered(20))
    generate(small(folder, output, prompts))
    write_rows(prompts, numbered(3, 100) + numbered(20))
    try:
        summary = generate(small(folder, output, prompts, ray="local", ray_workers=1))
    finally:
        ray.shutdown()
    assert summary.generators["target"].rollouts == 46
    assert set(answered(output, load_prompts(str(prompts)), load_model(str(folder / "target")).tokenizer)) == {2}


# ---- annotate


def test_labels_of_a_grown_set_are_completed_and_of_a_changed_one_refused(folder, tmp_path, monkeypatch):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "labels"
    write_rows(prompts, prompt_rows(20))
    config = annotate_config(folder, output, rollouts=None, prompts=str(prompts))
    annotate(config)
    write_rows(prompts, prompt_rows(23))
    assert annotate(config).answers == 23
    assert len(read_rollouts(output)) == 23, "the last three were lost"
    monkeypatch.setattr("specdistill.models.load.load_model", lambda *_, **__: pytest.fail("the target was loaded"))
    write_rows(prompts, prompt_rows(24)[1:])
    with pytest.raises(OutputError, match=r"train-00000\.parquet labels other answers"):
        annotate(config)
    write_rows(prompts, prompt_rows(20))
    with pytest.raises(OutputError, match="labels other answers"):
        annotate(config)


# ---- train-draft


def cut_off(config, monkeypatch):
    """Trains until an error before step 6."""

    def breaking(step, examples):
        if step == 6:
            raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        before_each_step(patch, breaking)
        train_draft(config)


def test_a_run_is_not_resumed_on_other_prompts(folder, tmp_path, monkeypatch):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out"
    write_rows(prompts, prompt_rows())
    config = train_config(folder, output, prompts=str(prompts), method="seqkd", resume=True)
    cut_off(config, monkeypatch)
    write_rows(prompts, prompt_rows(26))
    with monkeypatch.context() as patch:
        patch.setattr("specdistill.models.load.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
        with pytest.raises(OutputError, match=r"prompts.jsonl has changed since the run in .* began"):
            train_draft(config)
    write_rows(prompts, prompt_rows())
    (output / "prompts.sha256").unlink()
    assert train_draft(config).steps == 8, "a run of an older version has no such file"


def test_a_run_is_not_resumed_on_other_texts(folder, tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i % 60}" for i in range(300)))
    config = train_config(folder, tmp_path / "out", method="sft", text=str(text), resume=True)
    cut_off(config, monkeypatch)
    text.write_text(" ".join(f"w{i % 59}" for i in range(300)))
    with pytest.raises(DataError, match="no longer those of the checkpoint"):
        train_draft(config)


# ---- --rollouts


def trained_on(monkeypatch):
    """Everything that runs in this process train on, in order."""
    seen = []
    before_each_step(monkeypatch, lambda step, examples: seen.extend(examples))
    return seen


def test_an_inserted_line_costs_no_rollout(folder, tmp_path, monkeypatch):
    """Answers were found by line number: one line in front, and 38 of 78 were used without a word."""
    prompts = tmp_path / "prompts.jsonl"
    write_rows(prompts, numbered(30))
    generate(small(folder, tmp_path / "answers", prompts))
    write_rows(prompts, numbered(1, 200) + numbered(30))
    used = []
    original = build.fixed_sequences

    def kept(inputs):
        found = original(inputs)
        used.extend(found.examples)
        return found

    monkeypatch.setattr(build, "fixed_sequences", kept)
    said = Said()
    config = train_config(
        folder, tmp_path / "out", prompts=str(prompts), rollouts=str(tmp_path / "answers"), method="seqkd", steps=4
    )
    train_draft(config, said)
    tokenizer = load_model(str(folder / "target")).tokenizer
    text = {prompt.id: tuple(encode(prompt, tokenizer)) for prompt in load_prompts(str(prompts))}
    # 31 prompts, 6 of them held out; the inserted one has no answers.
    assert len(used) >= 2 * (31 - 6 - 1) and all(text[example.prompt_id] == example.prompt_ids for example in used)
    given = {(tuple(row["prompt_ids"]), tuple(row["answer_ids"])) for row in read_rollouts(tmp_path / "answers")}
    assert {(example.prompt_ids, example.answer_ids) for example in used} <= given
    (line,) = [line for line in said.lines if "training prompts" in line and "warning" not in line]
    total = len({example.prompt_id for example in used})
    assert f"{len(used)} answers to {total} of " in line


def test_missing_answers_another_target_and_another_template_are_said(folder, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    write_rows(prompts, numbered(20))
    generate(small(folder, tmp_path / "answers", prompts))
    write_rows(prompts, numbered(24))
    save(make_model(layers=3), tmp_path / "other")
    said = Said()
    config = train_config(
        folder, tmp_path / "out", prompts=str(prompts), rollouts=str(tmp_path / "answers"), method="seqkd", steps=4,
        target=str(tmp_path / "other"),
    )  # fmt: skip
    train_draft(config, said)
    assert any("has no answer to" in line and "they are not trained on" in line for line in said.lines)
    assert any(f"holds answers by {folder / 'target'}, not by --target {tmp_path / 'other'}" in x for x in said.lines)
    assert not any("another chat template" in line for line in said.lines)
    template = tmp_path / "other" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<bot> ", "<bot> <bot> "))
    with pytest.raises(DataError, match="answers none of the training prompts"):
        train_draft(config.replace(output=str(tmp_path / "out2")))


def test_labels_by_another_target_are_said(folder, tmp_path):
    generate(small(folder, tmp_path / "answers", folder / "prompts.jsonl"))
    annotate(annotate_config(folder, tmp_path / "labels", rollouts=str(tmp_path / "answers")))
    save(make_model(layers=3, seed=9), tmp_path / "other")
    warning = f"--soft-labels holds the distributions of {folder / 'target'}, not of --target {tmp_path / 'other'}"
    for target, warned in ((tmp_path / "other", True), (folder / "target", False)):
        said = Said()
        config = train_config(
            folder, tmp_path / f"out-{warned}", soft_labels=str(tmp_path / "labels"), target=str(target), steps=2,
            target_fraction=1.0,
        )  # fmt: skip
        train_draft(config, said)
        assert any(warning in line for line in said.lines) == warned


def row(name, ids, copy, answer=(7, 1)):
    return {"prompt_id": name, "prompt_ids": ids, "answer_ids": list(answer), "provenance": [3] * len(answer)} | (
        {} if copy is None else {"copy": copy}
    )


def test_prompts_of_one_text_share_their_answers_one_to_one():
    prompts = [Prompt(name, ({"role": "user", "content": "x"},)) for name in "123"]
    encoded = [[8], [5, 6], [5, 6]]
    rows = [row("1", [5, 6], 0), row("2", [5, 6], 0), row("9", [4], 0)]
    assert prompts_of(rows, prompts, encoded) == ["3", "2", None], "own name first, then one without answers"


def test_an_answer_that_two_runs_wrote_counts_once():
    prompts = [Prompt("1", ({"role": "user", "content": "x"},))]
    rows = [row("1", [5], 0), row("1", [5], 0), row("1", [5], 1, (8, 1)), row("0", [5], 0, (9, 1))]
    chosen = select_rows(rows, Path("x"), prompts, [[5]], 65)
    assert [number for number, _ in chosen] == [0, 2, 3]
    assert [number for number, _ in select_rows(rows, Path("x"), prompts, [[5]], 65, copies=1)] == [0]
    foreign = [row("1", [5], None), row("1", [5], None)]
    assert len(select_rows(foreign, Path("x"), prompts, [[5]], 65)) == 2, "files without copies are taken as they are"


# ---- one run per output

HOLDER = """
import sys, time
from pathlib import Path
from specdistill.files import locks
with locks.output_lock(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/out."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def commands(folder, output):
    target = ["--target", str(folder / "target"), "--output", str(output)]
    prompts = ["--prompts", str(folder / "prompts.jsonl")]
    return {
        "generate": ["generate", *target, *prompts, "--max-new-tokens", "4"],
        "annotate": ["annotate", *target, *prompts, "--top-k", "4"],
        "init-draft": ["init-draft", *target, *prompts, "--layers", "1", "--choose", "even"],
        "train-draft": ["train-draft", *target, *prompts, "--draft", str(folder / "draft"), "--steps", "2",
                        "--eval-every", "1", "--max-new-tokens", "4", "--rollouts-per-prompt", "1"],
        "export": ["export", *target, "--draft", str(folder / "draft"), "--format", "vllm"],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["generate", "annotate", "init-draft", "train-draft", "export"])
def test_a_second_run_on_one_output_is_refused(folder, tmp_path, holder, name, capsys):
    """Both passed the check and mixed their files: weights of one seed under the settings of the other."""
    output = tmp_path / "out"
    assert main(commands(folder, output)[name]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{output} is in use by another run (process {holder.pid} on " in line and "another --output" in line
    assert [path.name for path in output.iterdir()] == [".specdistill.lock"], "nothing was written"
    # kill -9 leaves the file behind, but not the lock.
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert main(commands(folder, output)[name]) == 0
    assert not (output / ".specdistill.lock").exists()


def test_two_runs_started_together_leave_the_files_of_one(folder, tmp_path):
    processes = {}
    for seed in ("1", "2"):
        command = [*commands(folder, tmp_path / "out")["train-draft"], "--seed", seed]
        processes[seed] = subprocess.Popen(
            [sys.executable, "-m", "specdistill", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    ends = {seed: (process.communicate(timeout=300)[1], process.returncode) for seed, process in processes.items()}
    refused = {seed: error for seed, (error, code) in ends.items() if code == 2}
    done = [seed for seed, (_, code) in ends.items() if code == 0]
    assert len(refused) == len(done) == 1, ends
    (error,) = refused.values()
    assert "is in use by another run" in error or "already holds files" in error
    settings = (tmp_path / "out" / "specdistill.yaml").read_text()
    assert f"seed: {done[0]}" in settings and json.loads((tmp_path / "out" / "summary.json").read_text())


def test_a_bench_holds_the_names_of_its_files(folder, tmp_path, capsys):
    pair = ["bench", "--target", str(folder / "target"), "--draft", str(folder / "draft")]
    command = [*pair, "--prompts", str(folder / "prompts.jsonl"), "--json", str(tmp_path / "r.json")]
    with locks.file_lock(tmp_path / "r.json", "--json", print):
        assert main(command) == 2
    assert "r.json is being written by another run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said_and_does_not_stop_the_run(tmp_path, monkeypatch):
    import fcntl

    def refuse(descriptor, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = []
    with locks.output_lock(tmp_path / "out", said.append):
        assert (tmp_path / "out").is_dir()
    assert len(said) == 1 and "no locks (No locks available); start no other run on this output" in said[0]
    assert list(tmp_path.iterdir()) == [], "neither lock nor directory is left"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_on_a_file_that_lost_its_name_holds_nothing(tmp_path, monkeypatch, replaced):
    """The run before removes the file between open and lock; a third run may have made it again."""
    output, lock = tmp_path / "out", locks._lock
    named = output / ".specdistill.lock"

    def late(descriptor):
        monkeypatch.setattr(locks, "_lock", lock)
        named.unlink()
        if replaced:
            named.touch()
        return lock(descriptor)

    monkeypatch.setattr(locks, "_lock", late)
    with locks.output_lock(output, print):
        assert named.read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(OutputError, match="is in use by another run"), locks.output_lock(output, print):
            pass


def test_a_lock_that_is_released_while_another_waits_to_open_it_is_not_shared(tmp_path):
    """The file is removed at the end: a process that opened it just before must not hold a lock on no name."""
    code = HOLDER.replace("time.sleep(300)", "pass")
    for _ in range(5):
        with locks.output_lock(tmp_path / "out", print):
            late = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True)
            assert late.returncode and "is in use" in late.stderr
    started = time.monotonic()
    with locks.output_lock(tmp_path / "out", print):
        assert time.monotonic() - started < 60
