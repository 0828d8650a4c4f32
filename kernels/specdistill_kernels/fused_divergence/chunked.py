"""`fused_divergence`, a tile of rows at a time: by `tiles.py` in torch, or by the kernels of `fused.py`.

Forward already computes the gradients, scaled by the caller's weights. It keeps only the [tokens, hidden] and
[vocab, hidden] gradients and never multiplies the heads twice. Backward only scales them by the incoming scalar.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdistill_kernels.fused_divergence.tiles import Settings, SoftLabels, TileTarget, torch_tile, wide


class ChunkedDivergence(torch.autograd.Function):
    """The autograd function behind `fused_divergence`, with the same inputs and outputs."""

    @staticmethod
    def forward(
        ctx,
        draft_hidden,
        draft_weight,
        target_hidden,
        target_weight,
        weights,
        labels,
        soft_labels,
        target_rows,
        settings: Settings,
    ):
        tokens = draft_hidden.shape[0]
        per_token = torch.zeros(tokens, dtype=torch.float32, device=draft_hidden.device)
        fill = float("nan") if target_hidden is None and soft_labels is None else 0.0
        statistics = torch.full((3, tokens), fill, dtype=torch.float32, device=draft_hidden.device)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(draft_hidden) if need_hidden else None
        head = draft_weight[: settings.vocab_size]
        # float32 whatever the head's dtype: bf16 sums over many tiles lose 4 to 23 % of the gradient.
        grad_weight = torch.zeros(draft_weight.shape, dtype=wide(head), device=head.device) if need_weight else None
        idle = None
        if settings.static_shapes:
            idle = weights == 0
            active = torch.arange(tokens, device=weights.device)
        else:
            active = weights.nonzero()[:, 0]
        if target_rows is not None:
            # Tokens that share a row of the target lie in one tile, which multiplies the target's head once for them.
            active = active[target_rows[active].argsort(stable=True)]
        for rows in active.split(settings.tile_rows):

            def take(tensor: Tensor, filler: float = 0, rows: Tensor = rows) -> Tensor:
                # Idle tokens may hold anything, and 0 times NaN is NaN.
                return tensor[rows] if idle is None else _masked(tensor[rows], idle[rows], filler)

            hidden = take(draft_hidden)
            soft = None
            if soft_labels is not None:
                soft = SoftLabels(take(soft_labels.token_ids), take(soft_labels.log_probs, -torch.inf))
            target = None
            if target_hidden is not None and target_rows is not None:
                distinct, places = target_rows[rows].unique(return_inverse=True)
                target = TileTarget(target_hidden[distinct], target_weight, places)
            elif target_hidden is not None:
                target = TileTarget(take(target_hidden), target_weight, None)
            value, grad, tile_statistics = (_fused_tile if settings.fused else torch_tile)(
                hidden,
                head,
                target,
                None if labels is None else take(labels),
                soft,
                weights[rows],
                settings,
                need_hidden or need_weight,
            )
            if idle is not None:
                value = value.masked_fill(idle[rows], 0)
                if tile_statistics is not None:
                    tile_statistics = _masked(tile_statistics.T, idle[rows], fill).T
            per_token[rows] = value.float()
            if tile_statistics is not None:
                statistics[:, rows] = tile_statistics.float()
            if grad is None:
                continue
            if grad_hidden is not None:
                grad_hidden[rows] = (grad.to(head.dtype) @ head).to(grad_hidden.dtype)
            if grad_weight is not None and settings.fused:
                _add_weight_gradient(grad_weight, grad, hidden.to(head.dtype))
            elif grad_weight is not None:
                grad_weight[: len(head)].addmm_(grad.T, hidden.to(grad.dtype))
            del grad  # It would stay in memory next to both of the next tile's logits.
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(draft_weight.dtype))
        ctx.mark_non_differentiable(per_token, statistics)
        loss = (per_token[active].double() * weights[active].double()).sum()
        return loss.to(wide(head)), per_token, statistics

    @staticmethod
    def backward(ctx, grad_loss, *_unused):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, grad_weight = ctx.saved_tensors
        # The usual case: no copy of the head's size is made. On a GPU, reading the number would wait for the device.
        if type(grad_loss) is Tensor and grad_loss.device.type == "cpu" and grad_loss == 1:
            return grad_hidden, grad_weight, *(None,) * 7
        return (
            None if grad_hidden is None else grad_hidden * grad_loss,
            None if grad_weight is None else grad_weight * grad_loss,
            *(None,) * 7,
        )


def _fused_tile(
    hidden: Tensor,
    head: Tensor,
    target: TileTarget | None,
    labels: Tensor | None,
    soft_labels: SoftLabels | None,
    weights: Tensor,
    settings: Settings,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `torch_tile`; the gradient has the head's dtype and overwrites the logits."""
    from specdistill_kernels.fused_divergence.fused import divergence_tile

    assert soft_labels is None, "soft labels run in torch"
    logits, target_logits, places = hidden.to(head.dtype) @ head.T, None, None
    if target is not None:
        assert target.head is not None, "log-probabilities run in torch"
        target_logits, places = target.hidden.to(target.head.dtype) @ target.head.T, target.places
    value, statistics = divergence_tile(
        logits,
        target_logits,
        labels,
        weights,
        settings.kind.name,
        settings.beta,
        settings.eta,
        settings.temperature,
        settings.draft_softcap,
        settings.target_softcap,
        need_grad,
        places,
    )
    return value, logits, statistics


def _add_weight_gradient(out: Tensor, grad: Tensor, hidden: Tensor) -> None:
    from specdistill_kernels.fused_divergence.fused_head import add_weight_gradient

    add_weight_gradient(out, grad, hidden)


def _masked(rows: Tensor, mask: Tensor, filler: float) -> Tensor:
    return rows.masked_fill(mask[:, None] if rows.ndim == 2 else mask, filler)
