"""The models of a bench in a real engine: the target, and the draft where the method has one that can be scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig

from specdistill.errors import ModelError
from specdistill.evaluation.report_setup import ModelFacts
from specdistill.evaluation.sections import model_facts
from specdistill.files.stored_tensors import stored_tensors
from specdistill.models import LanguageModel, head_draft, load
from specdistill.models.eagle3 import is_head
from specdistill.models.pair import FoundPair, ModelPair, find_pair, load_pair, resolve_device, resolve_dtype
from specdistill.serving import head_files, model_files
from specdistill.serving.bench_config import BenchConfig


@dataclass(frozen=True)
class EngineModels:
    """Both models, or their shells."""

    target: LanguageModel
    pair: ModelPair | None
    """With the draft; None where the engine drafts without a language model: it copies, or reads hidden states."""

    @property
    def draft(self) -> LanguageModel | None:
        """The draft model, if there is one."""
        return None if self.pair is None else self.pair.draft

    @property
    def same_tokenizer(self) -> bool:
        """Whether a draft model's tokens are the target's."""
        return self.pair is None or self.pair.same_tokenizer


@dataclass(frozen=True)
class EngineSources:
    """Configurations and tokenizers, before any weights are read."""

    target: load.ModelSource
    pair: FoundPair | None
    """Target and draft; None where there is no draft to score."""

    @property
    def max_context(self) -> int:
        """Largest number of positions."""
        return self.target.max_context if self.pair is None else self.pair.max_context


def find(config: BenchConfig, say: Callable[[str], None]) -> EngineSources:
    """Finds the models and compares their tokenizers.

    Raises:
        ModelError: A model can't be found or read.
        IncompatibleModelsError: The tokenizers differ, and the engine can't translate.
    """
    base, in_process = config.adapter.target_base, config.engine_kind.place == "process"
    if config.method_kind.has_no_model and not _is_scored_head(config):
        return EngineSources(load.find(config.target, "target", say, base), None)
    draft = config.drafter
    pair = find_pair(config.target, draft, other_tokenizer=in_process, say=say, target_base=base)
    return EngineSources(pair.target, pair)


def recognised(config: BenchConfig) -> BenchConfig:
    """The settings with --method eagle3 where --draft is such a head and no method was named.

    Raises:
        ModelError: The draft's header can't be read.
    """
    if config.drafting.method != "draft" or config.engine_kind.place in ("decoder", "process") or config.draft is None:
        return config
    if not Path(config.draft).exists():
        return config
    is_eagle3 = model_files.read(config.draft, "draft").draft_kind == "eagle3"
    return config.replace(method="eagle3") if is_eagle3 else config


def _is_scored_head(config: BenchConfig) -> bool:
    """Whether the head is one that runs here too, with its target."""
    if config.drafting.method != "eagle3" or config.draft is None or not config.target_is_present:
        return False
    path = Path(config.draft)
    return path.is_dir() and is_head(LlamaConfig.from_dict(head_files.read_config(path)))


def shells(config: BenchConfig, sources: EngineSources) -> EngineModels:
    """Models without weights: names, tokenizers and lengths."""
    target = load.load_shell(sources.target)
    if sources.pair is None:
        return EngineModels(target, None)
    if is_head(sources.pair.draft.config):
        head = head_draft.load_head_model(sources.pair.draft, "draft", target, "cpu", torch.float32)
        return EngineModels(target, ModelPair(target, head))
    draft = load.load_shell(sources.pair.draft, "draft")
    draft.one_by_one = not config.in_one_pass
    return EngineModels(target, ModelPair(target, draft))


def loaded(config: BenchConfig, sources: EngineSources, say: Callable[[str], None]) -> EngineModels:
    """Models with weights, the target's where the score needs them; engines use all rows of a trimmed head."""
    if sources.pair is None:
        device = resolve_device(config.machine.device)
        load.check_loadable(sources.target, "target")
        dtype = resolve_dtype(config.weights.dtype, device)
        return EngineModels(load.load_model(sources.target, device=device, dtype=dtype), None)
    pair = load_pair(
        config.target,
        config.drafter,
        found=sources.pair,
        device=config.machine.device,
        dtype=config.weights.dtype,
        other_tokenizer=config.engine_kind.place == "process",
        target_weights=config.target_is_present,
        say=say,
    )
    if isinstance(pair.draft, head_draft.HeadModel):
        return EngineModels(pair.target, pair)
    pair = dataclasses.replace(
        pair, draft=dataclasses.replace(pair.draft, kept_ids=None, one_by_one=not config.in_one_pass)
    )
    return EngineModels(pair.target, pair)


def check_sizes(models: EngineModels) -> None:
    """Refuses two tokenizers of one size, which transformers takes for the same one.

    Raises:
        ModelError: The sizes are equal.
    """
    if models.draft is None or models.same_tokenizer:
        return
    sizes = [model.model.config.get_text_config().vocab_size for model in (models.target, models.draft)]
    if sizes[0] == sizes[1]:
        raise ModelError(
            f"target and draft have different tokenizers, but both configs say vocab_size {sizes[0]}: transformers "
            "takes such a pair for one tokenizer and can't translate; 'specdistill export --format transformers' pads "
            "the draft by a row"
        )


def facts(config: BenchConfig, models: EngineModels) -> tuple[ModelFacts, ModelFacts]:
    """`target` and `draft` of the report."""
    target = model_facts(models.target)
    method = config.drafting.method
    if models.draft is not None:
        draft = model_facts(models.draft)
        return target, draft if method == "draft" else dataclasses.replace(draft, kind=method)
    dtype = str(resolve_dtype(config.weights.dtype, resolve_device(config.machine.device))).removeprefix("torch.")
    target = dataclasses.replace(target, dtype=dtype)
    size = 0 if config.method_kind.copies else _head_size(config)
    return target, ModelFacts(
        name=config.draft or method,
        parameters=size,
        vocab_size=models.target.vocab_size,
        dtype=dtype if size else "none",
        kind=method,
    )


def _head_size(config: BenchConfig) -> int:
    """Parameters of a head; 0 where its weights are not here."""
    if config.draft is None:
        tensors = model_files.read(config.target, "target").own_head("target").tensors
    else:
        directory = Path(config.draft)
        tensors = stored_tensors(directory, "draft") if directory.is_dir() else None
    return sum(tensor.size for tensor in (tensors or {}).values() if tensor.shape)
