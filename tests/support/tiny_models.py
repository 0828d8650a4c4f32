"""Random models of every supported family, small enough to run thousands of steps, with a real tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from specdistill.models import LanguageModel

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2")
WORDS = 60
TEMPLATE = (
    "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
)


def make_tokenizer(words: int = WORDS, first_word: str = "w0") -> PreTrainedTokenizerFast:
    """Whole words w0, w1, ... after five special tokens; ids 0..words+4."""
    names = ["<pad>", "<eos>", "<unk>", "<user>", "<bot>", first_word, *(f"w{index}" for index in range(1, words))]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = TEMPLATE
    return fast


def make_config(
    family: str = "llama",
    *,
    layers: int = 3,
    vocab_size: int = WORDS + 5,
    context: int = 256,
    tied: bool = False,
    hidden: int = 32,
):
    """A configuration of four heads."""
    shared = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    if family == "gpt2":
        return GPT2Config(
            vocab_size=vocab_size,
            n_embd=32,
            n_layer=layers,
            n_head=4,
            n_positions=context,
            eos_token_id=1,
            pad_token_id=0,
            bos_token_id=None,
            tie_word_embeddings=tied,
        )
    if family in ("gemma2", "gemma3_text"):
        kind = Gemma2Config if family == "gemma2" else Gemma3TextConfig
        types = ["sliding_attention" if index % 2 == 0 else "full_attention" for index in range(layers)]
        return kind(**shared, head_dim=8, sliding_window=8, layer_types=types, query_pre_attn_scalar=8)
    if family == "mistral":
        return MistralConfig(**shared, sliding_window=8)
    if family == "qwen3":
        return Qwen3Config(**shared, head_dim=8)
    return {"llama": LlamaConfig, "qwen2": Qwen2Config, "gemma": GemmaConfig}[family](**shared)


def make_model(
    family: str = "llama", *, seed: int = 0, tokenizer=None, scale: float = 4.0, **settings
) -> LanguageModel:
    """A random model whose logits are spread enough that its argmaxes are no ties."""
    torch.manual_seed(seed)
    tokenizer = tokenizer or make_tokenizer()
    model = AutoModelForCausalLM.from_config(make_config(family, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return LanguageModel(model, tokenizer, f"tiny-{family}-{seed}", None, max(tokenizer.get_vocab().values()) + 1)


def save(model: LanguageModel, directory: Path) -> Path:
    """Writes a checkpoint that `specdistill.models.load` reads."""
    model.model.save_pretrained(directory)
    model.tokenizer.save_pretrained(directory)
    return directory


def perturbed(model: LanguageModel, amount: float, seed: int = 1) -> LanguageModel:
    """A draft that mostly agrees with the model: its weights plus noise."""
    import copy

    other = copy.copy(model)
    other.model = copy.deepcopy(model.model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in other.model.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn_like(parameter) * parameter.std() * amount)
    other.name = f"{model.name}-perturbed"
    return other
