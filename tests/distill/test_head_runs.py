"""Runs that make and train a head, end to end."""

from __future__ import annotations

import json
import re

import pytest
import torch
from by_hand import watched_run
from safetensors.torch import load_file
from tiny_models import make_model
from tiny_runs import (
    any_config,
    before_each_step,
    cut_config,
    generate_config,
    history,
    same_weights,
    spoil_loss,
    train,
    write_folder,
)
from transformers import TrainerCallback

from specdistill import TrainConfig, generate, init_draft, load_model
from specdistill.decoding import Sampling, generate_plain
from specdistill.distill.reproduce import reproduce
from specdistill.distill.training.head_loss import HeadLoss
from specdistill.distill.training.head_start import check_head
from specdistill.errors import ConfigError, ModelError, SpecdistillError
from specdistill.models.pair import find_pair
from specdistill.serving.online import RejectionLog
from specdistill.settings.parts import defaults

DEFAULTS = defaults(TrainConfig)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = write_folder(
        tmp_path_factory.mktemp("heads"), {"target": make_model(layers=7), "small": make_model(layers=1)}
    )
    init_draft(cut_config(place, place / "draft", kind="eagle3", layers=None, vocab_keep=40))
    return place


def test_init_draft_writes_a_head_of_the_ids_that_the_target_uses(folder):
    record = json.loads((folder / "draft" / "init_draft.json").read_text())
    weights = load_file(folder / "draft" / "model.safetensors")
    ids = weights["d2t"] + torch.arange(40)
    target = load_file(folder / "target" / "model.safetensors")
    assert torch.equal(weights["lm_head.weight"], target["lm_head.weight"][ids])
    assert 1 in ids, "the end of an answer is always kept"
    assert (record["kind"], record["layers"], record["head_size"]) == ("eagle3", [2, 3, 4], 40)
    assert (folder / "draft" / "tokenizer.json").is_file()


def test_a_head_is_trained_and_watched_by_tokens_per_call(folder, tmp_path):
    summary = train(folder, tmp_path / "out", steps=24, eval_every=8, unroll=2, keep="last")
    assert summary.watched == "tokens per target call"
    assert {"tokens_per_call", "acceptance_at_1", "acceptance_at_2", "sampled"} <= set(summary.gain)
    first, last = history(tmp_path / "out")[0], history(tmp_path / "out")[-1]
    assert last["heldout_tokens_per_call"] > first["heldout_tokens_per_call"] >= 1
    trained, start = (load_file(place / "model.safetensors") for place in (tmp_path / "out", folder / "draft"))
    assert trained.keys() == start.keys() and torch.equal(trained["d2t"], start["d2t"])
    assert not torch.equal(trained["fc.weight"], start["fc.weight"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert '"method": "eagle3"' in card and "assistant_model" not in card
    assert "library_name" not in card and card.startswith("---\ntags: ") and "\n\n\n" not in card


FEW = {"method": "supervised-kd", "steps": 6, "eval_every": 3, "unroll": 2, "keep": "last"}


def test_out_of_memory_names_what_a_head_takes(folder, tmp_path, monkeypatch):
    def full(step, examples):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        before_each_step(patch, full)
        with pytest.raises(SpecdistillError, match=r"--micro-batch-size 4 and --resume.* a lower --unroll or") as error:
            train(folder, tmp_path / "out", **FEW)
    assert "--gradient-checkpointing" not in str(error.value)


def test_a_head_that_learns_nothing_is_written_as_it_began(folder, tmp_path):
    summary = train(folder, tmp_path / "out", **FEW | {"learning_rate": 1e-30, "keep": "best"})
    assert summary.kept_step == 0
    assert same_weights(folder / "draft", tmp_path / "out")


def test_a_resumed_run_is_the_same_run(folder, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 4:
                raise KeyboardInterrupt

    train(folder, tmp_path / "whole", **FEW)
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "cut", callbacks=[Stop()], **FEW)
    train(folder, tmp_path / "cut", resume=True, **FEW)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    whole, cut = (history(tmp_path / name) for name in ("whole", "cut"))
    assert whole == cut


def test_micro_batches_change_rounding_alone(folder, tmp_path):
    for name, size in (("whole", 0), ("small", 3)):
        train(folder, tmp_path / name, micro_batch_size=size, **FEW)
    whole, small = (history(tmp_path / name)[-1] for name in ("whole", "small"))
    assert small["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert small["heldout_tokens_per_call"] == pytest.approx(whole["heldout_tokens_per_call"], rel=1e-3)


def test_stored_rollouts_and_skds_text_are_trained_on(folder, tmp_path):
    generate(generate_config(folder, tmp_path / "answers"))
    seen = watched_run(folder, tmp_path / "out", rollouts=str(tmp_path / "answers"), unroll=2, steps=3, eval_every=3)
    assert seen.writers == [{2}] * 3
    together = watched_run(folder, tmp_path / "skd", method="skd", unroll=2, steps=3, eval_every=3)
    assert {2, 3} >= set.union(*together.writers) > {2}, "the head's own tokens are kept where the target lets them"


def test_a_head_learns_from_what_its_server_corrected(folder, tmp_path):
    target = load_model(str(folder / "target"))
    asked = [[3, 5 + number, 4] for number in range(24)]
    written = generate_plain(target, asked, sampling=Sampling(), max_new_tokens=12, seeds=list(range(24)))
    with RejectionLog(tmp_path / "log") as log:
        for prompt, answer in zip(asked, written, strict=True):
            for end in range(2, len(answer.token_ids), 3):
                log.log([*prompt, *answer.token_ids[:end]], 5, answer.token_ids[end], [5], [1.0])
    settings = {"method": "online", "online": str(tmp_path / "log"), "steps": 24, "eval_every": 24, "keep": "last"}
    summary = train(folder, tmp_path / "out", unroll=2, **settings)
    # The log's own distributions say 5 always: the target's, in memory, are learnt from.
    assert summary.gain["sampled"].low > 0
    assert history(tmp_path / "out")[-1]["online_records"] > 24


def test_a_failed_step_is_computed_again(folder, tmp_path, monkeypatch):
    values = spoil_loss(monkeypatch, 2, HeadLoss)
    with pytest.raises(SpecdistillError, match=r"failed-step-000002"):
        train(folder, tmp_path / "out", **FEW)
    monkeypatch.undo()
    loss, norm = reproduce(tmp_path / "out" / "failed-step-000002")
    assert loss == pytest.approx(values[1], rel=1e-5) and norm > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "gkd"}, "writes nothing alone, and --method gkd trains on the draft's own answers"),
        ({"target_fraction": 0.5}, "writes nothing alone, and --target-fraction 0.5"),
        ({"target_server": "http://h:1/v1"}, "which no server gives; leave --target-server away"),
        ({"lora_rank": 4}, "is trained whole, as it is one layer; leave --lora-rank away"),
        ({"parallel": 4}, "takes a pass for each token; leave --parallel away"),
        ({"packing": True}, "is trained on padded texts; leave --packing away"),
        ({"reward": "tiny_runs:count_w7"}, "leave --reward away"),
        ({"target_hint": "it is {answer}"}, "must be what it sees when it is served; leave --target-hint away"),
        ({"watch": "loss"}, "--watch may be auto, alpha, tokens_per_call, got loss"),
        ({"enough_alpha": 0.9}, "--enough-alpha and --tolerated-drop judge other drafts"),
    ],
)
def test_settings_that_no_head_goes_with_are_refused(folder, settings, message):
    config = any_config(**settings)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_head(find_pair(str(folder / "target"), str(folder / "draft")), config.method, config.to_flat(), DEFAULTS)


def test_a_run_refuses_before_it_loads_or_writes(folder, tmp_path):
    with pytest.raises(ConfigError, match="is an EAGLE-3 head, which is trained whole"):
        train(folder, tmp_path / "out", lora_rank=2)
    # Nothing listens there, and it is not waited for.
    with pytest.raises(ConfigError, match="which no server gives; leave --target-server away"):
        train(folder, tmp_path / "out", target_server="http://127.0.0.1:9", server_patience=60)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="--unroll 2 has no effect here: it goes with a --draft that is an EAGLE-3"):
        train(folder, tmp_path / "out", draft=str(folder / "small"), unroll=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "eagle3"}, "--layers makes a model of its own, and --kind eagle3 a head"),
        ({"own_embedding": True}, "--own-embedding goes with --kind eagle3"),
        ({"kind": "eagle3", "layers": None, "choose": "even"}, "--choose even has no effect here"),
    ],
)
def test_init_draft_refuses_what_makes_no_head(folder, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        cut_config(folder, tmp_path / "out", **settings)


def test_targets_without_such_heads_are_refused_before_they_are_loaded(folder, tmp_path):
    other = write_folder(tmp_path / "models", {"target": make_model("gpt2", layers=2)})
    with pytest.raises(ModelError, match="of type 'gpt2', for which no EAGLE-3 head"):
        init_draft(cut_config(other, tmp_path / "out", kind="eagle3", layers=None))


def test_an_embedding_of_its_own_is_trained_and_written(folder, tmp_path):
    init_draft(cut_config(folder, tmp_path / "head", kind="eagle3", layers=None, own_embedding=True))
    train(folder, tmp_path / "out", draft=str(tmp_path / "head"), **FEW)
    trained, start = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "head"))
    assert not torch.equal(trained["embed_tokens.weight"], start["embed_tokens.weight"])
    target = load_file(folder / "target" / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(start["embed_tokens.weight"], target)
    assert "d2t" not in start, "all 65 ids fit"
