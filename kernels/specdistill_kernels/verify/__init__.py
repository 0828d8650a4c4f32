"""Accepts or rejects drafted tokens so that what is emitted follows the target's distribution exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdistill_kernels.verify.reference import RULES, Verified, verify_row

__all__ = ["RULES", "Verified", "verify"]


def verify(
    target_logits: Tensor,
    draft_token_ids: Tensor,
    cu_num_draft_tokens: Tensor,
    draft_logits: Tensor | None = None,
    *,
    rule: str,
    generators: Sequence[torch.Generator] | None = None,
    lenience: float = 1.0,
) -> Verified:
    """Keeps the longest prefix of each row's draft that the rule allows, then picks one more token.

    Args:
        target_logits: [sum over rows of (num_draft_tokens + 1), vocab], any float dtype: each row's logits behind its
            last emitted token and behind each draft token, with temperature and filters applied.
        draft_token_ids: int64 [sum of num_draft_tokens].
        cu_num_draft_tokens: int64 [batch], inclusive running sum of each row's number of draft tokens (0 is allowed).
        draft_logits: [sum of num_draft_tokens, vocab], what the draft tokens were sampled from, processed like the
            target's; read by `sampled`, `block` and `lenient`.
        rule: `greedy` (argmax match), `sampled` (accept with min(1, p/q), resample from the residual (p - q)+),
            `argmax_draft` (the draft is a point mass: accept with p(x), resample from p without x), `block` (the block
            is judged as a whole: exact, and never shorter than `sampled` in expectation), or `lenient`.
        generators: One per row, the source of its randomness; not used by `greedy`.
        lenience: In (0, 1], read by `lenient` alone: accept with min(1, p / (lenience q)). **Lossy** below 1: a token
            may come up as often as p / lenience. 1 is `sampled`.

    Returns:
        num_accepted int64 [batch], next_token int64 [batch].

    Raises:
        ValueError: Unknown rule, lenience outside (0, 1], or shapes that disagree.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1 and lenience (Appendix A.5); Sun et al. 2024 (arXiv
    2403.10444) for `block`; DistillSpec (Zhou et al. 2024, arXiv 2310.08461) uses the same lenience as f(p) = p / eps.
    """
    ends = cu_num_draft_tokens.tolist()
    batch, drafted = len(ends), ends[-1] if ends else 0
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; choose one of {', '.join(RULES)}")
    if target_logits.shape[0] != drafted + batch or draft_token_ids.shape[0] != drafted:
        raise ValueError(
            f"expected {drafted + batch} target rows and {drafted} draft tokens, got "
            f"{target_logits.shape[0]} and {draft_token_ids.shape[0]}"
        )
    if rule in ("sampled", "block", "lenient") and (draft_logits is None or draft_logits.shape[0] != drafted):
        raise ValueError(f"the rule {rule!r} needs draft_logits, one row per draft token")
    if not 0 < lenience <= 1:
        raise ValueError(f"expected 0 < lenience <= 1, got {lenience}")
    if rule != "greedy" and (generators is None or len(generators) != batch):
        raise ValueError(f"the rule {rule!r} needs one generator per row")
    accepted, following = [], []
    start = 0
    for row, end in enumerate(ends):
        count, token = verify_row(
            target_logits[start + row : end + row + 1],
            draft_token_ids[start:end],
            None if draft_logits is None else draft_logits[start:end],
            rule,
            None if generators is None else generators[row],
            lenience,
        )
        accepted.append(count)
        following.append(token)
        start = end
    device = target_logits.device
    return Verified(torch.tensor(accepted, device=device), torch.tensor(following, device=device))
