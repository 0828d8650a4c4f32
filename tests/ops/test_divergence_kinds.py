"""The one table of divergences: what it says is true, and nothing outside it runs."""

from __future__ import annotations

import pytest
import torch

from specdistill_kernels.fused_divergence import DIVERGENCES, KINDS, DivergenceKind
from specdistill_kernels.fused_divergence.kinds import check_one_per_kind
from specdistill_kernels.fused_divergence.reference import divergence

PROBABILISTIC = [name for name, kind in KINDS.items() if kind.needs_target]


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_the_table_says_which_arguments_change_the_value(kind):
    torch.manual_seed(0)
    draft, target, other = torch.randn(3, 4, 9, dtype=torch.float64)
    labels = torch.tensor([0, 8, 3, 3])

    def value(target=target, labels=labels, **settings):
        return divergence(draft, target, kind, labels=labels, **settings)

    def differs(settings, baseline):
        return not torch.equal(value(**settings), value(**baseline))

    row = KINDS[kind]
    assert differs({"beta": 0.9}, {"beta": 0.2}) == row.uses_beta
    assert differs({"eta": 1.0}, {"eta": 2.0}) == row.uses_eta
    assert differs({"target": other}, {}) == row.needs_target
    assert differs({"labels": labels.flip(0)}, {}) == (not row.needs_target)
    assert torch.equal(value(), value(beta=row.default_beta))


@pytest.mark.parametrize(
    ("from_target", "from_labels", "named"),
    [
        (PROBABILISTIC[1:], ["ce"], "fkl"),
        ([*PROBABILISTIC, "chi2"], ["ce"], "chi2"),
        ([*PROBABILISTIC, "ce"], [], "ce"),
    ],
    ids=["one is missing", "one is not in the table", "one in the wrong argument"],
)
def test_an_implementation_must_have_exactly_the_kinds_of_the_table(from_target, from_labels, named):
    check_one_per_kind(PROBABILISTIC, ["ce"])
    with pytest.raises(ValueError, match=f"disagree about: {named}$"):
        check_one_per_kind(from_target, from_labels)


def test_every_python_entry_refuses_an_unknown_kind(device):
    from specdistill_kernels.fused_divergence.fused import divergence_tile

    logits, ones = torch.zeros(2, 5, device=device), torch.ones(2, device=device)
    names = ", ".join(DIVERGENCES)
    for call in (
        lambda: divergence(logits, logits, "kl"),
        lambda: divergence_tile(logits, logits, None, ones, "kl", 0.5, 3.0, 1.0, None, None, False),
    ):
        with pytest.raises(ValueError, match=f"unknown divergence 'kl'; choose one of {names}"):
            call()


@pytest.mark.parametrize("need_grad", [False, True])
def test_the_kernel_itself_has_no_branch_for_an_unknown_kind(need_grad, device, monkeypatch):
    """A kind that is in the table and not in the kernel must not run as another one; see also tests/test_aot.py."""
    from specdistill_kernels.fused_divergence import fused

    monkeypatch.setattr(fused, "find_kind", lambda name: DivergenceKind(name, "no formula"))
    logits, ones = torch.zeros(2, 5, device=device), torch.ones(2, device=device)
    # The interpreter and the compiler raise their own errors; both quote the assertion.
    with pytest.raises(Exception, match="has no value for this KIND"):
        fused.divergence_tile(logits, logits.clone(), None, ones, "kl", 0.5, 3.0, 1.0, None, None, need_grad)
