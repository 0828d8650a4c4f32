"""One tile of rows of `fused_divergence` in Triton: statistics and gradient from logits, in place.

The vendor's library multiplies the output heads, a tile of rows at a time. `divergence_rows_kernel` then reads both
logits rows three times (log-sum-exps; divergence, alpha, entropy; gradient) and writes the gradient over the draft's
logits. That moves 14 bytes per vocabulary entry for bfloat16; the unfused formula moves many times that and keeps
float32 copies for backward. `fused_head.py` adds the tile's part of the head's gradient. `closed_forms.py` lists the
gradients. KIND is a name from `kinds.KINDS`; a name without a branch for its value and its gradient does not compile.

Source of forming gradients in the forward pass: Liger kernel (Hsu et al. 2024, arXiv 2410.10989).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdistill_kernels.backend import warps_of
from specdistill_kernels.fused_divergence.kinds import find_kind
from specdistill_kernels.fused_scan import leftmost, online

BLOCK, THREADS = 2048, 256


@triton.jit
def _scores(row_ptr, columns, vocab, softcap, temperature, CAPPED: tl.constexpr):
    """Logits before and after temperature; padding is -inf."""
    inside = columns < vocab
    raw = tl.load(row_ptr + columns, mask=inside, other=-float("inf")).to(tl.float32)
    if CAPPED:
        # tanh(x) = 1 - 2 / (exp(2 x) + 1), exact at both ends.
        raw = tl.where(inside, softcap * (1.0 - 2.0 / (tl.exp(2.0 * raw / softcap) + 1.0)), -float("inf"))
    return raw, raw / temperature


@triton.jit
def divergence_rows_kernel(
    draft_ptr,
    target_ptr,
    target_rows_ptr,
    label_ptr,
    scale_ptr,
    value_ptr,
    statistics_ptr,
    draft_stride,
    target_stride,
    rows,
    vocab,
    beta,
    eta,
    temperature,
    draft_softcap,
    target_softcap,
    KIND: tl.constexpr,
    NEED_GRAD: tl.constexpr,
    DRAFT_CAPPED: tl.constexpr,
    TARGET_CAPPED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: value, alpha, agreement and target entropy, and the gradient times scale over the draft's logits.

    statistics is float32 [3, rows]; target_rows, where given, int64 [rows].
    """
    # int64 before the multiplication: rows x vocabulary exceeds 2**31.
    row = tl.program_id(0).to(tl.int64)
    draft_row = draft_ptr + row * draft_stride
    target_row = draft_row
    if target_ptr is not None:
        place = row
        if target_rows_ptr is not None:
            place = tl.load(target_rows_ptr + row)
        target_row = target_ptr + place * target_stride
    draft_peak, draft_total, draft_at = -float("inf"), 0.0, 0
    target_peak, target_total, target_at = -float("inf"), 0.0, 0
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        _, scores = _scores(draft_row, columns, vocab, draft_softcap, temperature, DRAFT_CAPPED)
        _, draft_at = leftmost(draft_peak, draft_at, scores, columns)
        draft_peak, draft_total = online(draft_peak, draft_total, scores)
        if target_ptr is not None:
            _, scores = _scores(target_row, columns, vocab, target_softcap, temperature, TARGET_CAPPED)
            _, target_at = leftmost(target_peak, target_at, scores, columns)
            target_peak, target_total = online(target_peak, target_total, scores)
    # Peak and log of the sum are subtracted one after the other: their sum would round to the peak's magnitude.
    draft_log, target_log = tl.log(draft_total), tl.log(target_total)

    alpha, forward, reverse, draft_part, below, entropy = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if target_ptr is not None:
        for start in range(0, vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            _, log_q = _scores(draft_row, columns, vocab, draft_softcap, temperature, DRAFT_CAPPED)
            _, log_p = _scores(target_row, columns, vocab, target_softcap, temperature, TARGET_CAPPED)
            log_q, log_p = log_q - draft_peak - draft_log, log_p - target_peak - target_log
            p, q = tl.exp(log_p), tl.exp(log_q)
            alpha += tl.sum(tl.minimum(p, q), 0)
            # 0 * (-inf) is NaN; terms of probability 0 are 0 by continuity.
            entropy -= tl.sum(tl.where(p > 0, p * log_p, 0.0), 0)
            if (KIND == "fkl") | (KIND == "jeffreys") | (KIND == "lk_lambda"):
                forward += tl.sum(tl.where(p > 0, p * (log_p - log_q), 0.0), 0)
            if (KIND == "rkl") | (KIND == "jeffreys"):
                reverse += tl.sum(tl.where(q > 0, q * (log_q - log_p), 0.0), 0)
            if KIND == "skewed_kl":
                log_m = tl.log(beta * p + (1 - beta) * q)
                forward += tl.sum(tl.where(p > 0, p * (log_p - log_m), 0.0), 0)
                below += tl.sum(tl.where(q > 0, q * tl.exp(log_p - log_m), 0.0), 0)
            if KIND == "lk_argmax":
                below += tl.sum(p * q, 0)
            if KIND == "jsd":
                log_m = tl.log(beta * p + (1 - beta) * q)
                forward += tl.sum(tl.where(p > 0, p * (log_p - log_m), 0.0), 0)
                draft_part += tl.sum(tl.where(q > 0, q * (log_q - log_m), 0.0), 0)
            if (KIND == "tvd") | (KIND == "lk_alpha") | (KIND == "lk_lambda"):
                below += tl.sum(tl.where(q < p, q, 0.0), 0)
        tl.store(statistics_ptr + row, alpha)
        tl.store(statistics_ptr + rows + row, tl.where(target_at == draft_at, 1.0, 0.0))
        tl.store(statistics_ptr + 2 * rows + row, entropy)

    mix = tl.exp(-eta * alpha)
    label = 0
    if KIND == "ce":
        label = tl.load(label_ptr + row)
        # Uncapped logits of one column; the cap is applied as above.
        own = tl.load(draft_row + label).to(tl.float32)
        if DRAFT_CAPPED:
            own = draft_softcap * (1.0 - 2.0 / (tl.exp(2.0 * own / draft_softcap) + 1.0))
        value = draft_log + (draft_peak - own / temperature)
    elif (KIND == "fkl") | (KIND == "skewed_kl"):
        value = forward
    elif KIND == "rkl":
        value = reverse
    elif KIND == "jeffreys":
        value = forward + reverse
    elif KIND == "jsd":
        value = beta * forward + (1 - beta) * draft_part
    elif KIND == "tvd":
        value = 1 - alpha
    elif KIND == "lk_alpha":
        value = -tl.log(alpha)
    elif KIND == "lk_argmax":
        value = -tl.log(below)
    elif KIND == "lk_lambda":
        value = mix * forward + (1 - mix) * (1 - alpha)
    else:
        tl.static_assert(False, "divergence_rows_kernel has no value for this KIND")
    tl.store(value_ptr + row, value)

    if NEED_GRAD:
        scale = tl.load(scale_ptr + row)
        # Every thread has read its label's logit before any thread overwrites it.
        tl.debug_barrier()
        for start in range(0, vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            raw, log_q = _scores(draft_row, columns, vocab, draft_softcap, temperature, DRAFT_CAPPED)
            log_q = log_q - draft_peak - draft_log
            q = tl.exp(log_q)
            if KIND == "ce":
                grad = tl.where(columns == label, q - 1.0, q)
            else:
                _, log_p = _scores(target_row, columns, vocab, target_softcap, temperature, TARGET_CAPPED)
                log_p = log_p - target_peak - target_log
                p = tl.exp(log_p)
                overlap = tl.where(q < p, q, 0.0) - q * below
                if KIND == "fkl":
                    grad = q - p
                elif KIND == "rkl":
                    grad = q * (tl.where(q > 0, log_q - log_p, 0.0) - reverse)
                elif KIND == "jeffreys":
                    grad = q - p + q * (tl.where(q > 0, log_q - log_p, 0.0) - reverse)
                elif KIND == "jsd":
                    log_m = tl.log(beta * p + (1 - beta) * q)
                    grad = (1 - beta) * q * (tl.where(q > 0, log_q - log_m, 0.0) - draft_part)
                elif KIND == "skewed_kl":
                    log_m = tl.log(beta * p + (1 - beta) * q)
                    grad = (1 - beta) * (q * below - tl.where(q > 0, q * tl.exp(log_p - log_m), 0.0))
                elif KIND == "lk_argmax":
                    grad = q - p * q / below
                elif KIND == "tvd":
                    grad = -overlap
                elif KIND == "lk_alpha":
                    grad = -overlap / alpha
                elif KIND == "lk_lambda":
                    grad = mix * (q - p) - (1 - mix) * overlap
                else:
                    tl.static_assert(False, "divergence_rows_kernel has no gradient for this KIND")
            grad *= scale
            if DRAFT_CAPPED:
                ratio = raw / draft_softcap
                grad *= 1.0 - ratio * ratio
            tl.store(draft_row + columns, grad, mask=columns < vocab)


def divergence_tile(
    draft_logits: Tensor,
    target_logits: Tensor | None,
    labels: Tensor | None,
    weights: Tensor,
    kind: str,
    beta: float,
    eta: float,
    temperature: float,
    draft_softcap: float | None,
    target_softcap: float | None,
    need_grad: bool,
    target_rows: Tensor | None = None,
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """Values float32 [rows] and statistics float32 [3, rows]; the gradient replaces `draft_logits`.

    Args:
        draft_logits: [rows, vocab] as the head gave them, contiguous; **overwritten** where need_grad.
        target_logits: Likewise, or None (`ce` without a target); not changed.
        weights: float32 [rows], each row's factor of the loss.
        target_rows: int64 [rows], the row of `target_logits` that each is compared with; None for its own.

    Raises:
        ValueError: An unknown kind.
    """
    kind = find_kind(kind).name
    rows, vocab = draft_logits.shape
    value = torch.empty(rows, dtype=torch.float32, device=draft_logits.device)
    statistics = torch.full((3, rows), float("nan"), device=draft_logits.device)
    divergence_rows_kernel[(rows,)](
        draft_logits,
        target_logits,
        target_rows,
        labels,
        weights.float() / temperature,
        value,
        statistics,
        draft_logits.stride(0),
        0 if target_logits is None else target_logits.stride(0),
        rows,
        vocab,
        float(beta),
        float(eta),
        float(temperature),
        float(draft_softcap or 1.0),
        float(target_softcap or 1.0),
        KIND=kind,
        NEED_GRAD=need_grad,
        DRAFT_CAPPED=draft_softcap is not None,
        TARGET_CAPPED=target_softcap is not None,
        BLOCK=block,
        num_warps=warps_of(THREADS),
    )
    return value, statistics
