"""Random models of any size: made on their device from a configuration, nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen3Config

from specdistill.models import LanguageModel


@dataclass(frozen=True)
class Shape:
    """Sizes of a model of Llama's or Qwen 3's architecture."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    intermediate: int
    vocab: int
    tied: bool
    """Whether embedding and output head are one matrix."""
    qwen: bool = False

    def config(self) -> PretrainedConfig:
        """The configuration; no id ends an answer."""
        return (Qwen3Config if self.qwen else LlamaConfig)(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_width,
            max_position_embeddings=2**17,
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )


LLAMA_8B = Shape("Llama-3.1-8B", 4096, 32, 32, 8, 128, 14336, 128256, tied=False)
LLAMA_1B = Shape("Llama-3.2-1B", 2048, 16, 32, 8, 64, 8192, 128256, tied=True)
QWEN_8B = Shape("Qwen3-8B", 4096, 36, 32, 8, 128, 12288, 151936, tied=False, qwen=True)
QWEN_06B = Shape("Qwen3-0.6B", 1024, 28, 16, 8, 128, 3072, 151936, tied=True, qwen=True)
TINY_TARGET = Shape("tiny target", 64, 3, 4, 2, 16, 128, 256, tied=False)
TINY_DRAFT = Shape("tiny draft", 32, 1, 4, 2, 8, 64, 256, tied=True)
TINY_QWEN = Shape("tiny Qwen", 64, 2, 4, 2, 16, 128, 256, tied=True, qwen=True)


class NoTokenizer:
    """Stands in for a tokenizer where prompts are ids and no token ends an answer."""

    eos_token_id = None


def random_model(
    config: PretrainedConfig,
    name: str = "random",
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: Any = None,
) -> LanguageModel:
    """A model with random weights over the configuration's whole vocabulary.

    Args:
        config: The configuration.
        name: Its name in reports.
        device: Where weights are drawn; a GPU draws billions in a second.
        dtype: dtype of the weights.
        tokenizer: None for one that is never asked.
    """
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.requires_grad_(False)
    asked: Any = tokenizer or NoTokenizer()
    return LanguageModel(model, asked, name, None, config.vocab_size)


def random_prompts(count: int, tokens: int, vocab: int) -> list[list[int]]:
    """Prompts of random ids, the same for all contestants."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, vocab, (count, tokens), generator=generator).tolist()
