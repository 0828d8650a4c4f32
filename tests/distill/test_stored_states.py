"""Heads trained without the target: `annotate --features`, its files, and `train-draft --soft-labels`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import make_model, save
from tiny_runs import (
    Said,
    annotate_config,
    any_config,
    before_each_step,
    cut_config,
    generate_config,
    history,
    same_weights,
    spoil_loss,
    train,
    train_config,
    write_folder,
)

from specdistill import PlanConfig, TrainConfig, annotate, generate, init_draft, plan
from specdistill.cli import main
from specdistill.data.features import feature_bytes
from specdistill.distill.answers import label_room
from specdistill.distill.answers.shards import find_shards, read_rollouts
from specdistill.distill.reproduce import reproduce
from specdistill.distill.training.checkpoints import newest_step
from specdistill.distill.training.head_loss import HeadLoss
from specdistill.distill.training.head_start import check_head
from specdistill.errors import ConfigError, DataError, IncompatibleModelsError, OutputError, SpecdistillError
from specdistill.files import parquet
from specdistill.models.pair import find_pair
from specdistill.settings.parts import defaults

RUN = {"method": "distillspec", "steps": 6, "eval_every": 3, "unroll": 2, "keep": "last"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target and a head, answers, and labels with the states that the head reads."""
    place = write_folder(tmp_path_factory.mktemp("heads"), {"target": make_model(layers=7)})
    init_draft(cut_config(place, place / "draft", kind="eagle3", layers=None, vocab_keep=40))
    generate(generate_config(place, place / "answers", rollouts_per_prompt=2, shard_size=8))
    annotate(annotate_config(place, place / "labels", features="auto"))
    return place


def files_of(directory: Path) -> dict[str, bytes]:
    """Shards and states by name."""
    found = [*directory.glob("*.parquet"), *(directory / "features").iterdir()]
    return {path.name: path.read_bytes() for path in found}


def test_a_run_from_the_disk_is_a_run_with_the_target_in_memory(folder, tmp_path):
    annotate(annotate_config(folder, tmp_path / "labels", features="float32", top_k=1))
    train(folder, tmp_path / "memory", rollouts=str(folder / "answers"), **RUN)
    train(folder, tmp_path / "disk", soft_labels=str(tmp_path / "labels"), **RUN)
    for live, stored in zip(history(tmp_path / "memory"), history(tmp_path / "disk"), strict=True):
        assert live.keys() == stored.keys() and {"heldout_tokens_per_call", "heldout_alpha_sampled"} <= live.keys()
        for name, value in live.items():
            assert stored[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)


def test_no_weights_of_the_target_are_read(folder, tmp_path):
    bare = tmp_path / "target"
    shutil.copytree(folder / "target", bare, ignore=shutil.ignore_patterns("*.safetensors"))
    labels = {"soft_labels": str(folder / "labels")}
    for name, target in (("with", folder / "target"), ("without", bare)):
        train(folder, tmp_path / name, target=str(target), **labels, **RUN)
    assert same_weights(tmp_path / "with", tmp_path / "without")
    start, trained = (load_file(path / "model.safetensors") for path in (folder / "draft", tmp_path / "without"))
    assert not torch.equal(start["fc.weight"], trained["fc.weight"]) and "embed_tokens.weight" not in trained


def test_a_tied_embedding_is_stored_once(folder, tmp_path):
    models = write_folder(tmp_path / "models", {"target": make_model(layers=4, tied=True)})
    init_draft(cut_config(models, models / "draft", kind="eagle3", layers=None, vocab_keep=40))
    generate(generate_config(models, models / "answers"))
    annotate(annotate_config(models, models / "labels", features="float32"))
    assert list(load_file(models / "labels" / "features" / "target.safetensors")) == ["embedding"]
    train(models, tmp_path / "memory", rollouts=str(models / "answers"), **RUN)
    train(models, tmp_path / "disk", soft_labels=str(models / "labels"), **RUN)
    live, stored = (history(tmp_path / name)[-1] for name in ("memory", "disk"))
    assert stored["loss"] == pytest.approx(live["loss"], rel=1e-4)


def test_other_drafts_are_trained_from_the_same_directory(folder, tmp_path):
    save(make_model(layers=1, seed=9), tmp_path / "small")
    settings = {"method": "supervised-kd", "steps": 3, "eval_every": 3, "draft": str(tmp_path / "small")}
    annotate(annotate_config(folder, tmp_path / "plain"))
    for name, labels in (("a", folder / "labels"), ("b", tmp_path / "plain")):
        train(folder, tmp_path / name, soft_labels=str(labels), **settings)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "plain" / "features").exists(), "nothing is stored that was not asked for"


def test_the_size_is_said_beforehand_and_kept_to(folder, tmp_path):
    said, rows = Said(), read_rollouts(folder / "answers")
    summary = annotate(annotate_config(folder, tmp_path / "out", features="float16"), said)
    answer = sum(len(row["answer_ids"]) for row in rows)
    tokens = answer + sum(len(row["prompt_ids"]) for row in rows)
    size = feature_bytes(tokens, answer, 32, 2)
    assert size == 2 * 32 * (3 * tokens + answer)
    line = next(line for line in said.lines if "states for a head" in line)
    assert f"{size / 1e6:.1f} MB" in line and "of 32 numbers of 2 bytes" in line
    arrays = [np.load(path) for path in (tmp_path / "out" / "features").glob("*.npy")]
    assert sum(array.nbytes for array in arrays) == size and {str(array.dtype) for array in arrays} == {"float16"}
    outer = load_file(tmp_path / "out" / "features" / "target.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in outer.items()} == {"embedding": (65, 32), "head": (65, 32)}
    assert summary.feature_bytes == sum(path.stat().st_size for path in (tmp_path / "out" / "features").iterdir())
    # `plan` estimates the same from sizes alone, as one long answer.
    sizes = {"prompts": 1, "rollouts_per_prompt": 1, "prompt_tokens": tokens - answer, "answer_tokens": answer}
    shape = {"target_width": 32, "vocab_size": 65, "dtype": "float32", "label_top_k": 8}
    planned = plan(PlanConfig.flat(target_params="2M", draft_params="1M", gpus=1, **sizes, **shape)).kinds["head"].disk
    assert planned == size + sum(tensor.nbytes for tensor in outer.values()) + summary.planned_bytes_per_token * answer


def test_a_disk_without_room_is_found_before_the_target_is_loaded(folder, tmp_path, monkeypatch):
    labels = sum(len(row["answer_ids"]) for row in read_rollouts(folder / "answers")) * 34
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, labels + 10_000))
    monkeypatch.setattr("specdistill.models.load.load_model", lambda *_, **__: pytest.fail("the target was loaded"))
    room = r"may take \d\.\d\d MB more, but .* has 0\.0\d MB free; .* "
    room += "or leave --features away and train the head with the target in memory"
    with pytest.raises(OutputError, match=room) as caught:
        annotate(annotate_config(folder, tmp_path / "out", features="auto"))
    needed, there = re.findall(r"\d\.\d\d", str(caught.value))
    assert float(needed) > float(there)
    # What is there already needs no more room.
    monkeypatch.setattr(label_room, "feature_file_bytes", lambda path: 10**9)
    with pytest.raises(pytest.fail.Exception, match="the target was loaded"):
        annotate(annotate_config(folder, tmp_path / "out", features="auto"))


def test_a_number_beyond_float16_is_refused_and_bfloat16_takes_it(folder, tmp_path):
    large = make_model(layers=3)
    with torch.no_grad():
        large.model.get_input_embeddings().weight.mul_(1e6)
    target = str(save(large, tmp_path / "large"))
    given = {"target": target, "feature_layers": (0, 1, 2)}
    with pytest.raises(DataError, match=r"reaches .*e\+05, more than float16 holds; set --features bfloat16"):
        annotate(annotate_config(folder, tmp_path / "out", features="auto", **given))
    annotate(annotate_config(folder, tmp_path / "other", features="bfloat16", **given))
    assert np.load(tmp_path / "other" / "features" / "train-00000.npy").dtype == np.uint16


def test_auto_keeps_the_bits_of_16_bit_weights(folder, tmp_path):
    annotate(annotate_config(folder, tmp_path / "out", features="auto", dtype="bfloat16"))
    assert np.load(tmp_path / "out" / "features" / "train-00000.npy").dtype == np.uint16


def test_killed_at_any_moment_no_state_is_lost(folder, tmp_path):
    command = [
        *(sys.executable, "-m", "specdistill", "annotate", "--target", str(folder / "target"), "--top-k", "8"),
        *("--rollouts", str(folder / "answers"), "--output", str(tmp_path / "cut"), "--features", "auto"),
    ]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list(tmp_path.glob("cut/features/train*")))
        while process.poll() is None and len(list(tmp_path.glob("cut/features/train*"))) <= before:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert files_of(tmp_path / "cut") == files_of(folder / "labels"), "and nothing that a kill has left"


def test_a_cut_annotation_goes_on_with_the_states_that_are_missing(folder, tmp_path, monkeypatch):
    written = []

    def interrupt(config, target, rows, *others):
        written.append(len(rows))
        if len(written) == 3:
            raise KeyboardInterrupt
        return original(config, target, rows, *others)

    from specdistill.distill.answers import label_writer

    original = label_writer.label_rows
    monkeypatch.setattr(label_writer, "label_rows", interrupt)
    config = annotate_config(folder, tmp_path / "out", features="auto")
    with pytest.raises(KeyboardInterrupt):
        annotate(config)
    assert len(list((tmp_path / "out" / "features").glob("*.npy"))) == 2
    # What a kill would have left; it is compared below.
    (tmp_path / "out" / "features" / ".train-00002.npy.1.tmp").write_bytes(b"half")
    annotate(config)
    # Six parts: two are whole, and the third is made again.
    assert len(written) == 3 + 4
    assert files_of(tmp_path / "out") == files_of(folder / "labels")


def test_states_of_a_target_that_has_changed_are_not_mixed(folder, tmp_path):
    target, given = tmp_path / "target", {"features": "auto", "target": str(tmp_path / "target")}
    shutil.copytree(folder / "target", target)
    annotate(annotate_config(folder, tmp_path / "out", **given))
    save(make_model(layers=7, seed=3), target)
    with pytest.raises(OutputError, match="as it was before its files changed; choose another --output"):
        annotate(annotate_config(folder, tmp_path / "out", **given))


def test_a_resumed_run_is_the_same_run(folder, tmp_path):
    settings = {"soft_labels": str(folder / "labels")} | RUN
    train(folder, tmp_path / "whole", **settings)

    class Stop(Exception):
        pass

    def stop(step, examples):
        if step == 5:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        before_each_step(patch, stop)
        train(folder, tmp_path / "cut", **settings)
    train(folder, tmp_path / "cut", resume=True, **settings)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert history(tmp_path / "whole") == history(tmp_path / "cut")


def test_killed_while_it_trains_a_head_goes_on(folder, tmp_path):
    settings = {"soft_labels": str(folder / "labels")} | RUN | {"steps": 12, "eval_every": 2}
    train(folder, tmp_path / "whole", **settings)
    config = train_config(folder, tmp_path / "cut", resume=True, **settings)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.to_flat()))
    command = [sys.executable, "-m", "specdistill", "train-draft", "--config", str(tmp_path / "run.yaml")]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = newest_step(tmp_path / "cut") or 0
        while process.poll() is None and (newest_step(tmp_path / "cut") or 0) <= before:
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    if not (tmp_path / "cut" / "summary.json").exists():
        assert subprocess.run(command, capture_output=True).returncode == 0
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert history(tmp_path / "whole") == history(tmp_path / "cut")


def test_a_failed_step_is_computed_again_without_the_target(folder, tmp_path, monkeypatch):
    bare = tmp_path / "target"
    shutil.copytree(folder / "target", bare, ignore=shutil.ignore_patterns("*.safetensors"))
    values = spoil_loss(monkeypatch, 2, HeadLoss)
    with pytest.raises(SpecdistillError, match="failed-step-000002"):
        train(folder, tmp_path / "out", target=str(bare), soft_labels=str(folder / "labels"), **RUN)
    monkeypatch.undo()
    loss, norm = reproduce(tmp_path / "out" / "failed-step-000002")
    assert loss == pytest.approx(values[1], rel=1e-5) and norm > 0


def test_blocks_of_raw_text_have_states_too(folder, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(f"w{i % 60} w{(3 * i) % 60} w{(i + 5) % 60}" for i in range(200)))
    text = {"rollouts": None, "text": str(tmp_path / "text.txt"), "text_block": 24}
    annotate(annotate_config(folder, tmp_path / "labels", features="auto", **text))
    train(folder, tmp_path / "out", soft_labels=str(tmp_path / "labels"), **RUN)
    assert history(tmp_path / "out")[-1]["tokens_seen"] > 200


def refusal(folder, labels, **settings) -> str:
    """The line with which a head and a directory of labels are refused."""
    config = any_config(soft_labels=str(labels), **settings)
    found = find_pair(settings.get("target", str(folder / "target")), str(folder / "draft"))
    with pytest.raises((ConfigError, DataError)) as caught:
        check_head(found, config.method, config.to_flat(), defaults(TrainConfig))
    return str(caught.value)


def test_labels_without_states_are_refused_before_anything_is_written(folder, tmp_path, capsys):
    annotate(annotate_config(folder, tmp_path / "labels"))
    line = (
        "holds no hidden states of the target, and --draft .* is an EAGLE-3 head, which reads them; annotate again with"
    )
    with pytest.raises(DataError, match=line):
        train(folder, tmp_path / "out", soft_labels=str(tmp_path / "labels"), **RUN)
    assert not (tmp_path / "out").exists()
    words = [f"--{name}={folder / name}" for name in ("target", "draft")]
    words += [f"--prompts={folder / 'prompts.jsonl'}", f"--output={tmp_path / 'out'}"]
    assert main(["train-draft", *words, f"--soft-labels={tmp_path / 'labels'}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_states_of_other_layers_are_refused(folder, tmp_path):
    annotate(annotate_config(folder, tmp_path / "labels", features="auto", feature_layers=(4, 3, 2)))
    assert "the states after layers 4 3 2, and --draft" in (line := refusal(folder, tmp_path / "labels"))
    assert "reads those after 2 3 4; annotate again with --feature-layers 2 3 4" in line


def test_a_target_of_other_layers_is_refused_by_the_head_without_its_weights(folder, tmp_path):
    other = save(make_model(layers=9), tmp_path / "target")
    (other / "model.safetensors").unlink()
    with pytest.raises(IncompatibleModelsError, match=r"layers 2, 3, 4 of 7 .* has 9; a head works for one target"):
        refusal(folder, folder / "labels", target=str(other))


def test_states_of_another_target_are_refused(folder, tmp_path):
    other = save(make_model(layers=7, seed=3), tmp_path / "target")
    line = refusal(folder, folder / "labels", target=str(other))
    assert f"holds hidden states of {folder / 'target'} as its files were then" in line
    assert "is another model; name that target, or annotate again with this one" in line


@pytest.mark.parametrize("damage", ["missing", "short", "other", "nothing", "archive", "float64"])
def test_states_that_do_not_fit_their_answers_are_refused(folder, tmp_path, damage):
    shutil.copytree(folder / "labels", tmp_path / "labels")
    path = tmp_path / "labels" / "features" / find_shards(folder / "labels")[1].with_suffix(".npy").name
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-64])
    elif damage == "nothing":
        path.write_bytes(b"")
    elif damage == "archive":
        with path.open("wb") as file:
            np.savez(file, np.zeros(3))
    elif damage == "float64":
        np.save(path, np.load(path).astype(np.float64))
    else:
        np.save(path, np.load(path)[:-1])
    with pytest.raises(DataError, match=r"train-00001\.npy .*; the same 'specdistill annotate' completes it"):
        train(folder, tmp_path / "out", soft_labels=str(tmp_path / "labels"), **RUN)
    # The remedy works: a shard without its states is made again.
    annotate(annotate_config(folder, tmp_path / "labels", features="auto"))
    assert files_of(tmp_path / "labels") == files_of(folder / "labels")


@pytest.mark.parametrize("whose", ["target", "layers", "answers"])
def test_states_of_another_set_are_refused(folder, tmp_path, whose):
    """A file of the same size, of a copied or mixed-up directory."""
    shutil.copytree(folder / "labels", tmp_path / "labels")
    shards = find_shards(tmp_path / "labels")
    name = f"features/{shards[1].stem}.npy"
    if whose == "answers":
        # As many tokens of other answers: the same rows in another order.
        rows = [{**row} for row in parquet.read(shards[1])]
        turned = tmp_path / "turned"
        turned.mkdir()
        parquet.write(turned / "train-00000.parquet", rows[::-1])
        annotate(annotate_config(folder, tmp_path / "other", rollouts=str(turned), features="auto"))
        shutil.copy(tmp_path / "other" / "features" / "train-00000.npy", tmp_path / "labels" / name)
    else:
        other = save(make_model(layers=7, seed=3), tmp_path / "target") if whose == "target" else folder / "target"
        given = {"target": str(other)} if whose == "target" else {"feature_layers": (1, 2, 3)}
        annotate(annotate_config(folder, tmp_path / "other", features="auto", **given))
        shutil.copy(tmp_path / "other" / name, tmp_path / "labels" / name)
    with pytest.raises(DataError, match=r"train-00001\.npy holds hidden states of other answers.*specdistill annotate"):
        train(folder, tmp_path / "out", soft_labels=str(tmp_path / "labels"), **RUN)
    annotate(annotate_config(folder, tmp_path / "labels", features="auto"))
    assert files_of(tmp_path / "labels") == files_of(folder / "labels")


def test_states_without_a_hash_are_still_read(folder, tmp_path):
    """As version 0.1's first sets had them."""
    shutil.copytree(folder / "labels", tmp_path / "labels")
    for path in (tmp_path / "labels" / "features").glob("*.npy"):
        np.save(path, np.load(path))
    train(folder, tmp_path / "old", soft_labels=str(tmp_path / "labels"), **RUN)
    train(folder, tmp_path / "new", soft_labels=str(folder / "labels"), **RUN)
    assert same_weights(tmp_path / "old", tmp_path / "new")


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_lost_embedding_of_the_target_is_written_again(folder, tmp_path, damage):
    """Whose the states beside it are is unknown then: they are made again, too."""
    shutil.copytree(folder / "labels", tmp_path / "labels")
    path = tmp_path / "labels" / "features" / "target.safetensors"
    stale = path.with_name("train-00001.npy")
    np.save(stale, np.zeros_like(np.load(stale)))
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-64])
        with pytest.raises(DataError, match=r"remove it, and the same 'specdistill annotate' completes it"):
            train(folder, tmp_path / "out", soft_labels=str(tmp_path / "labels"), **RUN)
    path.unlink()
    remedy = r"target\.safetensors is missing; the same 'specdistill annotate' completes it"
    with pytest.raises(DataError, match=remedy):
        train(folder, tmp_path / "out", soft_labels=str(tmp_path / "labels"), **RUN)
    annotate(annotate_config(folder, tmp_path / "labels", features="auto"))
    assert files_of(tmp_path / "labels") == files_of(folder / "labels")


def test_other_layers_may_follow_a_command_that_was_killed_before_its_first_shard(folder, tmp_path):
    other = annotate_config(folder, tmp_path / "labels", features="auto", feature_layers=(2, 4, 6))
    annotate(other)
    for shard in (tmp_path / "labels").glob("*.parquet"):
        shard.unlink()
    annotate(annotate_config(folder, tmp_path / "labels", features="auto"))
    assert files_of(tmp_path / "labels") == files_of(folder / "labels")
    train(folder, tmp_path / "out", soft_labels=str(tmp_path / "labels"), **RUN)


def test_a_state_that_is_no_number_is_refused(folder, tmp_path, monkeypatch):
    from specdistill.distill.answers import label_writer

    original = label_writer.text_states

    def spoiled(*arguments):
        states = original(*arguments)
        states[0].aux[0, 0] = float("inf")
        return states

    monkeypatch.setattr(label_writer, "text_states", spoiled)
    for features in ("bfloat16", "float16"):
        with pytest.raises(DataError, match="is not finite, as the target computes it in float32; set another --dtype"):
            annotate(annotate_config(folder, tmp_path / features, features=features))


def test_a_target_of_one_layer_has_no_states_for_a_head(folder, tmp_path):
    target = str(save(make_model(layers=1), tmp_path / "one"))
    with pytest.raises(ConfigError, match="has 1 layer, and a head reads three hidden states"):
        annotate(annotate_config(folder, tmp_path / "labels", features="auto", target=target))
    with pytest.raises(
        IncompatibleModelsError, match=r"layers 2, 3, 4 of 7 .* has 1; a head works for one target only"
    ):
        train(folder, tmp_path / "out", target=target, **RUN)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_layers": (1, 2, 3)}, r"--feature-layers 1 2 3 has no effect here: it goes with --features"),
        ({"features": "auto", "feature_layers": (1, 2)}, "--feature-layers takes three layers, got 2"),
        (
            {"features": "auto", "target_system": "s.txt"},
            "must be what the target sees when it is served; leave --target-",
        ),
    ],
)
def test_settings_without_sense_are_refused(folder, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        annotate_config(folder, tmp_path / "out", **settings)


def test_layers_that_the_target_lacks_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"--feature-layers 2 4 8: --target .* has 7 layers; name 0 to 7"):
        annotate(annotate_config(folder, tmp_path / "out", features="auto", feature_layers=(2, 4, 8)))
