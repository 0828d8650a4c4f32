"""Speculative distillation: who proposes, which tokens stay, and from which distribution a replacement is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import DRAFT, TARGET, answer_logits, frozen_run, plain_model
from scipy.stats import chisquare
from torch import Tensor

from specdistill.decoding import Sampling
from specdistill.decoding.drafting import Proposal
from specdistill.decoding.sampling import Keys
from specdistill.distill.sequences.skd import TopKAcceptance

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
