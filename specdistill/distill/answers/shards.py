"""Answers that the target samples.

They are kept in a directory of parquet shards, which `datasets` loads as it is. A shard holds a fixed part
of the work and takes its name only when it is whole: after a kill the run goes on with the first shard that is missing,
and no prompt is lost or answered twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from specdistill.data.answer_rows import AnswerRow, Asked, asked_columns
from specdistill.data.batch import ROW_TOKENS, Example, Provenance, split_by_tokens
from specdistill.data.prompts import Prompt
from specdistill.data.target_context import TargetView
from specdistill.decoding import Generation, Guidance, Sampling, generate_plain
from specdistill.decoding.generation import as_example
from specdistill.distill.answers.matching import select_rows
from specdistill.distill.answers.matching import to_example as to_example
from specdistill.distill.answers.shard_plan import SHARD as SHARD
from specdistill.distill.answers.shard_plan import ShardWork, plan_shards
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.errors import DataError
from specdistill.files import parquet
from specdistill.models import LanguageModel
from specdistill.progress import Progress, Task

Write = Callable[[list[list[int]], Sampling, int, list[int]], list[Generation]]
"""(prompts' ids, sampling, max_new_tokens, seeds) -> an answer to each prompt, by whatever writes them."""


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
    view: TargetView = field(default_factory=TargetView)
    """Prompts as the target sees them."""

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
    """Lets a model answer every prompt `copies` times, shard by shard; answers that are there already are left alone.

    Args:
        model: Writes the answers.
        prompts, encoded: What to answer.
        settings: Sampling; must be those of the shards already there.
        copies: Answers per prompt. Raising it later only adds shards, and so does adding prompts; see `plan_shards`.
        directory: Where the shards go.
        progress: Where the bar goes.
        name: Name of the bar.
        ranks: Each one writes its share of the shards; all return when every shard is there.
        write: Answers in the model's place, where it is only a shell: a server, an engine.
    """
    job = RolloutJob(model, prompts, encoded, settings, directory, write)
    plan = plan_shards(prompts, encoded, settings.shard_size, copies, directory) if ranks.is_main else None
    # One plan for all: another rank may look when the first answers are already there.
    plan = next(found for found in ranks.gather([plan]) if found is not None)
    if remark := plan.remark(directory):
        progress.say(remark)
    with progress.task(name, copies * len(prompts) * settings.max_new_tokens // ranks.world, "tokens") as task:
        for shard in ranks.share(plan.shards):
            job.write_shard(shard, task)
    ranks.wait()


class RolloutJob:
    """Writes the answers of one shard at a time; arguments as in `sample_rollouts`."""

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
        self._asked = asked_columns(prompts)

    def write_shard(self, shard: ShardWork, task: Task) -> int:
        """Writes a shard where it is missing; the tokens it may hold."""
        settings, chosen = self._settings, list(shard.chosen)
        path = self._directory / SHARD.format(shard.number)
        known = shard.answered * settings.max_new_tokens
        most = known + len(chosen) * settings.max_new_tokens
        # A Ray worker that died may have finished it.
        if not chosen or path.exists():
            task.advance(most)
            return most
        task.advance(known)
        rows: list[AnswerRow] = []
        lengths = [
            len(settings.view.ids_of(self._prompts[index].id, self._encoded[index])) + settings.max_new_tokens
            for index in chosen
        ]
        # Servers and engines batch by themselves.
        row_tokens = ROW_TOKENS if self._write is None else max(lengths)
        for places in split_by_tokens(lengths, settings.batch_size, settings.batch_size * row_tokens):
            batch = [chosen[place] for place in places]
            asked = [self._asked[index] for index in batch]
            rows += _answer(
                self._model, self._prompts, self._encoded, asked, settings, batch, shard.copy, task, self._write
            )
        parquet.write(path, rows)
        return most


def _answer(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    columns: Sequence[Asked],
    settings: RolloutSettings,
    chosen: list[int],
    copy: int,
    task,
    write: Write | None,
) -> list[AnswerRow]:
    seeds = [rollout_seed(settings.seed, prompts[index].id, copy) for index in chosen]
    view = settings.view
    asked = [view.ids_of(prompts[index].id, encoded[index]) for index in chosen]
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
    rows = []
    for index, kept, seed, generation in zip(chosen, columns, seeds, written, strict=True):
        # Answers that ended early leave their share of the bar.
        task.advance(settings.max_new_tokens - len(generation.token_ids))
        prompt = prompts[index]
        sequence = as_example(prompt.id, encoded[index], generation, Provenance.TARGET)
        rows.append(
            {
                "prompt_id": prompt.id,
                **kept,
                "answer": model.decode(generation.token_ids),
                "category": prompt.category,
                "copy": copy,
                "prompt_ids": list(sequence.prompt_ids),
                **({"target_prompt_ids": list(view.ids[prompt.id])} if prompt.id in view.ids else {}),
                "answer_ids": list(sequence.answer_ids),
                "provenance": list(sequence.provenance),
                "finish_reason": generation.finish_reason,
                "seed": seed,
                "model": model.label,
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
        if inside := sorted({str(path.parent) for path in source.glob("*/*.parquet")}):
            raise DataError(f"{source} holds its rollouts in folders; name one of them: {' or '.join(inside)}")
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
    source: Path,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    vocab_size: int,
    copies: int | None = None,
    view: TargetView | None = None,
) -> list[Example]:
    """Reads a directory of shards; only answers to the given prompts, so held-out ones stay out of training.

    Args:
        source: The directory.
        prompts, encoded: Whose answers are wanted.
        vocab_size: Size of the target's vocabulary.
        copies: At most this many per prompt, the first ones; None takes all.
        view: The prompts as the target must have seen them.

    Raises:
        DataError: The directory is missing or broken, belongs to another tokenizer, or answers none of the prompts.
    """
    rows = read_rollouts(source)
    return [sequence for _, sequence in select_rows(rows, source, prompts, encoded, vocab_size, copies, view)]
