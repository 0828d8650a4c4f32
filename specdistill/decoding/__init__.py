"""Generation with and without a draft: the exact speculative decoder, the plain baseline, and their shared parts."""

from specdistill.decoding.autoregressive import generate_plain
from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.generation import Generation, Round
from specdistill.decoding.sampling import Sampling
from specdistill.decoding.speculative import SpeculativeDecoder

__all__ = ["CachedModel", "Generation", "Round", "Sampling", "SpeculativeDecoder", "generate_plain"]
