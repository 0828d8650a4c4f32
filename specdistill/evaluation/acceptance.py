"""Teacher-forced acceptance: one pass of each model over the target's own answers predicts what verification does.

Given the text x that the target wrote, whether each of its tokens came from the draft is an independent event of
probability a_t = min(1, q(x_t) / p(x_t)) (rule `sampled`), 1[x_t = argmax q] (`argmax_draft`) or, at temperature 0,
1[argmax p = argmax q]: speculative decoding emits x_t ~ p, and does so through an accepted draft token with probability
min(p, q)(x_t). So one pass predicts the mean acceptance length of *every* draft length, path dependence included.

The guess of a parallel draft or of a head depends on where its round started, so they are scored for every start and
depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from specdistill.data.batch import Example
from specdistill.decoding.sampling import Sampling, process
from specdistill.evaluation.answer_states import HiddenCache, answer_hidden_states
from specdistill.evaluation.guessed_states import guessed_states
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.evaluation.rounds import expected_rounds
from specdistill.models import LanguageModel
from specdistill_kernels import AcceptanceStatistics, expected_acceptance

ALPHA_RULES = ("greedy", "sampled", "argmax_draft")


@dataclass(frozen=True)
class PromptAcceptance:
    """Scores of one answer, float64 [tokens] each."""

    alpha: dict[str, np.ndarray]
    """Rule -> alpha of each position; for a parallel draft that of the first token of a round."""
    token_acceptance: dict[str, np.ndarray]
    """Rule -> probability that the token really written there came from the draft. For a parallel draft [tokens,
    depths]: at [t, d] that of token t + d in a round that starts with token t; 0 beyond the answer's end."""
    alpha_at_1: dict[str, np.ndarray]
    """Rule that samples -> alpha of each position, compared at temperature 1: the draft's worth to a server that
    samples. At temperature 0 both distributions are points, so every rule's `alpha` is argmax agreement."""
    fkl: np.ndarray
    """KL(target || draft) in nats, at temperature 1 where the sampling is greedy."""
    alpha_by_depth: dict[str, np.ndarray] = field(default_factory=dict)
    """Rule -> alpha [tokens, depths] of a parallel draft, by start and depth; NaN beyond the end. Empty for others."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.fkl)


@torch.no_grad()
def score(
    target: LanguageModel,
    draft: LanguageModel,
    sequences: Sequence[Example],
    sampling: Sampling,
    *,
    batch_size: int = 8,
    depths: int = 1,
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
        depths: Longest draft length for which a parallel draft is scored; other drafts are scored for all at once.
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
            results += _score_batch(target, draft, chunk, sampling, depths, target_cache)
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
    depths: int,
    target_cache: HiddenCache | None,
) -> list[PromptAcceptance]:
    results, known = [], {} if target_cache is None else target_cache
    # First, since a head needs a pass of the target over the same answers.
    guessed = guessed_states(draft, chunk, depths, target, known)
    target_hidden = answer_hidden_states(target, chunk, known)
    # One answer at a time: [answer, vocab] logits are small, those of a batch need not be.
    for sequence, target_rows, draft_rows in zip(chunk, target_hidden, guessed, strict=True):
        labels = torch.tensor(sequence.answer_ids, device=target.device)
        # Depth d guesses the tokens from number d on.
        blocks: list[list[AcceptanceStatistics]] = [[] for _ in range(min(len(labels), draft_rows.shape[1]))]
        for block in logit_blocks(labels, target.vocab_size):
            # A greedy sampling leaves logits as they are, which is temperature 1.
            target_logits = process(target.logits(target_rows[block]), sampling)
            for depth, scored in enumerate(blocks):
                first, end = max(block.start, depth), min(block.stop, len(labels))
                if first < end:
                    draft_logits = process(draft.logits(draft_rows[first - depth : end - depth, depth]), sampling)
                    against = target_logits[first - block.start :]
                    scored.append(expected_acceptance(against, draft_logits, labels[first:end]))
        records = [_record(_joined(scored), labels[depth:], sampling.greedy) for depth, scored in enumerate(blocks)]
        results.append(records[0] if not draft.guesses_by_start else _of_starts(records, draft_rows.shape[1]))
    return results


def _of_starts(records: Sequence[PromptAcceptance], depths: int) -> PromptAcceptance:
    """One record of a parallel draft from those of its depths, of which each is a token shorter than the one before."""

    def table(columns: Sequence[np.ndarray], beyond: float) -> np.ndarray:
        found = np.full((len(columns[0]), depths), beyond)
        for depth, column in enumerate(columns):
            found[: len(column), depth] = column
        return found

    first, rules = records[0], records[0].alpha
    return replace(
        first,
        token_acceptance={rule: table([record.token_acceptance[rule] for record in records], 0.0) for rule in rules},
        alpha_by_depth={rule: table([record.alpha[rule] for record in records], np.nan) for rule in rules},
    )


@torch.no_grad()
def score_draft(
    draft: LanguageModel,
    sequences: Sequence[Example],
    greedy: bool,
    *,
    batch_size: int = 8,
    depths: int = 1,
    on_sequences=None,
) -> list[PromptAcceptance]:
    """Scores a draft on its target's answers where the target itself is elsewhere, say, behind a server.

    A draft that proposes its argmax needs no target: a token came from the draft if it is the draft's argmax. Over
    answers that the target sampled, that is p_target(argmax q) without bias. The rule `sampled` would need the target.

    Args:
        draft: The draft.
        sequences: Prompts with answers that the target wrote.
        greedy: Whether it wrote them at temperature 0, where all rules are argmax agreement.
        batch_size: Sequences per pass.
        depths: As for `score`.
        on_sequences: Called with the number of sequences done, for progress.

    Returns:
        One record per sequence, in order; `fkl` is NaN.
    """
    rules: tuple[str, ...] = ALPHA_RULES if greedy else ("argmax_draft",)
    results: list[PromptAcceptance] = []
    for start in range(0, len(sequences), batch_size):
        chunk = sequences[start : start + batch_size]
        for sequence, rows in zip(chunk, guessed_states(draft, chunk, depths), strict=True):
            labels, records = torch.tensor(sequence.answer_ids, device=draft.device), []
            for depth in range(min(len(labels), rows.shape[1])):
                guesses = rows[: len(labels) - depth, depth]
                argmax = [draft.logits(guesses[block]).argmax(-1) for block in logit_blocks(guesses, draft.vocab_size)]
                agreement = _array((torch.cat(argmax) == labels[depth:]).double())
                scores: dict[str, np.ndarray] = dict.fromkeys(rules, agreement)
                records.append(PromptAcceptance(scores, scores, {}, np.full(len(agreement), np.nan)))
            results.append(records[0] if not draft.guesses_by_start else _of_starts(records, rows.shape[1]))
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
