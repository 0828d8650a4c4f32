"""Loads models (hub id, directory, .gguf), compares their vocabularies, and cuts a draft out of a target."""

from specdistill.models.cut import cut_draft
from specdistill.models.language_model import LanguageModel
from specdistill.models.load import load_model
from specdistill.models.pair import ModelPair, load_pair
from specdistill.models.vocabulary import check_same_vocabulary, real_vocab_size

__all__ = [
    "LanguageModel",
    "ModelPair",
    "check_same_vocabulary",
    "cut_draft",
    "load_model",
    "load_pair",
    "real_vocab_size",
]
