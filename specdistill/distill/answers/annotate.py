"""`specdistill annotate`: the target's distribution over each answer token, stored beside the answers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from specdistill.data import soft_labels
from specdistill.data.answer_rows import AnswerRow, template_columns
from specdistill.data.batch import Provenance
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode, encode_all, in_chat, load_prompts
from specdistill.distill.answers import on_ray
from specdistill.distill.answers.annotate_config import AnnotateConfig, LabelSettings
from specdistill.distill.answers.same_chat import check_same_chat
from specdistill.distill.answers.shards import SHARD, find_shards, given_answers, rollout_seed, to_example
from specdistill.distill.processes.ranks import join
from specdistill.errors import DataError, OutputError
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.evaluation.summaries import AnnotateSummary
from specdistill.files import parquet, run_settings
from specdistill.models import LanguageModel, load
from specdistill.models.language_model import end_of
from specdistill.models.pair import resolve_device, resolve_dtype
from specdistill.progress import Progress, Quiet, Task

_SHARD_SIZE = 64
_MAY_CHANGE = {"batch_size", "device", "threads", "output", "ray", "ray_workers"}
_LABEL_COLUMNS = (*soft_labels.COLUMNS, soft_labels.DRAWS_COLUMN)


def annotate(config: AnnotateConfig, progress: Progress | None = None) -> AnnotateSummary:
    """Labels answers shard by shard; shards that are there already are left alone.

    Args:
        config: Which answers, which labels.
        progress: Where bars and remarks go.

    Returns:
        Answers, tokens, and what the labels take on disk.

    Raises:
        SpecdistillError: Bad input or too little disk space, before the target's weights are loaded.
    """
    load.check_exists(config.target, "target")
    if config.cluster.ray is not None:
        on_ray.check_installed()
    paths = _find_answers(config)
    prompts = [] if paths is not None else _answered(config)
    ranks = join(config.machine.device)
    progress = progress if progress is not None and ranks.is_main else Quiet()
    output = Path(config.output)
    if ranks.is_main:
        run_settings.claim(output, _settings(config), "labels")
    ranks.wait()
    config.machine.limit_threads()
    source = load.find(config.target, "target", progress.say)
    shell = load.load_shell(source)
    parts = Parts(paths, _given(config, prompts, shell, progress) if paths is None else [])
    answers, tokens = _check(config, parts, shell)
    planned = _plan(config.labels, output, tokens, shell.vocab_size, progress)
    if ranks.is_main:
        run_settings.write(output, _settings(config))
    with progress.task("soft labels", tokens // ranks.world, "tokens") as task:
        if config.cluster.ray is not None:
            _write_on_ray(config, parts, output, task)
        else:
            writer = LabelWriter(config, paths, output, parts.given, source, ranks.device)
            for number in ranks.share(range(len(parts))):
                task.advance(writer.write(number))
    ranks.wait()
    measured = [_measure(output / SHARD.format(number)) for number in range(len(parts))]
    size, labels = (sum(counts[index] for counts in measured) for index in (0, 1))
    return AnnotateSummary(
        output=str(output),
        answers=answers,
        tokens=tokens,
        labels_per_token=labels / max(1, tokens),
        bytes_per_token=size / max(1, tokens),
        planned_bytes_per_token=planned,
    )


def _write_on_ray(config: AnnotateConfig, parts: Parts, output: Path, task: Task) -> None:
    assert config.cluster.ray is not None
    # A worker starts in another folder.
    paths = None if parts.shards is None else [path.absolute() for path in parts.shards]
    on_ray.write_shards(
        LabelWriter,
        (_absolute(config), paths, output.absolute(), parts.given),
        range(len(parts)),
        address=config.cluster.ray,
        workers=config.cluster.ray_workers,
        on_done=task.advance,
    )


@dataclasses.dataclass(frozen=True)
class Parts:
    """The answers, one part per shard, read when they are asked for: memory does not grow with the set."""

    shards: Sequence[Path] | None
    given: Sequence[AnswerRow]
    """Rows, where there are no shards."""

    def __len__(self) -> int:
        return len(self.shards) if self.shards is not None else -(-len(self.given) // _SHARD_SIZE)

    def __getitem__(self, number: int) -> list[AnswerRow]:
        if self.shards is not None:
            return cast(list[AnswerRow], parquet.read(self.shards[number]))
        return list(self.given[number * _SHARD_SIZE : (number + 1) * _SHARD_SIZE])


class LabelWriter:
    """Holds the target and labels one part at a time, here or in a Ray worker.

    Args:
        config: Settings.
        shards, given: As in `Parts`.
        output: Where labelled shards go.
        source: The target, where it was found already.
        device: This rank's, where there are several.
    """

    def __init__(
        self,
        config: AnnotateConfig,
        shards: Sequence[Path] | None,
        output: Path,
        given: Sequence[AnswerRow],
        source: load.ModelSource | None = None,
        device: str | None = None,
    ) -> None:
        device = device or resolve_device(config.machine.device)
        source = source or load.find(config.target, "target")
        self._config, self._output, self._parts = config, output, Parts(shards, given)
        self._target = load.load_model(source, "target", device=device, dtype=resolve_dtype(config.dtype, device))

    def write(self, number: int) -> int:
        """Labels a part where its shard is missing; its tokens."""
        rows, path = self._parts[number], self._output / SHARD.format(number)
        if not path.exists():
            parquet.write(path, label_rows(self._config, self._target, rows))
        return sum(len(row["answer_ids"]) for row in rows)


@torch.no_grad()
def label_rows(config: AnnotateConfig, target: LanguageModel, rows: Sequence[AnswerRow]) -> list[parquet.Row]:
    """The rows with their label columns."""
    settings, labelled = config.labels, []
    for start in range(0, len(rows), config.batch_size):
        chunk = rows[start : start + config.batch_size]
        states = answer_hidden_states(target, [to_example(row) for row in chunk])
        # One answer at a time: [answer, vocab] logits are small, those of a whole batch need not be.
        for row, hidden in zip(chunk, states, strict=True):
            log_probs = (target.logits(hidden).float() / settings.temperature).log_softmax(-1)
            if settings.drawn:
                seed = rollout_seed(settings.seed, row["prompt_id"], row.get("copy", 0))
                labels = soft_labels.drawn(log_probs, settings.draws, seed)
            else:
                labels = soft_labels.likeliest(log_probs, settings.top_k)
            labelled.append({**row} | soft_labels.to_columns(labels, target.vocab_size, settings.precision))
    return labelled


def _find_answers(config: AnnotateConfig) -> list[Path] | None:
    if config.rollouts is None:
        return None
    if not Path(config.rollouts).is_dir():
        raise DataError(f"--rollouts {config.rollouts} is no directory of rollouts")
    check_same_chat("--rollouts", Path(config.rollouts), config.chat)
    return find_shards(Path(config.rollouts))


def _answered(config: AnnotateConfig) -> list[Prompt]:
    prompts = load_prompts(config.prompts, config.chat)
    for prompt in prompts:
        if prompt.answer is None:
            raise DataError(
                f'prompt {prompt.id!r} has no field "answer" to label; let the target answer with '
                "'specdistill generate' and name its directory with --rollouts"
            )
    return prompts


def _given(
    config: AnnotateConfig, prompts: Sequence[Prompt], target: LanguageModel, progress: Progress
) -> list[AnswerRow]:
    encoded = encode_all(prompts, target.tokenizer, target.max_context - config.max_new_tokens)
    warn_about_prompts(prompts, encoded, target, progress.say)
    columns = template_columns(prompts)
    sequences = given_answers(prompts, encoded, target.tokenizer, end_of(target), config.max_new_tokens)
    return [
        {
            "prompt_id": prompt.id,
            "messages": list(prompt.messages),
            "answer": prompt.answer or "",
            "category": prompt.category,
            "copy": 0,
            "prompt_ids": list(sequence.prompt_ids),
            "answer_ids": list(sequence.answer_ids),
            "provenance": [int(Provenance.GIVEN)] * len(sequence.answer_ids),
            **column,
        }
        for prompt, sequence, column in zip(prompts, sequences, columns, strict=True)
    ]


def _check(config: AnnotateConfig, parts: Parts, target: LanguageModel) -> tuple[int, int]:
    """Refuses answers that are none, or whose ids mean something else to this target; counts answers and tokens."""
    where = f"--rollouts {config.rollouts}"
    answers, tokens = 0, 0
    for number in range(len(parts)):
        rows = parts[number]
        missing = {"prompt_id", "prompt_ids", "answer_ids", "provenance"} - set(rows[0] if rows else {})
        if missing:
            raise DataError(f"{where} is no set of rollouts: it lacks {', '.join(sorted(missing))}")
        for row in rows:
            ids = [*row["prompt_ids"], *row["answer_ids"]]
            if len(ids) > target.max_context:
                raise DataError(f"prompt {row['prompt_id']!r} with its answer is longer than the target's context")
            if max(ids) >= target.vocab_size:
                raise DataError(f"{where}: an id outside the vocabulary; made with another tokenizer?")
        if number == 0 and "messages" in rows[0] and _encoded_again(config, rows[0], target) != rows[0]["prompt_ids"]:
            raise DataError(
                f"{where} was made with another tokenizer or chat template than {config.target} has, or with other "
                "--chat-template-kwargs or --raw-prompts"
            )
        answers, tokens = answers + len(rows), tokens + sum(len(row["answer_ids"]) for row in rows)
    return answers, tokens


def _encoded_again(config: AnnotateConfig, row: AnswerRow, target: LanguageModel) -> list[int]:
    """Ids of a row's prompt as this run renders it; the row's own template arguments win."""
    own = json.loads(row.get("chat_template_kwargs") or "{}")
    prompt = Prompt(row["prompt_id"], tuple(row.get("messages", ())), chat_template_kwargs=own)
    return encode(in_chat(prompt, config.chat, f"--rollouts {config.rollouts}"), target.tokenizer)


def _plan(settings: LabelSettings, output: Path, tokens: int, vocab_size: int, progress: Progress) -> float:
    """Says what the labels will take at most, and stops where the disk has no room for them; bytes per token."""
    kept = min(settings.kept, vocab_size)
    size = soft_labels.bytes_per_token(kept, vocab_size, settings.precision, with_draws=settings.drawn)
    free = shutil.disk_usage(output).free
    progress.say(
        f"{tokens} answer tokens; labels take at most {size:.0f} bytes per token, {size * tokens / 1e6:.1f} MB in all"
    )
    if size * tokens > free:
        raise OutputError(
            f"the labels may take {size * tokens / 1e9:.1f} GB, but {output} has {free / 1e9:.1f} GB free; lower "
            "--top-k, or take --labels sampled"
        )
    return size


def _measure(shard: Path) -> tuple[int, int]:
    """Bytes of a shard's label columns on disk, and its labels."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(shard) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        ours = [column for column in columns if column.path_in_schema.partition(".")[0] in _LABEL_COLUMNS]
        labels = [column.num_values for column in columns if column.path_in_schema.startswith("label_ids")]
    return sum(column.total_compressed_size for column in ours), sum(labels)


def _absolute(config: AnnotateConfig) -> AnnotateConfig:
    path = Path(config.target).absolute()
    return config.replace(target=str(path)) if path.exists() else config


def _settings(config: AnnotateConfig) -> run_settings.FlatSettings:
    return {key: value for key, value in config.to_flat().items() if key not in _MAY_CHANGE}
