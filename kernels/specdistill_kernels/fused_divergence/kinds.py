"""The one table of divergences, read by the torch reference, the tiled torch path and the Triton kernels.

In formulas p is the target's distribution, q the draft's, alpha = sum_v min(p, q), and m = beta p + (1 - beta) q.
To add a kind: a row here, its value in `reference.py`, its value and gradient in `closed_forms.py` and in `fused.py`.
A row without an implementation fails on import, or when the kernel is compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class DivergenceKind:
    """A divergence and the arguments of `fused_divergence` that it reads."""

    name: str
    """The value of the argument `kind`, and the kernels' constant KIND."""
    formula: str
    """The value of one token, in nats (tvd: unitless)."""
    uses_beta: bool = False
    """Whether the formula contains beta."""
    default_beta: float = 0.5
    """beta where the caller gives none."""
    uses_eta: bool = False
    """Whether the formula contains eta."""
    needs_target: bool = True
    """Whether it compares with the target's distribution; otherwise it needs a label per token."""


# Default betas as published: GKD's jsd has the symmetric mixture, DistiLLM's skewed_kl a slight one.
_ROWS = (
    DivergenceKind("fkl", "KL(p || q)"),
    DivergenceKind("rkl", "KL(q || p)"),
    DivergenceKind("jsd", "beta KL(p || m) + (1 - beta) KL(q || m)", uses_beta=True),
    DivergenceKind("jeffreys", "KL(p || q) + KL(q || p)"),
    DivergenceKind("skewed_kl", "KL(p || m)", uses_beta=True, default_beta=0.1),
    DivergenceKind("tvd", "1 - alpha"),
    DivergenceKind("lk_alpha", "-log alpha"),
    DivergenceKind("lk_lambda", "w fkl + (1 - w) tvd, w = exp(-eta alpha) held constant", uses_eta=True),
    DivergenceKind("lk_argmax", "-log sum_v p q, the softened -log p(argmax q)"),
    DivergenceKind("ce", "-log q(label)", needs_target=False),
)

KINDS: Mapping[str, DivergenceKind] = MappingProxyType({kind.name: kind for kind in _ROWS})
"""Every divergence by its name."""

DIVERGENCES = tuple(KINDS)
"""The names, in the table's order."""


def find_kind(name: str) -> DivergenceKind:
    """Returns the divergence of this name.

    Raises:
        ValueError: No divergence has this name.
    """
    if name not in KINDS:
        raise ValueError(f"unknown divergence {name!r}; choose one of {', '.join(DIVERGENCES)}")
    return KINDS[name]


def check_one_per_kind(from_target: Iterable[str], from_labels: Iterable[str]) -> None:
    """Checks that an implementation has every kind of the table, sorted by what the kind needs, and no other kind.

    Args:
        from_target: Names of the kinds that it computes from the target's distribution.
        from_labels: Names of the kinds that it computes from labels.

    Raises:
        ValueError: A kind is missing, is not in the table, or is in the wrong one of the two arguments.
    """
    wanted = {(kind.name, kind.needs_target) for kind in KINDS.values()}
    implemented = {(name, True) for name in from_target} | {(name, False) for name in from_labels}
    if implemented != wanted:
        names = ", ".join(sorted({name for name, _ in implemented ^ wanted}))
        raise ValueError(f"an implementation and the table KINDS disagree about: {names}")
