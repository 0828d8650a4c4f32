"""`specdistill annotate`: the target's distribution over each answer token, stored beside the answers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from specdistill.data import soft_labels
from specdistill.data.answer_rows import AnswerRow, asked_prompt
from specdistill.data.features import feature_file_bytes, remove_leftovers
from specdistill.data.prompts import Prompt, encode, in_chat, load_prompts
from specdistill.data.target_context import TargetContext
from specdistill.data.texts import TextCounts, check_texts, read_pieces
from specdistill.decoding.self_prompts import Weights, prompts_file
from specdistill.distill.answers import on_ray
from specdistill.distill.answers.annotate_config import AnnotateConfig
from specdistill.distill.answers.asked import Asked, SeenIds, ask
from specdistill.distill.answers.given import AnswerCounts, check_some_text
from specdistill.distill.answers.given_rows import given_rows
from specdistill.distill.answers.interrupts import reported_interrupt
from specdistill.distill.answers.label_room import (
    PlannedFeatures,
    TextSizes,
    plan_room,
    planned_features,
    refuse_other_states,
)
from specdistill.distill.answers.label_writer import SHARD_SIZE, LabelWriter, Parts
from specdistill.distill.answers.same_chat import check_same_chat
from specdistill.distill.answers.same_context import check_same_context, write_context
from specdistill.distill.answers.shards import SHARD, find_shards
from specdistill.distill.answers.text_blocks import block_size, text_blocks, text_counts, write_blocks
from specdistill.distill.processes.ranks import Ranks, join
from specdistill.errors import DataError, OutputError
from specdistill.evaluation.summaries import AnnotateSummary
from specdistill.files import locks, parquet, run_settings
from specdistill.models import LanguageModel, load
from specdistill.models.answer_end import document_end
from specdistill.models.pair import resolve_device
from specdistill.progress import Progress, Quiet, Task

_BLOCKS = "blocks"
"""Folder of a text's blocks while they are labelled."""
_MAY_CHANGE = {"batch_size", "device", "threads", "output", "ray", "ray_workers"}
# Their content is compared, not their names.
_MAY_CHANGE |= {"target_system", "target_examples", "target_hint"}


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
    resolve_device(config.machine.device)
    load.check_exists(config.target, "target", config.adapter.target_base)
    if config.cluster.ray is not None:
        on_ray.check_installed()
    context = TargetContext.read(config.context)
    paths = _find_answers(config, context)
    prompts = [] if config.text is not None else _prompts(config, context, progress or Quiet())
    counts = None if config.text is None else check_texts(config.text)
    ranks = join(config.machine.device)
    progress = progress if progress is not None and ranks.is_main else Quiet()
    output = Path(config.output)
    config.machine.limit_threads()
    source = load.find(config.target, "target", progress.say, config.adapter.target_base)
    # Prompts are checked before the output directory is made; stored answers have their own lengths.
    asked = ask(prompts, context, source, source.max_context - (config.max_new_tokens if paths is None else 0))
    # Labels lie in files as the answers do.
    size = f"{SHARD_SIZE} answers" if paths is None else "the answers of one file of --rollouts (generate --shard-size)"
    with (
        locks.output_lock(output, progress.say, wanted=ranks.is_main),
        reported_interrupt(output, "labels", size, progress),
    ):
        return _annotate(config, source, paths, asked, counts, output, progress, ranks)


def _annotate(
    config: AnnotateConfig,
    source: load.ModelSource,
    paths: list[Path] | None,
    asked: Asked,
    counts: TextCounts | None,
    output: Path,
    progress: Progress,
    ranks: Ranks,
) -> AnnotateSummary:
    labels = {} if source.adapter is None else {"target": source.adapter.label}
    if ranks.is_main:
        run_settings.claim(output, _settings(config), "labels")
        remove_leftovers(output)
        if any(output.glob("*.parquet")):
            check_same_context("--output", output, asked.context)
            run_settings.check_adapters(output, labels)
    ranks.wait()
    if config.cluster.ray is None:
        load.check_loadable(source, "target")
    shell = load.load_shell(source)
    parts, left_out = _parts(config, paths, asked, counts, shell, ranks, progress)
    seen = asked.seen_in(parts, f"--rollouts {config.rollouts}")
    sizes = _check(config, parts, shell, seen)
    features = planned_features(config.head, source, shell)
    refuse_other_states(features, output)
    planned = plan_room(config.labels, features, output, sizes, shell, progress)
    # The weights are read before anything is written.
    writer = None
    if config.cluster.ray is None:
        writer = LabelWriter(config, parts.shards, output, parts.given, seen, features, source, ranks.device)
    if ranks.is_main:
        run_settings.write(output, _settings(config))
        run_settings.keep_adapters(output, labels)
        write_context(output, asked.context)
    with progress.task("soft labels", sizes.answer_tokens // ranks.world, "tokens") as task:
        if writer is None:
            _write_on_ray(config, parts, output, seen, features, task)
        else:
            for number in ranks.share(range(len(parts))):
                task.advance(writer.write(number))
    ranks.wait()
    measured = [soft_labels.measure(output / SHARD.format(number)) for number in range(len(parts))]
    if ranks.is_main:
        shutil.rmtree(output / _BLOCKS, ignore_errors=True)
    size, labels = (sum(part[index] for part in measured) for index in (0, 1))
    return AnnotateSummary(
        output=str(output),
        answers=sizes.answers,
        tokens=sizes.answer_tokens,
        labels_per_token=labels / max(1, sizes.answer_tokens),
        bytes_per_token=size / max(1, sizes.answer_tokens),
        planned_bytes_per_token=planned,
        answers_cut=left_out.cut,
        answers_empty=left_out.empty,
        feature_bytes=feature_file_bytes(output),
    )


def _write_on_ray(
    config: AnnotateConfig, parts: Parts, output: Path, seen: SeenIds, features: PlannedFeatures | None, task: Task
) -> None:
    assert config.cluster.ray is not None
    # A worker starts in another folder.
    paths = None if parts.shards is None else [path.absolute() for path in parts.shards]
    on_ray.write_shards(
        LabelWriter,
        (_absolute(config), paths, output.absolute(), parts.given, seen, features),
        range(len(parts)),
        address=config.cluster.ray,
        workers=config.cluster.ray_workers,
        on_done=task.advance,
    )


def _find_answers(config: AnnotateConfig, context: TargetContext) -> list[Path] | None:
    if config.rollouts is None:
        return None
    if not Path(config.rollouts).is_dir():
        raise DataError(f"--rollouts {config.rollouts} is no directory of rollouts")
    check_same_chat("--rollouts", Path(config.rollouts), config.chat)
    check_same_context("--rollouts", Path(config.rollouts), context, or_none=True)
    return find_shards(Path(config.rollouts))


def _prompts(config: AnnotateConfig, context: TargetContext, progress: Progress) -> list[Prompt]:
    """Prompts whose own answers are labelled, or those of stored answers where the target sees more of them."""
    if config.rollouts is not None and context.is_empty:
        return []
    weights = Weights(config.machine.device, config.dtype)
    own, base = config.self_prompts, config.adapter.target_base
    named = prompts_file(config.prompts, "train", own, config.chat, config.target, weights, progress, base=base)
    prompts = load_prompts(named, config.chat)
    if config.rollouts is not None:
        return prompts
    for prompt in prompts:
        if prompt.answer is None:
            raise DataError(
                f'prompt {prompt.id!r} has no field "answer" to label; let the target answer with '
                "'specdistill generate' and name its directory with --rollouts"
            )
    check_some_text(prompts)
    return prompts


def _parts(
    config: AnnotateConfig,
    paths: list[Path] | None,
    asked: Asked,
    documents: TextCounts | None,
    target: LanguageModel,
    ranks: Ranks,
    progress: Progress,
) -> tuple[Parts, AnswerCounts]:
    """The answers or blocks to label, and how many were cut or left out."""
    if config.text is not None:
        shards = _cut_text(config, config.text, target, ranks)
        return Parts(shards, []), text_counts(config.text, documents, progress.say)
    if paths is not None:
        return Parts(paths, []), AnswerCounts()
    given, counts = given_rows(asked, target, config.max_new_tokens, progress)
    counts.say(progress.say, len(given) + counts.empty, config.max_new_tokens)
    return Parts(None, given), counts


def _cut_text(config: AnnotateConfig, text: str, target: LanguageModel, ranks: Ranks) -> list[Path]:
    """Writes the text's blocks beside the labels, so that ranks and Ray's workers find each by its number."""
    output = Path(config.output)
    block = block_size(config.text_block, target.max_context, target.tokenizer)
    if ranks.is_main:
        # Before the blocks, so that the same command may go on with them after a kill.
        run_settings.write(output, _settings(config))
        blocks = text_blocks(read_pieces(text), target.tokenizer, document_end(target), block, target.vocab_size)
        write_blocks(blocks, output / _BLOCKS, SHARD, SHARD_SIZE)
    ranks.wait()
    return find_shards(output / _BLOCKS)


def _check(config: AnnotateConfig, parts: Parts, target: LanguageModel, seen: SeenIds) -> TextSizes:
    """Refuses answers that are none, or whose ids mean something else to this target; counts answers and tokens."""
    where = f"--rollouts {config.rollouts}"
    answers, tokens, read = 0, 0, 0
    for number in range(len(parts)):
        rows = parts[number]
        missing = {"prompt_id", "prompt_ids", "answer_ids", "provenance"} - set(rows[0] if rows else {})
        if missing:
            raise DataError(f"{where} is no set of rollouts: it lacks {', '.join(sorted(missing))}")
        for row in rows:
            ids = [*_read_by_target(row, seen), *row["answer_ids"]]
            if len(ids) > target.max_context:
                raise DataError(f"prompt {row['prompt_id']!r} with its answer is longer than the target's context")
            if max(ids) >= target.vocab_size:
                raise DataError(f"{where}: an id outside the vocabulary; made with another tokenizer?")
            read += len(ids)
        if _encoded_again(config, rows[0], target) not in (None, list(rows[0]["prompt_ids"])):
            raise DataError(
                f"{where} was made with another tokenizer or chat template than {config.target} has, or with other "
                "--chat-template-kwargs or --raw-prompts"
            )
        _check_labelled(Path(config.output) / SHARD.format(number), rows, seen)
        answers, tokens = answers + len(rows), tokens + sum(len(row["answer_ids"]) for row in rows)
    _check_labelled(Path(config.output) / SHARD.format(len(parts)), (), seen)
    return TextSizes(answers=answers, answer_tokens=tokens, tokens=read)


def _read_by_target(row: AnswerRow, seen: SeenIds) -> list[int]:
    return list(seen.get((row["prompt_id"], tuple(row["prompt_ids"])), row["prompt_ids"]))


def _check_labelled(path: Path, rows: Sequence[AnswerRow], seen: SeenIds) -> None:
    """Refuses to go on where a finished shard labels other answers than those that are there now."""
    if not path.exists():
        return
    labelled = [
        (row.get("target_prompt_ids") or row["prompt_ids"], row["answer_ids"])
        for row in parquet.read(path, "prompt_ids", "target_prompt_ids", "answer_ids")
    ]
    if labelled != [(_read_by_target(row, seen), list(row["answer_ids"])) for row in rows[: len(labelled)]]:
        raise OutputError(
            f"{path} labels other answers than those that are to be labelled now; they have changed since it was "
            "written: choose another --output"
        )


def _encoded_again(config: AnnotateConfig, row: AnswerRow, target: LanguageModel) -> list[int] | None:
    """Ids of a row's prompt as this run renders it, its own template arguments first; None if the row keeps none."""
    asked = asked_prompt(row)
    if asked is None:
        return None
    return encode(in_chat(asked, config.chat, f"--rollouts {config.rollouts}"), target.tokenizer)


def _absolute(config: AnnotateConfig) -> AnnotateConfig:
    places = {"target": config.target, "target_base": config.adapter.target_base}
    paths = {name: Path(place).absolute() for name, place in places.items() if place is not None}
    return config.replace(**{name: str(path) for name, path in paths.items() if path.exists()})


def _settings(config: AnnotateConfig) -> run_settings.FlatSettings:
    return {key: value for key, value in config.to_flat().items() if key not in _MAY_CHANGE}
