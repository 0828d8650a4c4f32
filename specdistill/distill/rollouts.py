"""Where training sequences come from: given answers, the target's answers, the draft's own, or a mixture."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Protocol

from specdistill import atomic_files
from specdistill.data.batch import Provenance, Sequence
from specdistill.data.prompts import Prompt
from specdistill.decoding import Generation, Sampling, generate_plain
from specdistill.errors import DataError
from specdistill.models import LanguageModel
from specdistill.progress import Progress

_ROLLOUT_BATCH = 16


class Source(Protocol):
    """Gives the sequences of each step."""

    def next_batch(self, step: int) -> list[Sequence]:
        """Sequences for optimiser step `step`, counted from 1."""
        ...


class Pool:
    """A fixed set of sequences in a new seeded order each epoch."""

    def __init__(self, sequences: Many[Sequence], batch_size: int, seed: int) -> None:
        self._sequences = list(sequences)
        self._batch_size = batch_size
        self._random = random.Random(seed)
        self._queue: list[Sequence] = []

    def next_batch(self, step: int) -> list[Sequence]:
        while len(self._queue) < self._batch_size:
            epoch = self._sequences.copy()
            self._random.shuffle(epoch)
            self._queue.extend(epoch)
        batch, self._queue = self._queue[: self._batch_size], self._queue[self._batch_size :]
        return batch


class OnPolicy:
    """The draft answers prompts itself, with its current weights: it learns where its own mistakes lead."""

    def __init__(
        self,
        draft: LanguageModel,
        prompts: Many[Prompt],
        encoded: Many[list[int]],
        sampling: Sampling,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self._draft, self._sampling, self._max_new_tokens = draft, sampling, max_new_tokens
        self._encoded = {prompt.id: ids for prompt, ids in zip(prompts, encoded, strict=True)}
        self._turns = PromptTurns([prompt.id for prompt in prompts], batch_size, seed)

    def next_batch(self, step: int) -> list[Sequence]:
        chosen = self._turns.next()
        written = generate_plain(
            self._draft,
            [self._encoded[name] for name, _ in chosen],
            sampling=self._sampling,
            max_new_tokens=self._max_new_tokens,
            seeds=[seed for _, seed in chosen],
        )
        return [
            answer_sequence(name, self._encoded[name], generation, Provenance.DRAFT)
            for (name, _), generation in zip(chosen, written, strict=True)
        ]


class Mixture:
    """GKD: with probability lmbda a step trains on `own`, else on `fixed`; one seeded stream of coins."""

    def __init__(self, own: Source, fixed: Source, lmbda: float, seed: int) -> None:
        self._own, self._fixed, self._lmbda = own, fixed, lmbda
        self._coin = random.Random(seed)

    def next_batch(self, step: int) -> list[Sequence]:
        # random() is in [0, 1): lmbda 0 never and lmbda 1 always takes the draft's own.
        return (self._own if self._coin.random() < self._lmbda else self._fixed).next_batch(step)


class Phases:
    """`first` up to and including step `last_step`, `then` after it."""

    def __init__(self, first: Source, then: Source, last_step: int) -> None:
        self._first, self._then, self._last_step = first, then, last_step

    def next_batch(self, step: int) -> list[Sequence]:
        return (self._first if step <= self._last_step else self._then).next_batch(step)


class PromptTurns:
    """Prompts in a new seeded order each epoch, each time with a new seed for sampling its answer."""

    def __init__(self, ids: Many[str], batch_size: int, seed: int) -> None:
        self._ids, self._batch_size = list(ids), batch_size
        self._random = random.Random(seed)
        self._queue: list[str] = []

    def next(self) -> list[tuple[str, int]]:
        while len(self._queue) < self._batch_size:
            epoch = self._ids.copy()
            self._random.shuffle(epoch)
            self._queue.extend(epoch)
        names, self._queue = self._queue[: self._batch_size], self._queue[self._batch_size :]
        return [(name, self._random.getrandbits(48)) for name in names]


def answer_sequence(prompt_id: str, encoded: list[int], generation: Generation, writer: Provenance) -> Sequence:
    """A generation as a training sequence, all of it written by one model."""
    ids = tuple(generation.token_ids)
    return Sequence(prompt_id, tuple(encoded), ids, (int(writer),) * len(ids))


def check_answers(prompts: Many[Prompt]) -> None:
    """Needs no model, so that a missing answer is found before one is loaded.

    Raises:
        DataError: A prompt has no answer.
    """
    for prompt in prompts:
        if prompt.answer is None:
            raise DataError(
                f'prompt {prompt.id!r} has no answer; supervised-kd needs the field "answer" in every record '
                "(--method seqkd or distillspec let the target answer instead)"
            )


def given_answers(prompts: Many[Prompt], encoded: Many[list[int]], tokenizer, max_new_tokens: int) -> list[Sequence]:
    """The answers that came with the prompts, ended by the end-of-sequence token, cut at `max_new_tokens`.

    Raises:
        DataError: A prompt has no answer.
    """
    check_answers(prompts)
    sequences = []
    for prompt, ids in zip(prompts, encoded, strict=True):
        answer = tokenizer(prompt.answer, add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id][:max_new_tokens]
        sequences.append(Sequence(prompt.id, tuple(ids), tuple(answer), (int(Provenance.GIVEN),) * len(answer)))
    return sequences


def target_rollouts(
    target: LanguageModel,
    prompts: Many[Prompt],
    encoded: Many[list[int]],
    sampling: Sampling,
    *,
    per_prompt: int,
    max_new_tokens: int,
    seed: int,
    progress: Progress,
    save_to: Path,
) -> list[Sequence]:
    """Lets the target answer every prompt several times; each finished batch is on disk before the next starts.

    Args:
        target: The model to imitate.
        prompts, encoded: What to answer.
        sampling: Temperature and filters.
        per_prompt: Answers per prompt.
        max_new_tokens: Tokens per answer.
        seed: Of sampling.
        progress: Where the bar goes.
        save_to: rollouts.jsonl, reusable with --rollouts.
    """
    # Prompts of like length share a batch: padding costs as much as tokens.
    jobs = sorted(
        ((index, copy) for index in range(len(prompts)) for copy in range(per_prompt)),
        key=lambda job: (len(encoded[job[0]]), job),
    )
    sequences: list[Sequence] = []
    with progress.task("target rollouts", len(jobs) * max_new_tokens, "tokens") as task:
        for start in range(0, len(jobs), _ROLLOUT_BATCH):
            chosen = jobs[start : start + _ROLLOUT_BATCH]
            written = generate_plain(
                target,
                [encoded[index] for index, _ in chosen],
                sampling=sampling,
                max_new_tokens=max_new_tokens,
                seeds=[(seed * 1009 + copy) * 1_000_003 + index for index, copy in chosen],
                on_tokens=lambda row, ids: task.advance(len(ids)),
            )
            for (index, _), generation in zip(chosen, written, strict=True):
                task.advance(max_new_tokens - len(generation.token_ids))
                sequences.append(answer_sequence(prompts[index].id, encoded[index], generation, Provenance.TARGET))
            save_rollouts(save_to, sequences)
    return sequences


def save_rollouts(path: Path, sequences: Many[Sequence]) -> None:
    """One JSON object a line: prompt_id, prompt_ids, answer_ids, provenance."""
    lines = [
        json.dumps(
            {
                "prompt_id": sequence.prompt_id,
                "prompt_ids": sequence.prompt_ids,
                "answer_ids": sequence.answer_ids,
                "provenance": sequence.provenance,
            }
        )
        for sequence in sequences
    ]
    atomic_files.write_text(path, "".join(line + "\n" for line in lines))


def load_rollouts(path: Path, prompts: Many[Prompt], encoded: Many[list[int]], vocab_size: int) -> list[Sequence]:
    """Reads `save_rollouts`; only answers to the given prompts, so held-out ones stay out of training.

    Raises:
        DataError: The file is missing or broken, belongs to another tokenizer, or answers none of the prompts.
    """
    known = {prompt.id: tuple(ids) for prompt, ids in zip(prompts, encoded, strict=True)}
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise DataError(f"can't read --rollouts {path}: {error.strerror}") from error
    sequences = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            fields = [tuple(map(int, record[name])) for name in ("prompt_ids", "answer_ids", "provenance")]
            sequence = Sequence(str(record["prompt_id"]), *fields)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not a rollout ({error}); remove the line") from error
        if max(sequence.answer_ids, default=0) >= vocab_size:
            raise DataError(f"{path}, line {number}: an id outside the vocabulary; made with another tokenizer?")
        if known.get(sequence.prompt_id) == sequence.prompt_ids:
            sequences.append(sequence)
    if not sequences:
        raise DataError(f"{path} answers none of the training prompts; pass the --prompts it was made with")
    return sequences
