"""Training on a server's rejections: what they say is learned, newest first, and bad logs are refused."""

from __future__ import annotations

import json
import threading

import pytest
import torch
from tiny_models import make_model, save

from specdistill import TrainConfig, load_model, train_draft
from specdistill.data import Example
from specdistill.data.batch import join_soft_labels
from specdistill.decoding import Sampling, SpeculativeDecoder
from specdistill.distill.sequences.online import Online
from specdistill.errors import ConfigError, DataError
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.serving.online import RejectionLog
from specdistill_kernels import SoftLabels


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    save(make_model(layers=3), folder / "target")
    save(make_model(layers=1, seed=9), folder / "draft")
    prompts = [{"prompt": f"w{i} w{(7 * i) % 60}"} for i in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return folder


def serve(files, directory, prompts=40, top=8, normalised=True):
    """A serving loop with a real decoder; what the target corrected goes into the log."""
    target, draft = load_model(str(files / "target")), load_model(str(files / "draft"))
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=3, sampling=Sampling())
    asked = [[3, 5 + i, 5 + (7 * i) % 60, 4] for i in range(prompts)]
    written = decoder.generate(asked, max_new_tokens=16, seeds=list(range(prompts)))
    with RejectionLog(directory, rows_per_file=50) as log:
        for prompt, generation in zip(asked, written, strict=True):
            ids = tuple(generation.token_ids)
            hidden = answer_hidden_states(target, [Example("x", tuple(prompt), ids, (2,) * len(ids))])[0]
            logits = target.logits(hidden).detach()
            for position, own in enumerate(generation.from_draft):
                if not own:
                    best = logits[position].topk(top)
                    mass = float(logits[position].logsumexp(0)) if normalised else None
                    log.log([*prompt, *ids[:position]], 5, ids[position], best.indices, best.values, mass)
    return log.counts.written


def run(files, output, log, **settings):
    defaults = {"heldout_prompts": 6, "max_new_tokens": 16, "steps": 40, "eval_every": 10, "learning_rate": 3e-3}
    given = {"target": str(files / "target"), "draft": str(files / "draft"), "prompts": str(files / "prompts.jsonl")}
    config = {"output": str(output), "method": "online", "online": str(log), "batch_size": 16}
    return train_draft(TrainConfig.flat(**(given | config | defaults | settings)))


@pytest.mark.parametrize("normalised", [True, False])
def test_a_draft_learns_from_what_its_server_corrected(files, tmp_path, normalised):
    assert serve(files, tmp_path / "log", normalised=normalised) > 100
    summary = run(files, tmp_path / "out", tmp_path / "log")
    assert summary["gain"]["sampled"]["ci95"][0] > 0
    last = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()][-1]
    assert last["online_records"] > 100 and last["loss"] > 0


def online(directory, **settings):
    defaults = {"vocab_size": 65, "max_context": 8, "batch_size": 4, "seed": 0, "wait_seconds": 0.2}
    return Online(directory, **(defaults | settings))


def fill(directory, numbers):
    with RejectionLog(directory) as log:
        for number in numbers:
            log.log([number] * 3, 5, 6, [6, 7], [1.0, 0.0])


def test_new_records_come_first_and_old_ones_fill_up(tmp_path):
    fill(tmp_path, range(1, 4))
    source = online(tmp_path)
    assert [each.prompt_ids[0] for each in source.next_batch(1)] == [3, 2, 1]
    fill(tmp_path, range(10, 12))
    second = [each.prompt_ids[0] for each in source.next_batch(2)]
    assert second[:2] == [11, 10] and len(second) == 4 and set(second[2:]) <= {1, 2, 3}
    assert len(source.next_batch(3)) == 4
    assert source.measurements() == {"online_records": 5, "online_waiting": 0}


def test_an_empty_log_is_waited_for_and_then_given_up(tmp_path):
    with pytest.raises(DataError, match=r"no rejections came to .* within 0.2 s"):
        online(tmp_path).next_batch(1)
    threading.Timer(0.3, fill, (tmp_path, [5])).start()
    assert len(online(tmp_path, wait_seconds=20.0).next_batch(1)) == 1


def test_another_servers_log_is_refused(tmp_path):
    fill(tmp_path, [200])
    with pytest.raises(DataError, match="does not fit this target"):
        online(tmp_path).next_batch(1)


def test_long_contexts_lose_their_beginning(tmp_path):
    with RejectionLog(tmp_path) as log:
        log.log(list(range(5, 25)), 5, 6, [6], [1.0])
    (sequence,) = online(tmp_path).next_batch(1)
    assert sequence.prompt_ids == tuple(range(17, 25))


def test_soft_labels_of_unequal_width_are_joined_without_an_id_twice():
    wide = SoftLabels(torch.tensor([[4, 0, 2]]), torch.tensor([[-0.5, -1.5, -3.0]]))
    narrow = SoftLabels(torch.tensor([[1]]), torch.tensor([[-0.1]]))
    joined = join_soft_labels([wide, narrow])
    assert joined.token_ids.tolist() == [[4, 0, 2], [1, 0, 2]]
    assert joined.log_probs[1].tolist() == pytest.approx([-0.1, -torch.inf, -torch.inf])


def test_settings_that_do_not_go_together(files, tmp_path):
    with pytest.raises(ConfigError, match="go together"):
        TrainConfig.flat(target="t", draft="d", output="o", method="online")
    with pytest.raises(ConfigError, match="top ids only"):
        TrainConfig.flat(target="t", draft="d", output="o", method="online", online="x", ce_weight=0.1)
    with pytest.raises(ConfigError, match="at temperature 1"):
        TrainConfig.flat(target="t", draft="d", output="o", method="online", online="x", temperature=0.5)
    with pytest.raises(DataError, match="is no directory"):
        run(files, tmp_path / "out", tmp_path / "nowhere")
