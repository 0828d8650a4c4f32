"""Operations of speculative decoding and draft distillation, on the flat shapes that serving engines hold.

Needs only torch, numpy and, on a GPU, triton, so a serving stack can install this package alone. Each operation has a
folder with its public function, a plain-torch `reference.py` that defines it, and Triton kernels in `fused.py`.
`fused_divergence` also has a tiled torch version in `tiles.py`. Importing this package does not import triton.

    expected_acceptance   how often a draft token is accepted under every rule, from a pair of logits rows
    fused_divergence      a divergence and its gradient from hidden states, without storing logits
    verify                accepted count and next token of each drafted block
    sample                one token per row from filtered logits, by counter-based Gumbel noise
    filter_threshold      top-k, top-p and min-p as the logit that a token must reach
    topk_membership       whether a token is among the row's K largest logits (the test of speculative KD)
"""

from specdistill_kernels import noise
from specdistill_kernels.expected_acceptance import AcceptanceStatistics, expected_acceptance
from specdistill_kernels.filter_threshold import filter_threshold
from specdistill_kernels.fused_divergence import DIVERGENCES, DivergenceOutput, SoftLabels, fused_divergence
from specdistill_kernels.sample import sample
from specdistill_kernels.topk_membership import topk_membership
from specdistill_kernels.verify import RULES, Verified, verify

__all__ = [
    "DIVERGENCES",
    "RULES",
    "AcceptanceStatistics",
    "DivergenceOutput",
    "SoftLabels",
    "Verified",
    "expected_acceptance",
    "filter_threshold",
    "fused_divergence",
    "noise",
    "sample",
    "topk_membership",
    "verify",
]
