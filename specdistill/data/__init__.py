"""Prompts, raw text, training examples that remember who wrote each token, and stored soft labels."""

from specdistill.data.batch import Batch, Example, Provenance, collate
from specdistill.data.prompts import Prompt, load_prompts, split_prompts

__all__ = ["Batch", "Example", "Prompt", "Provenance", "collate", "load_prompts", "split_prompts"]
