"""Teacher-forced acceptance: one pass of each model over the target's own answers predicts what verification does.

Given the text x that the target wrote, whether each of its tokens came from the draft is an independent event of
probability a_t = min(1, q(x_t) / p(x_t)) (rule `sampled`), 1[x_t = argmax q] (`argmax_draft`) or, at temperature 0,
1[argmax p = argmax q]: speculative decoding emits x_t ~ p, and does so through an accepted draft token with probability
min(p, q)(x_t). So one pass predicts the mean acceptance length of *every* draft length, path dependence included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specdistill.data.batch import Example, collate, split_by_tokens
from specdistill.decoding.position_scaling import cached
from specdistill.decoding.proof import prove
from specdistill.decoding.sampling import Sampling, process
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.models import LanguageModel
from specdistill.models.language_model import LONG_TEXT
from specdistill_kernels import AcceptanceStatistics, expected_acceptance

ALPHA_RULES = ("greedy", "sampled", "argmax_draft")


@dataclass(frozen=True)
class PromptAcceptance:
    """Scores of one answer, float64 [tokens] each."""

    alpha: dict[str, np.ndarray]
    """Rule -> alpha of each position."""
    token_acceptance: dict[str, np.ndarray]
    """Rule -> probability that the token really written there came from the draft."""
    alpha_at_1: dict[str, np.ndarray]
    """Rule that samples -> alpha of each position, compared at temperature 1: the draft's worth to a server that
    samples. At temperature 0 both distributions are points, so every rule's `alpha` is argmax agreement."""
    fkl: np.ndarray
    """KL(target || draft) in nats, at temperature 1 where the sampling is greedy."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.fkl)


HiddenCache = dict[Example, torch.Tensor]
"""Example -> hidden states [answer, hidden] that predict its answer; valid while the model is frozen."""


@torch.no_grad()
def answer_hidden_states(
    model: LanguageModel,
    sequences: Sequence[Example],
    cache: HiddenCache | None = None,
    *,
    one_pass: bool = False,
) -> list[torch.Tensor]:
    """Computes the hidden states that predict each answer token: in one pass, or in several where sequences are long.

    Args:
        model: Frozen while it is used with a cache.
        sequences: Prompts with answers; all in one batch, if it is small.
        cache: Read first, and filled with the states that were missing.
        one_pass: Never split: each pass of a sharded model is a collective.

    Returns:
        [answer, hidden] per sequence, in order.
    """
    missing = [sequence for sequence in sequences if cache is None or sequence not in cache]
    known: HiddenCache = {} if cache is None else cache
    if missing:
        lengths = [len(sequence.prompt_ids) + len(sequence.answer_ids) for sequence in missing]
        rows = len(missing)
        for batch in split_by_tokens(lengths, rows) if not one_pass else [range(rows)]:
            chosen = [missing[row] for row in batch]
            long = max(lengths[row] for row in batch) > LONG_TEXT and not one_pass
            known.update(zip(chosen, (_in_passes if long else _in_one_pass)(model, chosen), strict=True))
    return [known[sequence] for sequence in sequences]


def _in_one_pass(model: LanguageModel, sequences: Sequence[Example]) -> Iterator[torch.Tensor]:
    batch = collate(sequences).to(model.device)
    hidden = model.hidden_states(batch.input_ids, batch.attention_mask)[batch.predicting]
    # Copies: a slice would keep the whole batch's storage alive.
    return (rows.clone() for rows in hidden.split([len(sequence.answer_ids) for sequence in sequences]))


def _in_passes(model: LanguageModel, sequences: Sequence[Example]) -> list[torch.Tensor]:
    """Reads long sequences in passes with a KV cache, which need no memory for every pair of tokens."""
    if not prove(model).rolls_back:
        # A state reads no padding, so each sequence has a pass of its own.
        return [states for sequence in sequences for states in _in_one_pass(model, [sequence])]
    texts = [[*sequence.prompt_ids, *sequence.answer_ids] for sequence in sequences]
    reader = cached(model, len(texts), max(map(len, texts)))
    parts: list[list[torch.Tensor]] = [[] for _ in texts]
    for start, hidden in reader.passes(texts):
        for row, (sequence, ids) in enumerate(zip(sequences, texts, strict=True)):
            first, end = len(sequence.prompt_ids) - 1 - start, len(ids) - 1 - start
            parts[row].append(hidden[row, max(0, first) : max(0, end)].clone())
    return [torch.cat(states) for states in parts]


@torch.no_grad()
def score(
    target: LanguageModel,
    draft: LanguageModel,
    sequences: Sequence[Example],
    sampling: Sampling,
    *,
    batch_size: int = 8,
    target_cache: HiddenCache | None = None,
    on_sequences=None,
    on_interrupt: Callable[[BaseException], None] | None = None,
) -> list[PromptAcceptance]:
    """Scores a draft: runs both models once over answers that the target wrote.

    Args:
        target, draft: Two models with one vocabulary.
        sequences: Prompts with answers that the target wrote at `sampling`.
        sampling: Temperature and filters under which target and draft are compared.
        batch_size: Sequences per pass.
        target_cache: Hidden states of the target, [answer, hidden] per sequence; read first and filled with those
            that were missing. It saves the target's pass where another draft is scored on the same sequences.
        on_sequences: Called with the number of sequences done, for progress.
        on_interrupt: Called with a Ctrl-C or a failure; the records that are done are then returned. None passes it on.

    Returns:
        One record per sequence, in order: acceptance probabilities in [0, 1] and KL divergences in nats, float64
        [tokens] each. After either, those of the first sequences only.

    Raises:
        ValueError: The two models' logits differ in size.
    """
    results: list[PromptAcceptance] = []
    for start in range(0, len(sequences), batch_size):
        chunk = sequences[start : start + batch_size]
        try:
            results += _score_batch(target, draft, chunk, sampling, target_cache)
        except (KeyboardInterrupt, Exception) as error:
            if on_interrupt is None:
                raise
            on_interrupt(error)
            break
        if on_sequences is not None:
            on_sequences(len(chunk))
    return results


def _score_batch(
    target: LanguageModel,
    draft: LanguageModel,
    chunk: Sequence[Example],
    sampling: Sampling,
    target_cache: HiddenCache | None,
) -> list[PromptAcceptance]:
    results = []
    target_hidden = answer_hidden_states(target, chunk, target_cache)
    draft_hidden = answer_hidden_states(draft, chunk)
    # One answer at a time: [answer, vocab] logits are small, those of a batch need not be.
    for sequence, target_rows, draft_rows in zip(chunk, target_hidden, draft_hidden, strict=True):
        labels = torch.tensor(sequence.answer_ids, device=target.device)
        blocks = []
        for block in logit_blocks(labels, target.vocab_size):
            # A greedy sampling leaves logits as they are, which is temperature 1.
            target_logits = process(target.logits(target_rows[block]), sampling)
            draft_logits = process(draft.logits(draft_rows[block]), sampling)
            blocks.append(expected_acceptance(target_logits, draft_logits, labels[block]))
        results.append(_record(_joined(blocks), labels, sampling.greedy))
    return results


@torch.no_grad()
def score_draft(
    draft: LanguageModel, sequences: Sequence[Example], greedy: bool, *, batch_size: int = 8, on_sequences=None
) -> list[PromptAcceptance]:
    """Scores a draft on its target's answers where the target itself is elsewhere, say, behind a server.

    A draft that proposes its argmax needs no target: a token came from the draft if it is the draft's argmax. Over
    answers that the target sampled, that is p_target(argmax q) without bias. The rule `sampled` would need the target.

    Args:
        draft: The draft.
        sequences: Prompts with answers that the target wrote.
        greedy: Whether it wrote them at temperature 0, where all rules are argmax agreement.
        batch_size: Sequences per pass.
        on_sequences: Called with the number of sequences done, for progress.

    Returns:
        One record per sequence, in order; `fkl` is NaN.
    """
    rules: tuple[str, ...] = ALPHA_RULES if greedy else ("argmax_draft",)
    results: list[PromptAcceptance] = []
    for start in range(0, len(sequences), batch_size):
        chunk = sequences[start : start + batch_size]
        for sequence, rows in zip(chunk, answer_hidden_states(draft, chunk), strict=True):
            labels = torch.tensor(sequence.answer_ids, device=draft.device)
            argmax = [draft.logits(rows[block]).argmax(-1) for block in logit_blocks(rows, draft.vocab_size)]
            agreement = _array((torch.cat(argmax) == labels).double())
            scores: dict[str, np.ndarray] = dict.fromkeys(rules, agreement)
            results.append(PromptAcceptance(scores, scores, {}, np.full(len(agreement), np.nan)))
        if on_sequences is not None:
            on_sequences(len(chunk))
    return results


def _joined(blocks: Sequence[AcceptanceStatistics]) -> AcceptanceStatistics:
    """Statistics of an answer from those of its blocks, which were all scored with labels."""
    fields = zip(*blocks, strict=True)
    return AcceptanceStatistics(*(torch.cat([part for part in parts if part is not None]) for parts in fields))


def _record(statistics: AcceptanceStatistics, labels: torch.Tensor, greedy: bool) -> PromptAcceptance:
    alpha = {rule: _array(getattr(statistics, rule)) for rule in ALPHA_RULES}
    assert statistics.token_acceptance is not None, "scored with labels"
    agreement = alpha["greedy"]
    token_acceptance = {
        "greedy": agreement,
        "sampled": _array(statistics.token_acceptance),
        "argmax_draft": _array((statistics.draft_argmax == labels).double()),
    }
    return PromptAcceptance(
        alpha=dict.fromkeys(ALPHA_RULES, agreement) if greedy else alpha,
        token_acceptance=dict.fromkeys(ALPHA_RULES, agreement) if greedy else token_acceptance,
        alpha_at_1={rule: alpha[rule] for rule in ("sampled", "argmax_draft")} if greedy else {},
        fkl=_array(statistics.fkl),
    )


def expected_rounds(token_acceptance: np.ndarray, num_draft_tokens: int, *, first_drafted: bool = False) -> float:
    """Expected number of verifications that an answer takes, the prompt's own pass (first token) not counted.

    Args:
        token_acceptance: [tokens] a_t of each answer token; the first is ignored where no draft is made for it.
        num_draft_tokens: Draft length gamma.
        first_drafted: Whether the prompt's own pass verifies a draft too, as in transformers' assisted generation.

    A round that starts at t keeps k draft tokens with probability a_t ... a_(t+k-1) (1 - a_(t+k)) and emits k + 1.
    """
    chances = token_acceptance[0 if first_drafted else 1 :]
    tokens = len(chances)
    starts = np.zeros(tokens + num_draft_tokens + 2)
    starts[0] = 1.0
    for position in range(tokens):
        alive = starts[position]
        if alive == 0:
            continue
        # The decoder proposes no more than what is left minus the token that verification adds.
        limit = min(num_draft_tokens, tokens - position - 1)
        for kept in range(limit):
            chance = chances[position + kept]
            starts[position + kept + 1] += alive * (1 - chance)
            alive *= chance
        starts[position + limit + 1] += alive
    return float(starts[:tokens].sum())


def predicted_tau(
    records: Sequence[PromptAcceptance], rule: str, num_draft_tokens: int, *, first_drafted: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and expected rounds of each answer: their sums' ratio is the predicted mean acceptance length.

    Args:
        records: Scores of the answers.
        rule: Acceptance rule, one of those that were scored.
        num_draft_tokens: Draft length.
        first_drafted: Whether the prompt's own pass verifies a draft too.

    Returns:
        Emitted tokens and expected verifications, float64 [prompts] each, for `statistics.ratio`.
    """
    tokens = np.array([record.num_tokens - (not first_drafted) for record in records], dtype=float)
    rounds = [
        expected_rounds(record.token_acceptance[rule], num_draft_tokens, first_drafted=first_drafted)
        for record in records
    ]
    return tokens, np.array(rounds)


def alpha_sums(records: Sequence[PromptAcceptance], rule: str, *, at_1: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Sum of alpha (or of `alpha_at_1`) and number of tokens of each answer.

    Args:
        records: Scores of the answers.
        rule: Acceptance rule, one of those that were scored.
        at_1: Whether to take `alpha_at_1`.

    Returns:
        float64 [prompts] each, for `statistics.ratio` and `statistics.paired_difference`.
    """
    sums = np.array([(record.alpha_at_1 if at_1 else record.alpha)[rule].sum() for record in records])
    return sums, np.array([record.num_tokens for record in records], dtype=float)


def _array(values: torch.Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
