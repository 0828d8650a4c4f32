"""Speculative distillation: who proposes, which tokens stay, and from which distribution a replacement is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import DRAFT, TARGET, ByHand, answer_logits, close, frozen_run, plain_model
from scipy.stats import chisquare
from tiny_runs import any_config
from torch import Tensor

from specdistill.decoding import Sampling
from specdistill.decoding.drafting import Proposal
from specdistill.decoding.sampling import Keys
from specdistill.distill.sequences.skd import TopKAcceptance
from specdistill.errors import ConfigError

LOGITS = (2.0, 1.5, 1.0, 0.0, -1.0, -8.0)


def replacements(sampling: Sampling, rows: int = 1500) -> np.ndarray:
    """How often each id replaces one that is outside, over many seeds."""
    target = torch.tensor([LOGITS] * 2 * rows)
    # Id 5 is last: with K = 2 always outside.
    proposal = Proposal(torch.full((rows,), 5), torch.arange(1, rows + 1), None)
    keys = Keys(torch.arange(rows), torch.zeros(rows, dtype=torch.int64))
    verified = TopKAcceptance(2, sampling)(target, proposal, keys)
    assert verified.num_accepted.tolist() == [0] * rows
    return np.bincount(verified.next_token.numpy(), minlength=6)


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(), 6),
        (Sampling(temperature=0.5), 6),
        # Of 0.47, 0.28, 0.17, ... the first two reach 0.6, and the likeliest three are ids 0, 1 and 2.
        (Sampling(top_p=0.6), 2),
        (Sampling(temperature=2.0, top_k=3), 3),
    ],
)
def test_a_replacement_is_a_sample_of_the_target_under_its_sampling(sampling, kept):
    counts = replacements(sampling)
    chances = (torch.tensor(LOGITS[:kept], dtype=torch.float64) / sampling.temperature).softmax(-1).numpy()
    assert counts[kept:].sum() == 0
    often = chances * counts.sum() > 5
    expected = chances[often] / chances[often].sum() * counts[:kept][often].sum()
    assert chisquare(counts[:kept][often], expected).pvalue > 1e-4


def test_a_replacement_at_temperature_0_is_the_argmax():
    assert replacements(Sampling(temperature=0.0), 50).tolist() == [50, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.4), Sampling(temperature=0.0), Sampling(top_k=1)], ids=str)
def test_ranks_are_those_of_the_raw_logits(sampling):
    """Behind a filter that leaves one id, all others would be equal: ids 4 and 3 stay at K = 3, id 2 does not."""
    target = torch.tensor([LOGITS[::-1]] * 4)
    proposal = Proposal(torch.tensor([4, 3, 2]), torch.tensor([3]), None)
    verified = TopKAcceptance(3, sampling)(target, proposal, Keys(torch.tensor([0]), torch.tensor([0])))
    assert (verified.num_accepted.tolist(), verified.next_token.tolist()) == ([2], [5])


def test_a_replacement_is_drawn_where_the_draft_was_wrong():
    """Rows of 3 and 1 draft tokens: the target says 0, 1, 2, 3 and then 4, 5; ids 9 are replaced."""
    target = torch.zeros(6, 10)
    target[torch.arange(6), torch.arange(6)] = 9.0
    proposal = Proposal(torch.tensor([0, 9, 2, 9]), torch.tensor([3, 4]), None)
    keys = Keys(torch.tensor([0, 1]), torch.tensor([0, 0]))
    verified = TopKAcceptance(1, Sampling(temperature=0.0))(target, proposal, keys)
    assert verified.num_accepted.tolist() == [1, 0] and verified.next_token.tolist() == [1, 4]


def ranks(run, target) -> tuple[list[int], list[int], list[float]]:
    """Ranks of the draft's and of the target's tokens in the target's logits, and the target's highest chances."""
    own, replaced, highest = [], [], []
    for one in run.examples:
        logits: Tensor = answer_logits(target, one)
        for row, token, writer in zip(logits, one.answer_ids, one.provenance, strict=True):
            rank = int((row > row[token]).sum()) + 1
            if writer == DRAFT:
                own.append(rank)
            else:
                assert writer == TARGET
                replaced.append(rank)
                highest.append(float(row.softmax(-1).max()))
    return own, replaced, highest


@pytest.mark.parametrize("top_k", [None, 2, 9])
def test_skd_top_k_is_the_rank_up_to_which_the_drafts_tokens_stay(tiny, tmp_path, top_k):
    settings = {} if top_k is None else {"skd_top_k": top_k}
    run = frozen_run(tiny, tmp_path / "out", method="skd", batch_size=18, max_new_tokens=20, steps=4, **settings)
    own, _, _ = ranks(run, plain_model(tiny / "target"))
    # Of some hundred tokens one is the last that may stay, or nearly.
    assert 0.8 * (top_k or 25) <= max(own) <= (top_k or 25)


def test_skd_replaces_by_samples_and_not_by_the_argmax(tiny, tmp_path):
    run = frozen_run(tiny, tmp_path / "out", method="skd", skd_top_k=2, batch_size=18, max_new_tokens=20, steps=4)
    _, replaced, highest = ranks(run, plain_model(tiny / "target"))
    expected = sum(highest) / len(highest)
    share = sum(rank == 1 for rank in replaced) / len(replaced)
    assert len(replaced) > 300 and share == pytest.approx(expected, abs=4 * (0.25 / len(replaced)) ** 0.5)
    assert expected < 0.8


@pytest.mark.parametrize("count", [None, 2])
def test_skd_num_draft_tokens_is_what_the_draft_writes_between_two_checks(tiny, tmp_path, count):
    settings = {} if count is None else {"skd_num_draft_tokens": count}
    run = frozen_run(tiny, tmp_path / "out", method="skd", skd_top_k=65, **settings)
    assert len(run.history[-1]["skd_rejection_by_position"]) == (count or 5)
    assert all(rate == 0 for rate in run.history[-1]["skd_rejection_by_position"])


def test_skd_with_a_whole_vocabulary_is_the_drafts_own_text(tiny, tmp_path):
    run = frozen_run(tiny, tmp_path / "out", method="skd", skd_top_k=65)
    assert run.writers == [{DRAFT}] * 2


# ---- sampling of their own


def own_argmax_share(run, folder) -> float:
    """Share of the draft's tokens that are its own likeliest ones."""
    draft = plain_model(folder / "draft")
    hits = [
        token == int(row.argmax())
        for one in run.examples
        for row, token, writer in zip(answer_logits(draft, one), one.answer_ids, one.provenance, strict=True)
        if writer == DRAFT
    ]
    return sum(hits) / len(hits)


def skd_run(tiny, output, **settings):
    return frozen_run(tiny, output, method="skd", skd_top_k=2, batch_size=18, max_new_tokens=20, **settings)


@pytest.mark.parametrize("settings", [{"skd_target_temperature": 0.0}, {"skd_target_top_p": 1e-6}], ids=str)
def test_the_target_samples_its_replacements_in_its_own_way(tiny, tmp_path, settings):
    """The target writes its argmax alone, while the draft still samples at --temperature."""
    run = skd_run(tiny, tmp_path / "out", **settings)
    _, replaced, _ = ranks(run, plain_model(tiny / "target"))
    assert len(replaced) > 100 and set(replaced) == {1}
    assert own_argmax_share(run, tiny) < 0.9


@pytest.mark.parametrize("settings", [{"temperature": 0.0, "rule": "greedy"}, {"top_p": 1e-6}], ids=str)
def test_the_draft_writes_in_its_own_way(tiny, tmp_path, settings):
    """The draft writes its argmax alone; the target samples as it was told, and follows the draft unless it was."""
    own = skd_run(tiny, tmp_path / "own", skd_target_temperature=1.0, skd_target_top_p=1.0, **settings)
    assert own_argmax_share(own, tiny) == 1
    _, replaced, highest = ranks(own, plain_model(tiny / "target"))
    share = sum(rank == 1 for rank in replaced) / len(replaced)
    assert share == pytest.approx(sum(highest) / len(highest), abs=4 * (0.25 / len(replaced)) ** 0.5) and share < 0.9
    following = skd_run(tiny, tmp_path / "following", **settings)
    assert set(ranks(following, plain_model(tiny / "target"))[1]) == {1}


def test_the_targets_sampling_does_not_reach_the_loss(tiny, tmp_path):
    hand = ByHand(tiny)
    run = skd_run(tiny, tmp_path / "out", temperature=0.5, skd_target_temperature=0.2, skd_target_top_p=0.5)
    assert run.losses == [close(hand.loss("fkl", step, temperature=0.5)) for step in run.steps]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"skd_target_temperature": -1.0}, "--skd-target-temperature must be 0 or at least"),
        ({"skd_target_top_p": 0.0}, "--skd-target-top-p must be above 0"),
        ({"skd_target_top_p": 1.5}, "--skd-target-top-p must be in"),
    ],
)
def test_sampling_that_cannot_be_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        any_config(method="skd", **settings)
