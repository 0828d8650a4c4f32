"""Writes a draft as one engine wants it: the target's exact vocabulary, tokenizer files, length, number format."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specdistill.errors import ModelError, OutputError
from specdistill.files import atomic, locks, run_settings
from specdistill.files.head_record import HeadRecord
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import LanguageModel, gguf, load, vocabulary
from specdistill.models.checkpoint import save_draft
from specdistill.models.eagle3 import is_head
from specdistill.models.pair import find_pair
from specdistill.progress import Progress, Quiet
from specdistill.serving import draft_flags, gguf_writer
from specdistill.serving.engine_table import DEFAULT_LENGTH, Drafting
from specdistill.serving.export_config import ExportConfig
from specdistill.serving.gates import Verdict, check
from specdistill.serving.head_export import DTYPES, export_head
from specdistill.serving.merging import check_merging, served_pair


@dataclass(frozen=True)
class Exported:
    """A draft that was written for an engine."""

    path: str
    """Directory or file that was written."""
    changes: list[str]
    """Differences from the draft as it was, a line each."""
    verdict: Verdict
    """The engine's own conditions, checked on the files that were written."""
    trained_tokens: int | None = None
    """Draft tokens that a head was trained for; None for other drafts, and where its files don't say it."""


def export(config: ExportConfig, progress: Progress | None = None) -> Exported:
    """Writes a draft as one serving engine wants it.

    Args:
        config: The pair, the format and the output.
        progress: Where remarks go.

    Returns:
        The output's path, the changes made, and the engine's verdict on the files.

    Raises:
        ModelError: A model can't be read, or is of an architecture that the format can't hold.
        IncompatibleModelsError: The tokenizers differ, and the format is not transformers.
        OutputError: The output exists or can't be written.
    """
    output, say = Path(config.output), (progress or Quiet()).say
    load.check_exists(config.target, "target", config.adapter.target_base)
    load.check_exists(config.draft, "draft")
    if config.format == "gguf":
        _check_served(Path(config.served_gguf))
        with locks.file_lock(output, "--output", say):
            atomic.refuse_existing_file(output, "--output")
            return _export(config, output, say)
    merged = config.files.merged_target
    if merged is not None and Path(merged).resolve() == output.resolve():
        raise OutputError(f"--merged-target and --output are both {merged}; give each model a directory of its own")
    if merged is not None and Path(merged).exists():
        raise OutputError(f"{merged} exists; choose another --merged-target, or move it away first")
    with locks.output_lock(output, say):
        atomic.claim_output_directory(output)
        with atomic.emptied_on_failure(output):
            return _export(config, output, say)


def _export(config: ExportConfig, output: Path, say: Callable[[str], None]) -> Exported:
    # transformers alone drafts with another tokenizer, whose files the draft then keeps.
    other, base = config.format == "transformers", config.adapter.target_base
    pair = find_pair(config.target, config.draft, other_tokenizer=other, say=say, target_base=base)
    target_source, draft_source = pair.target, pair.draft
    check_merging(config, target_source)
    if is_head(draft_source.config):
        written, served = export_head(config, pair, output)
        _keep_card(config, output)
        engine = "llama.cpp" if config.format == "gguf" else config.format
        verdict = next(each for each in check(served) if each.engine == engine)
        tokens = HeadRecord.read(None, draft_source.config).draft_tokens
        return Exported(config.output, written, verdict, tokens)
    load.check_loadable(draft_source, "draft", plain=True)
    if config.format == "vllm":
        _check_mask(draft_source, target_source)
    if config.format == "gguf":
        gguf_writer.check_supported(draft_source.config, config.draft)
    # Only the target's shapes, files and stop ids are needed.
    target = load.load_shell(target_source)
    draft = load.load_model(draft_source, "draft")
    draft_is_parallel = draft.parallel is not None
    changes = [*_merging(draft), *_fit(draft, target), *_parallel(config, draft, target)]
    if not pair.same_tokenizer:
        changes.append("another tokenizer than the target's: the draft keeps its own files")
        changes += _of_another_size(draft, target)
        target = draft
    if config.format == "gguf":
        kind = "float16" if config.files.type == "auto" else config.files.type
        rows = gguf_writer.write(draft, Path(config.served_gguf), output, kind)
        changes += _resized(draft.head_weight.shape[0], rows)
        changes.append(f"weights in {kind}, tokenizer of {config.served_gguf}")
        return Exported(config.output, changes, _llama_cpp(config, target_source))
    changes += _resized(draft.head_weight.shape[0], target.head_weight.shape[0])
    if config.files.type != "auto":
        draft = dataclasses.replace(draft, stored_dtype=DTYPES[config.files.type])
        changes.append(f"weights in {config.files.type}")
    save_draft(draft, target, output)
    # A bench of the exported draft still knows what it was trained on.
    run_settings.copy(Path(config.draft), output)
    _keep_card(config, output, one_by_one=draft_is_parallel and draft.parallel is None)
    served = served_pair(config, target_source, changes)
    verdicts = check(served)
    return Exported(config.output, changes, next(verdict for verdict in verdicts if verdict.engine == config.format))


def _keep_card(config: ExportConfig, output: Path, *, one_by_one: bool = False) -> None:
    """Takes the draft's model card along, and says in it that this is a copy; does nothing where there is none.

    Args:
        config: Names both directories.
        output: Where it goes.
        one_by_one: Whether the copy has lost its mask token.
    """
    card = Path(config.draft) / run_settings.CARD_FILE
    if config.format == "gguf" or not card.is_file():
        return
    text = card.read_text(encoding="utf-8", errors="replace").rstrip("\n")
    atomic.write_text(
        output / card.name,
        f"{text}\n\nThis is a copy of `{config.draft}`, which the text above speaks of; `specdistill export --format "
        f"{config.format}` wrote it.{' It has no mask token, and drafts one token per pass.' if one_by_one else ''}\n",
    )


def _llama_cpp(config: ExportConfig, target: load.ModelSource) -> Verdict:
    """The verdict for llama.cpp: it compares the tokenizers, which are now the same, so nothing is refused."""
    drafting = Drafting(draft=config.output, num_draft_tokens=DEFAULT_LENGTH)
    command = draft_flags.command("llama.cpp", config.served_gguf, drafting)
    verdict = Verdict("llama.cpp", "argmax_draft", shlex.join(command))
    if target.adapter is not None:
        verdict.warnings.append(
            f"{config.served_gguf} must hold {target.name} merged into its base: convert what --merged-target writes"
        )
    return verdict


def _merging(draft: LanguageModel) -> list[str]:
    return [] if draft.adapter is None else [f"the adapter is merged into its base, {draft.adapter.base}"]


def _check_served(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"there is no file {path}; name the target's .gguf as --target or --target-gguf")
    gguf.check_gguf(path)


def _fit(draft: LanguageModel, target: LanguageModel) -> list[str]:
    """Lengthens the draft to its target's context, and drops the trimmed head, which engines don't read."""
    changes = []
    if draft.max_context < target.max_context:
        changes.append(
            f"max_position_embeddings {draft.max_context} -> {target.max_context}: the draft was made for the shorter "
            "one, and will be accepted less beyond it"
        )
        draft.config.max_position_embeddings = target.max_context
    if draft.kept_ids is not None:
        # Engines multiply all rows of the head. Without the list, specdistill measures the same.
        changes.append(f"the head's trim to {len(draft.kept_ids)} ids is left out: engines use all of its rows")
        draft.kept_ids = None
    return changes


def _check_mask(draft: load.ModelSource, target: load.ModelSource) -> None:
    """Refuses a mask token that the target's vocabulary has no row for: vLLM demands equal sizes."""
    parallel = ParallelDrafting.of_config(draft.config, f"--draft {draft.name}")
    if parallel is not None and parallel.mask_id >= target.rows:
        raise ModelError(
            f"the mask token {parallel.mask_id} of --draft {draft.name} lies beyond the target's {target.rows} rows, "
            "and vLLM takes drafts of the target's size only; train it with an id that the target has but never writes"
        )


def _parallel(config: ExportConfig, draft: LanguageModel, target: LanguageModel) -> list[str]:
    """Keeps the mask token for vLLM; other engines draft one token per pass, and its row may be cut off."""
    if draft.parallel is None:
        return []
    mask = draft.parallel.mask_id
    if config.format == "vllm":
        return [f"mask token {mask} is kept: vLLM guesses all tokens of a round in one pass (parallel_drafting)"]
    if mask >= target.head_weight.shape[0]:
        draft.parallel.remove_from(draft.config)
    return [f"mask token {mask} is not used: this engine drafts one token per pass"]


def _of_another_size(draft: LanguageModel, target: LanguageModel) -> list[str]:
    """Pads a draft whose tokenizer is another one of the target's size, which transformers would take for the same."""
    rows = target.config.get_text_config().vocab_size
    if draft.config.get_text_config().vocab_size != rows:
        return []
    vocabulary.resize_to(draft.model, rows + 1, draft.vocab_size)
    return _resized(rows, rows + 1)


def _resized(before: int, after: int) -> list[str]:
    return [] if before == after else [f"vocab_size {before} -> {after}"]
