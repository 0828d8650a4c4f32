"""EAGLE-3 heads: one-layer drafts that read the target's hidden states, in the flat file format of vLLM and others."""

from specdistill.models.eagle3.aux_states import AuxStates
from specdistill.models.eagle3.described import is_head
from specdistill.models.eagle3.files import load_head, save_head
from specdistill.models.eagle3.head import Eagle3Head
from specdistill.models.eagle3.start import default_aux_layers, head_from_target
from specdistill.models.eagle3.unrolled import Anchors, unrolled_states

__all__ = [
    "Anchors",
    "AuxStates",
    "Eagle3Head",
    "default_aux_layers",
    "head_from_target",
    "is_head",
    "load_head",
    "save_head",
    "unrolled_states",
]
