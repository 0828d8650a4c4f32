"""Accepts or rejects drafted tokens so that what is emitted follows the target's distribution exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from specdistill_kernels.backend import choose
from specdistill_kernels.sampling_settings import kernel_settings, per_row, settings_of
from specdistill_kernels.verify.reference import RULES, Verified, verify_requests

__all__ = ["RULES", "Verified", "verify"]


def verify(
    target_logits: Tensor,
    draft_token_ids: Tensor,
    cu_num_draft_tokens: Tensor,
    draft_logits: Tensor | None = None,
    *,
    draft_probs: Tensor | None = None,
    rule: str,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    lenience: float = 1.0,
    backend: str = "auto",
) -> Verified:
    """Keeps the longest prefix of each request's draft that the rule allows, then picks one more token.

    No [tokens, vocab] probabilities are written. Drafts without probabilities (`greedy`, `argmax_draft`) take one pass.
    It draws the target's own token at every position by Gumbel-max, and a draft token stays if it equals that token. So
    the draft token x is kept with probability p(x), and otherwise the token is distributed as p without x. **The output
    is, token for token, what `sample` emits with the same seeds and no draft.** Drafts with probabilities take a pass
    for both log-sum-exps and a second one on the row that was rejected.

    Args:
        target_logits: [sum over requests of (num_draft_tokens + 1), vocab], any float dtype, before temperature: each
            request's logits after its last emitted token and after each draft token.
        draft_token_ids: int32 or int64 [sum of num_draft_tokens]. An id outside the vocabulary (-1) is a placeholder
            and is rejected.
        cu_num_draft_tokens: int32 or int64 [batch], inclusive running sum of each request's number of draft tokens (0
            is allowed).
        draft_logits: [sum of num_draft_tokens, vocab], the logits that the draft tokens were sampled from, before
            temperature, with -inf for ids a trimmed draft can't propose. Read by `sampled`, `block` and `lenient`.
        draft_probs: The draft's probabilities, any float dtype, instead of draft_logits. They are taken as they are,
            for drafts sampled with other settings than their target (vLLM's use the temperature but no filters).
        rule: `greedy` (argmax match), `sampled` (accept with min(1, p/q), resample from the residual (p - q)+),
            `argmax_draft` (the draft is a point mass: accept with p(x), resample from p without x), `block` (the block
            is judged as one: exact, and never shorter than `sampled` in expectation), or `lenient`.
        seeds: int64 [batch]; not needed by `greedy`.
        positions: int64 [batch], tokens each request has emitted: the position of its first draft token. Draft tokens
            must have been drawn with the stream `noise.DRAFT` or with the caller's own noise, never the target's.
        temperature, top_k, top_p, min_p: One number or a tensor [batch], applied to target and draft rows; see
            `filter_threshold`. A request with temperature 0 is verified greedily under every rule.
        lenience: In (0, 1], read by `lenient` only: accept with min(1, p / (lenience q)). **Lossy** below 1: the
            probability of a token may rise to p / lenience. 1 is `sampled`.
        backend: `auto` (Triton on a GPU, else torch), `fused` or `torch`.

    Returns:
        num_accepted int64 [batch], next_token int64 [batch]. A row that holds NaN or +inf, or nothing above -inf, keeps
        no token that it judges; if the next token comes from it, that is -1.

    Raises:
        ValueError: Unknown rule, lenience outside (0, 1], or shapes that disagree.
        RuntimeError: `fused` was asked for where it can't run.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Algorithm 1 and lenience (Appendix A.5); Sun et al. 2024 (arXiv
    2403.10444) for `block`; DistillSpec (Zhou et al. 2024, arXiv 2310.08461) uses the same lenience as f(p) = p / eps;
    Daliri et al. 2024 (arXiv 2408.07978) for output that doesn't depend on the drafter.
    """
    batch, drafted = cu_num_draft_tokens.shape[0], draft_token_ids.shape[0]
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}; choose one of {', '.join(RULES)}")
    if target_logits.ndim != 2 or target_logits.shape[0] != drafted + batch:
        raise ValueError(
            f"expected {drafted + batch} target rows for {drafted} draft tokens of {batch} requests, got "
            f"{tuple(target_logits.shape)}"
        )
    if draft_logits is not None and draft_probs is not None:
        raise ValueError("give draft_logits or draft_probs, not both")
    draft = draft_logits if draft_probs is None else draft_probs
    if rule in ("sampled", "block", "lenient") and (draft is None or draft.shape != (drafted, target_logits.shape[1])):
        raise ValueError(
            f"the rule {rule!r} needs draft_logits or draft_probs, one row per draft token over the target's vocabulary"
        )
    if not 0 < lenience <= 1:
        raise ValueError(f"expected 0 < lenience <= 1, got {lenience}")
    if rule != "greedy" and (seeds is None or positions is None):
        raise ValueError(f"the rule {rule!r} needs seeds and positions, one per request")
    device = target_logits.device
    if rule == "greedy":
        temperature = 0.0
    settings = (batch, device, temperature, top_k, top_p, min_p)
    keys = [None if key is None else per_row(key, batch, device, torch.int64) for key in (seeds, positions)]
    loose = lenience if rule == "lenient" else 1.0
    if choose(backend, target_logits) == "fused":
        from specdistill_kernels.verify.fused import verify_fused

        return verify_fused(
            target_logits, draft_token_ids, cu_num_draft_tokens, draft, rule, keys, *kernel_settings(*settings),
            loose, draft_probs is not None,
        )  # fmt: skip
    keys = [per_row(0, batch, device, torch.int64) if key is None else key for key in keys]
    return verify_requests(
        target_logits, draft_token_ids, cu_num_draft_tokens, draft, rule, keys, settings_of(*settings), loose,
        draft_probs is not None,
    )  # fmt: skip
