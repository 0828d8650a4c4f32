"""Prompts, chat templates, and batches of token sequences that remember who wrote each token."""

from specdistill.data.batch import Batch, Example, Provenance, collate
from specdistill.data.prompts import Prompt, load_prompts, split_prompts

__all__ = ["Batch", "Example", "Prompt", "Provenance", "collate", "load_prompts", "split_prompts"]
