"""Tokenizers of the two common spellings, with chosen tokens: byte-level (GPT-2, Llama 3), SentencePiece (Llama 2)."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = (
    "<s>{% for m in messages %}[INST]{{ m['content'] }}[/INST]</s>{% endfor %}"
    "{% if add_generation_prompt %}[BOT]{% endif %}"
)


def byte_level(words: Sequence[str], *, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Control tokens <|endoftext|>, <|im_start|>, <|im_end|>, every byte, then the words with all their beginnings."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    table = bytes_to_unicode()
    spelled = ["".join(table[value] for value in word.encode()) for word in words]
    vocab, merges = _vocabulary([*special, *table.values()], spelled)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[1], eos_token=special[2], unk_token=special[0]
    )
    fast.chat_template = template
    return fast


def sentencepiece(words: Sequence[str], *, template: str | None = None) -> PreTrainedTokenizerFast:
    """Control tokens <unk>, <s>, </s>, [INST], [BOT], every byte as <0x41>, the words' characters, then the words."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[BOT]"]
    spelled = [word.replace(" ", "▁") for word in words]
    letters = sorted({letter for word in spelled for letter in word} | {"▁"})
    vocab, merges = _vocabulary([*special, *(f"<0x{value:02X}>" for value in range(256)), *letters], spelled)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = template
    return fast


def _vocabulary(first: Sequence[str], words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of single tokens, and words that are merged letter by letter from their beginning."""
    vocab = {token: number for number, token in enumerate(first)}
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    return vocab, merges
