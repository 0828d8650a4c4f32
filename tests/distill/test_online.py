"""Training on a server's rejections: the draft learns from them, newest first, and bad logs are refused."""

from __future__ import annotations

import threading

import pytest
import torch
from tiny_runs import any_config, example, history, train

from specdistill import load_model
from specdistill.data.batch import join_soft_labels
from specdistill.decoding import Sampling, SpeculativeDecoder
from specdistill.distill.sequences.online import Online
from specdistill.errors import ConfigError, DataError
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.serving.online import RejectionLog
from specdistill_kernels import SoftLabels


def serve(folder, directory, prompts=40, top=8, normalised=True):
    """A serving loop with a real decoder; what the target corrected goes into the log."""
    target, draft = load_model(str(folder / "target")), load_model(str(folder / "draft"))
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=3, sampling=Sampling())
    asked = [[3, 5 + i, 5 + (7 * i) % 60, 4] for i in range(prompts)]
    written = decoder.generate(asked, max_new_tokens=16, seeds=list(range(prompts)))
    with RejectionLog(directory, rows_per_file=50) as log:
        for prompt, generation in zip(asked, written, strict=True):
            ids = tuple(generation.token_ids)
            hidden = answer_hidden_states(target, [example(prompt, ids)])[0]
            logits = target.logits(hidden).detach()
            for position, own in enumerate(generation.from_draft):
                if not own:
                    best = logits[position].topk(top)
                    mass = float(logits[position].logsumexp(0)) if normalised else None
                    log.log([*prompt, *ids[:position]], 5, ids[position], best.indices, best.values, mass)
    return log.counts.written


def train_online(folder, output, log, **settings):
    return train(folder, output, method="online", online=str(log), **({"steps": 40, "eval_every": 10} | settings))


@pytest.mark.parametrize("normalised", [True, False])
def test_a_draft_learns_from_what_its_server_corrected(tiny, tmp_path, normalised):
    assert serve(tiny, tmp_path / "log", normalised=normalised) > 100
    summary = train_online(tiny, tmp_path / "out", tmp_path / "log")
    assert summary.gain["sampled"].low > 0
    last = history(tmp_path / "out")[-1]
    assert last["online_records"] > 100 and last["loss"] > 0


def online_source(directory, **settings):
    defaults = {"vocab_size": 65, "max_context": 8, "batch_size": 4, "seed": 0, "wait_seconds": 0.2}
    return Online(directory, **(defaults | settings))


def fill(directory, numbers):
    with RejectionLog(directory) as log:
        for number in numbers:
            log.log([number] * 3, 5, 6, [6, 7], [1.0, 0.0])


def test_new_records_come_first_and_old_ones_fill_up(tmp_path):
    fill(tmp_path, range(1, 4))
    source = online_source(tmp_path)
    assert [one.prompt_ids[0] for one in source.next_batch(1)] == [3, 2, 1]
    fill(tmp_path, range(10, 12))
    second = [one.prompt_ids[0] for one in source.next_batch(2)]
    assert second[:2] == [11, 10] and len(second) == 4 and set(second[2:]) <= {1, 2, 3}
    assert len(source.next_batch(3)) == 4
    assert source.measurements() == {"online_records": 5, "online_waiting": 0}


def test_an_empty_log_is_waited_for_and_then_given_up(tmp_path):
    with pytest.raises(DataError, match=r"no rejections came to .* within 0.2 s"):
        online_source(tmp_path).next_batch(1)
    threading.Timer(0.3, fill, (tmp_path, [5])).start()
    assert len(online_source(tmp_path, wait_seconds=20.0).next_batch(1)) == 1


def test_another_servers_log_is_refused(tmp_path):
    fill(tmp_path, [200])
    with pytest.raises(DataError, match="does not fit this target"):
        online_source(tmp_path).next_batch(1)


def test_long_contexts_lose_their_beginning(tmp_path):
    with RejectionLog(tmp_path) as log:
        log.log(list(range(5, 25)), 5, 6, [6], [1.0])
    (one,) = online_source(tmp_path).next_batch(1)
    assert one.prompt_ids == tuple(range(17, 25))


def test_a_heads_rounds_begin_in_the_tokens_before_the_correction(tmp_path):
    with RejectionLog(tmp_path) as log:
        log.log(list(range(5, 25)), 9, 30, [30], [1.0])
        log.log([7, 8], 9, 31, [31], [1.0])
        log.log([7], 9, 32, [32], [1.0])
    found = online_source(tmp_path, round_tokens=3, max_context=10).next_batch(1)
    texts = [(list(one.prompt_ids), list(one.answer_ids)) for one in found]
    # A round reads an answer token with the prompt's states, so a context of one token has none.
    assert texts == [([7], [8, 31]), (list(range(15, 22)), [22, 23, 24, 30])]
    assert all(one.soft_labels is None for one in found), "the target in memory labels every step of a round"


def test_soft_labels_of_unequal_width_are_joined_without_an_id_twice():
    wide = SoftLabels(torch.tensor([[4, 0, 2]]), torch.tensor([[-0.5, -1.5, -3.0]]))
    narrow = SoftLabels(torch.tensor([[1]]), torch.tensor([[-0.1]]))
    joined = join_soft_labels([wide, narrow])
    assert joined.token_ids.tolist() == [[4, 0, 2], [1, 0, 2]]
    assert joined.log_probs[1].tolist() == pytest.approx([-0.1, -torch.inf, -torch.inf])


def test_settings_that_do_not_go_together(tiny, tmp_path):
    with pytest.raises(ConfigError, match="go together"):
        any_config(method="online")
    with pytest.raises(ConfigError, match=r"--ce-weight .*not with online"):
        any_config(method="online", online="x", ce_weight=0.1)
    with pytest.raises(ConfigError, match="at temperature 1"):
        any_config(method="online", online="x", temperature=0.5)
    with pytest.raises(DataError, match="is no directory"):
        train_online(tiny, tmp_path / "out", tmp_path / "nowhere")
