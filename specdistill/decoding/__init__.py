"""Generation with and without a draft: the exact speculative decoder and the plain decoder it is compared with."""

from specdistill.decoding.autoregressive import generate_plain
from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.draft_length import AutoLength, ConfidenceLength, FixedLength
from specdistill.decoding.generation import Generation, Round, unpad
from specdistill.decoding.guidance import Guidance, build_guidance
from specdistill.decoding.speculative import SpeculativeDecoder
from specdistill.settings.sampling import Sampling

__all__ = [
    "AutoLength",
    "CachedModel",
    "ConfidenceLength",
    "FixedLength",
    "Generation",
    "Guidance",
    "Round",
    "Sampling",
    "SpeculativeDecoder",
    "build_guidance",
    "generate_plain",
    "unpad",
]
