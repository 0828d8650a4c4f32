"""Finished sequences to train on: given answers, raw text, and answers that the target samples.

Sampled answers are kept in a directory of parquet shards, which `datasets` loads as it is. A shard holds a fixed part
of the work and takes its name only when it is whole: after a kill the run goes on with the first shard that is missing,
and no prompt is lost or answered twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from specdistill.data.answer_rows import AnswerRow, template_columns
from specdistill.data.batch import Example, Provenance
from specdistill.data.prompts import Prompt
from specdistill.decoding import Generation, Guidance, Sampling, generate_plain
from specdistill.decoding.generation import as_example
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.errors import DataError
from specdistill.files import parquet
from specdistill.models import LanguageModel
from specdistill.progress import Progress, Task

Write = Callable[[list[list[int]], Sampling, int, list[int]], list[Generation]]
"""(prompts' ids, sampling, max_new_tokens, seeds) -> an answer to each prompt, by whatever writes them."""

SHARD = "train-{:05d}.parquet"


def check_answers(prompts: Sequence[Prompt], method: str) -> None:
    """Needs no model, so that a missing answer is found before one is loaded.

    Raises:
        DataError: A prompt has no answer.
    """
    for prompt in prompts:
        if prompt.answer is None:
            raise DataError(
                f'prompt {prompt.id!r} has no answer; {method} needs the field "answer" in every record '
                "(--method seqkd or distillspec let the target answer instead)"
            )


def given_answers(
    prompts: Sequence[Prompt], encoded: Sequence[list[int]], tokenizer, eos_token_id: int, max_new_tokens: int
) -> list[Example]:
    """The answers that came with the prompts, ended by the end-of-sequence token, cut at `max_new_tokens`."""
    sequences = []
    for prompt, ids in zip(prompts, encoded, strict=True):
        assert prompt.answer is not None, "check_answers comes first"
        answer = [*tokenizer(prompt.answer, add_special_tokens=False)["input_ids"], eos_token_id][:max_new_tokens]
        sequences.append(Example(prompt.id, tuple(ids), tuple(answer), (int(Provenance.GIVEN),) * len(answer)))
    return sequences


def text_sequences(texts: Sequence[str], tokenizer, eos_token_id: int, block: int) -> list[Example]:
    """Raw text as in pre-training: documents end with eos, follow each other, and are cut into blocks.

    Args:
        texts: Documents.
        tokenizer, eos_token_id: The target's.
        block: Predicted tokens per sequence; the token before them is its prompt. The last block may be shorter.

    Raises:
        DataError: Fewer than two tokens in all.
    """
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], eos_token_id]
    sequences = []
    for number, start in enumerate(range(0, len(ids) - 1, block)):
        answer = tuple(ids[start + 1 : start + 1 + block])
        sequences.append(Example(f"text-{number}", (ids[start],), answer, (int(Provenance.GIVEN),) * len(answer)))
    if not sequences:
        raise DataError("--text holds fewer than two tokens")
    return sequences


@dataclass(frozen=True)
class RolloutSettings:
    """How answers are sampled."""

    sampling: Sampling
    max_new_tokens: int
    seed: int
    batch_size: int = 16
    shard_size: int = 64
    """Answers per shard: what a kill can cost."""
    guidance: Guidance | None = None

    def num_shards(self, num_prompts: int, copies: int) -> int:
        """Number of shards for `copies` answers to each prompt; a shard never holds two copies."""
        return copies * -(-num_prompts // self.shard_size)


def sample_rollouts(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    settings: RolloutSettings,
    *,
    copies: int,
    directory: Path,
    progress: Progress,
    name: str = "target rollouts",
    ranks: Ranks = ALONE,
    write: Write | None = None,
) -> None:
    """Lets a model answer every prompt `copies` times, shard by shard; shards that are there already are left alone.

    Args:
        model: Writes the answers.
        prompts, encoded: What to answer.
        settings: Sampling; must be those of the shards already there.
        copies: Answers per prompt. Raising it later only adds shards: all first answers come first, then all second.
        directory: Where the shards go.
        progress: Where the bar goes.
        name: Name of the bar.
        ranks: Each one writes its share of the shards; all return when every shard is there.
        write: Answers in the model's place, where it is only a shell: a server, an engine.
    """
    job = RolloutJob(model, prompts, encoded, settings, directory, write)
    shards = ranks.share(range(settings.num_shards(len(prompts), copies)))
    with progress.task(name, copies * len(prompts) * settings.max_new_tokens // ranks.world, "tokens") as task:
        for shard in shards:
            job.write_shard(shard, task)
    ranks.wait()


class RolloutJob:
    """All answers to a set of prompts, split into shards; arguments as in `sample_rollouts`."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        encoded: Sequence[list[int]],
        settings: RolloutSettings,
        directory: Path,
        write: Write | None = None,
    ) -> None:
        self._model, self._prompts, self._encoded = model, prompts, encoded
        self._settings, self._directory, self._write = settings, directory, write
        # Prompts of like length share a batch: padding costs as much as tokens.
        self._order = sorted(range(len(prompts)), key=lambda index: (len(encoded[index]), index))

    def write_shard(self, shard: int, task: Task) -> int:
        """Writes a shard where it is missing; the tokens it may hold."""
        settings = self._settings
        copy, part = divmod(shard, settings.num_shards(len(self._order), copies=1))
        chosen = self._order[part * settings.shard_size : (part + 1) * settings.shard_size]
        path = self._directory / SHARD.format(shard)
        most = len(chosen) * settings.max_new_tokens
        if path.exists():
            task.advance(most)
            return most
        rows: list[AnswerRow] = []
        for start in range(0, len(chosen), settings.batch_size):
            batch = chosen[start : start + settings.batch_size]
            rows += _answer(self._model, self._prompts, self._encoded, settings, batch, copy, task, self._write)
        parquet.write(path, rows)
        return most


def _answer(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    settings: RolloutSettings,
    chosen: list[int],
    copy: int,
    task,
    write: Write | None,
) -> list[AnswerRow]:
    seeds = [rollout_seed(settings.seed, prompts[index].id, copy) for index in chosen]
    asked = [encoded[index] for index in chosen]
    if write is None:
        written = generate_plain(
            model,
            asked,
            sampling=settings.sampling,
            max_new_tokens=settings.max_new_tokens,
            seeds=seeds,
            on_tokens=lambda row, ids: task.advance(len(ids)),
            guidance=settings.guidance,
        )
    else:
        written = write(asked, settings.sampling, settings.max_new_tokens, seeds)
        task.advance(sum(len(generation.token_ids) for generation in written))
    rows, columns = [], template_columns(prompts)
    for index, seed, generation in zip(chosen, seeds, written, strict=True):
        # Answers that ended early leave their share of the bar.
        task.advance(settings.max_new_tokens - len(generation.token_ids))
        prompt = prompts[index]
        sequence = as_example(prompt.id, encoded[index], generation, Provenance.TARGET)
        rows.append(
            {
                "prompt_id": prompt.id,
                "messages": list(prompt.messages),
                "answer": model.decode(generation.token_ids),
                "category": prompt.category,
                "copy": copy,
                "prompt_ids": list(sequence.prompt_ids),
                "answer_ids": list(sequence.answer_ids),
                "provenance": list(sequence.provenance),
                "finish_reason": generation.finish_reason,
                "seed": seed,
                "model": model.name,
                **columns[index],
            }
        )
    return rows


def rollout_seed(seed: int, prompt_id: str, copy: int) -> int:
    """A rollout's own seed: other prompts and copies in the set don't change it."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, prompt_id, copy]).encode()).digest()[:6])


def find_shards(source: Path) -> list[Path]:
    """The shards of a directory, in order; needs no model.

    Raises:
        DataError: There are none.
    """
    shards = sorted(source.glob("*.parquet"))
    if not shards:
        raise DataError(f"{source} holds no rollouts (*.parquet); 'specdistill generate' and train-draft write them")
    return shards


def read_rollouts(source: Path) -> list[AnswerRow]:
    """All rows of a directory of shards, in order.

    Raises:
        DataError: No shards, or one that can't be read, or that holds no rollouts.
    """
    rows = [row for shard in find_shards(source) for row in parquet.read(shard)]
    missing = {"prompt_id", "prompt_ids", "answer_ids", "provenance"} - set(rows[0] if rows else {})
    if missing:
        raise DataError(f"{source} is no set of rollouts: it lacks {', '.join(sorted(missing))}")
    return cast(list[AnswerRow], rows)


def load_rollouts(
    source: Path, prompts: Sequence[Prompt], encoded: Sequence[list[int]], vocab_size: int, copies: int | None = None
) -> list[Example]:
    """Reads a directory of shards; only answers to the given prompts, so held-out ones stay out of training.

    Args:
        source: The directory.
        prompts, encoded: Whose answers are wanted.
        vocab_size: Size of the target's vocabulary.
        copies: At most this many per prompt, the first ones; None takes all.

    Raises:
        DataError: The directory is missing or broken, belongs to another tokenizer, or answers none of the prompts.
    """
    rows = read_rollouts(source)
    return [sequence for _, sequence in select_rows(rows, source, prompts, encoded, vocab_size, copies)]


def to_example(row: AnswerRow) -> Example:
    """A row as an example, without its labels."""
    prompt, answer, provenance = tuple(row["prompt_ids"]), tuple(row["answer_ids"]), tuple(row["provenance"])
    return Example(row["prompt_id"], prompt, answer, provenance)


def select_rows(
    rows: Sequence[AnswerRow],
    source: Path,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    vocab_size: int,
    copies: int | None = None,
) -> list[tuple[int, Example]]:
    """Finds the rows that answer the given prompts: number and example of each; see `load_rollouts`."""
    known = {prompt.id: tuple(ids) for prompt, ids in zip(prompts, encoded, strict=True)}
    selected = []
    for number, row in enumerate(rows):
        if known.get(row["prompt_id"]) != tuple(row["prompt_ids"]) or (copies and row.get("copy", 0) >= copies):
            continue
        example = to_example(row)
        if max(example.answer_ids, default=0) >= vocab_size:
            raise DataError(f"{source}: an id outside the vocabulary; made with another tokenizer?")
        selected.append((number, example))
    if not selected:
        raise DataError(
            f"{source} answers none of the training prompts; pass the --prompts and the tokenizer it was made with"
        )
    return selected
