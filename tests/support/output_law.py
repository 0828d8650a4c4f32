"""The law of a target's next three tokens, computed exactly, and a G-test of answers against it."""

from __future__ import annotations

import torch
from scipy.stats import chi2
from tiny_models import make_model, make_tokenizer

from specdistill.decoding.sampling import process
from specdistill.models import LanguageModel


def endless_pair() -> tuple[LanguageModel, LanguageModel]:
    """A target and a draft of nine ids, none of which ends an answer; three further rows of the head are padding."""
    tokenizer = make_tokenizer(words=4)
    settings = {"tokenizer": tokenizer, "layers": 1, "vocab_size": 12, "scale": 6.0}
    target, draft = make_model(seed=0, **settings), make_model(seed=5, **settings)
    for model in (target, draft):
        model.model.generation_config.eos_token_id = None
        model.model.config.eos_token_id = None
        model.tokenizer.eos_token = None
    return target, draft


def exact_law(target, sampling, prompt) -> torch.Tensor:
    """Probability of each of the vocab^3 continuations."""
    vocab = target.vocab_size
    triples = torch.cartesian_prod(*[torch.arange(vocab, device=target.device)] * 2)
    sequences = torch.cat([torch.tensor([prompt], device=target.device).expand(len(triples), -1), triples], dim=1)
    with torch.no_grad():
        logits = target.logits(target.hidden_states(sequences))[:, len(prompt) - 1 :]
    steps = process(logits, sampling).softmax(-1)
    first = steps[0, 0]
    second = steps[::vocab, 1]
    return (first[:, None, None] * second[:, :, None] * steps[:, 2].reshape(vocab, vocab, vocab)).flatten().cpu()


def p_value(counts, law) -> float:
    """G-test of observed triples; impossible ones must not occur at all."""
    if counts[law == 0].sum() > 0:
        return 0.0
    # Rare outcomes are pooled: the test's approximation needs at least 5 expected draws in each cell.
    wanted = law * counts.sum()
    common = wanted >= 5
    cells = torch.cat([counts[common].double(), counts[~common].sum()[None].double()])
    expected = torch.cat([wanted[common], wanted[~common].sum()[None]])
    cells, expected = cells[expected > 0], expected[expected > 0]
    statistic = 2 * torch.where(cells > 0, cells * (cells / expected).log(), 0).sum()
    return float(chi2.sf(float(statistic), len(cells) - 1))
