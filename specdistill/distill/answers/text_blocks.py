"""Raw text in blocks, as in pre-training: every document begins and ends as there, and so does every block begin."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from specdistill.data.batch import Example, Provenance
from specdistill.data.prompts import Prompt, check_ids
from specdistill.data.texts import Piece, TextCounts
from specdistill.distill.answers.given import AnswerCounts
from specdistill.errors import ConfigError, DataError
from specdistill.files import parquet

_Item = TypeVar("_Item")
_DEFAULT_BLOCK = 512
_PIECES = 16
"""Pieces that are tokenised together."""


def document_start(tokenizer) -> list[int]:
    """Ids that the tokenizer itself writes before a text: BOS for Gemma, Llama and Mistral; none for GPT-2 and Qwen."""
    whole, plain = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return list(whole[:start])
    return []


def block_size(asked: int | None, max_context: int, tokenizer) -> int:
    """Predicted tokens per block.

    Args:
        asked: --text-block; None takes 512, or what fits.
        max_context: Positions of the models.
        tokenizer: Decides how many ids stand before a block.

    Raises:
        ConfigError: A block does not fit the context.
    """
    room = max_context - max(1, len(document_start(tokenizer)))
    if asked is not None and asked > room:
        raise ConfigError(f"--text-block {asked} exceeds the {room} tokens that fit the models' context; lower it")
    return asked or min(_DEFAULT_BLOCK, room)


def text_blocks(
    pieces: Iterable[Piece], tokenizer, end: int, block: int, vocab_size: int | None = None
) -> Iterator[Example]:
    """Cuts documents that follow each other into blocks; every token of the text is predicted once.

    A block's prompt is what the tokenizer writes before a text. Where that is nothing it is the token before the block,
    so that the very first token of the text is never predicted.

    Args:
        pieces: Documents.
        tokenizer: The model's.
        end: Id after each document.
        block: Predicted tokens per block; the last one may be shorter.
        vocab_size: Number of ids that the model has weights for; None trusts the tokenizer.

    Raises:
        DataError: Fewer than two tokens in all, or one without weights.
    """
    start = document_start(tokenizer)
    reach = block + max(1, len(start))
    number, ids, place, at_start = 0, [], 0, True
    for batch in _batches(pieces, _PIECES):
        encoded = tokenizer([piece.text for piece in batch], add_special_tokens=False)["input_ids"]
        for piece, tokens in zip(batch, encoded, strict=True):
            if vocab_size is not None:
                check_ids(tokens, tokenizer, vocab_size, "--text")
            ids += [*(start if at_start else []), *tokens, *([end] if piece.ends else [])]
            at_start = piece.ends
        while len(ids) - place >= reach:
            example, place = _take(ids, place, start, block, number)
            yield example
            number += 1
        ids, place = ids[place:], 0
    while True:
        example, place = _take(ids, place, start, block, number)
        if not example.answer_ids:
            break
        yield example
        number += 1
    if not number:
        raise DataError("--text holds fewer than two tokens")


def _take(ids: list[int], place: int, start: list[int], block: int, number: int) -> tuple[Example, int]:
    """The block at a place, and the place of the next one."""
    if not start:
        prompt, first = ids[place : place + 1], place + 1
    else:
        # A block that begins with a document has its start as prompt already.
        prompt, first = start, place + len(start) * (ids[place : place + len(start)] == start)
    answer = ids[first : first + block]
    following = first + len(answer) - (not start)
    return Example(f"text-{number}", tuple(prompt), tuple(answer), (int(Provenance.GIVEN),) * len(answer)), following


def text_counts(source: str, counts: TextCounts | None, say: Callable[[str], None]) -> AnswerCounts:
    """Reports documents that are left out in one line, where there are any; what `check_texts` counted."""
    if counts is None or not counts.empty:
        return AnswerCounts()
    say(f"--text {source}: of {counts.documents + counts.empty} documents {counts.empty} are empty and left out")
    return AnswerCounts(empty=counts.empty)


def as_prompt(block: str) -> Prompt:
    """A labelled block's place among prompts, which are split by their text: its name."""
    return Prompt(block, ({"role": "user", "content": block},))


def write_blocks(blocks: Iterable[Example], directory: Path, shard: str, rows_per_shard: int) -> None:
    """Writes blocks as rows of answers that wait for labels. Replaces old blocks: a text may have changed after a kill.

    Args:
        blocks: From `text_blocks`.
        directory: Takes its name when all shards are written.
        shard: Name of a shard, with a place for its number.
        rows_per_shard: Blocks per shard.
    """
    partial = directory.with_name(f"{directory.name}.partial")
    for old in (directory, partial):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    for number, rows in enumerate(_batches(blocks, rows_per_shard)):
        parquet.write(partial / shard.format(number), [_row(block) for block in rows])
    partial.rename(directory)


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _row(block: Example) -> parquet.Row:
    return {
        "prompt_id": block.prompt_id,
        "copy": 0,
        "prompt_ids": list(block.prompt_ids),
        "answer_ids": list(block.answer_ids),
        "provenance": list(block.provenance),
    }
