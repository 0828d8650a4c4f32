"""The models of a bench in a real engine: the target, and the draft where the method has one that can be scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from specdistill.errors import ConfigError, ModelError
from specdistill.evaluation.report_setup import ModelFacts
from specdistill.evaluation.sections import model_facts
from specdistill.files.head_architectures import draft_kind
from specdistill.files.head_record import HeadRecord
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.files.stored_tensors import stored_tensors
from specdistill.models import LanguageModel, head_draft, load
from specdistill.models.eagle3 import is_head
from specdistill.models.pair import FoundPair, ModelPair, find_pair, load_pair, resolve_device, resolve_dtype
from specdistill.serving import head_files, model_files
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.head_gates import METHOD_OF, VARIANTS
from specdistill.settings.parts import Unasked


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
        ConfigError: The draft is a head, and the engine takes none.
        ModelError: A model can't be found or read.
        IncompatibleModelsError: The tokenizers differ, and the engine can't translate.
    """
    base, in_process = config.adapter.target_base, config.engine_kind.place == "process"
    if config.method_kind.has_no_model and not _is_scored_head(config):
        return EngineSources(load.find(config.target, "target", say, base), None)
    draft = config.drafter
    pair = find_pair(config.target, draft, other_tokenizer=in_process, say=say, target_base=base)
    if in_process and is_head(pair.draft.config):
        # One of the hub: `recognised` sees files that are here.
        _refuse_in_process(config, "eagle3")
    return EngineSources(pair.target, pair)


def with_length(config: BenchConfig, sources: EngineSources) -> BenchConfig:
    """The settings with the number of draft tokens that the draft was trained for, where none was named."""
    if config.num_draft_tokens or sources.pair is None:
        return config
    draft = sources.pair.draft
    if is_head(draft.config):
        trained = HeadRecord.read(None, draft.config).draft_tokens
    else:
        parallel = ParallelDrafting.of_config(draft.config, f"--draft {draft.name}") if config.in_one_pass else None
        trained = None if parallel is None else parallel.trained_tokens
    longest = config.acceptance.max_draft_tokens
    if trained is None or not (isinstance(longest, Unasked) or trained <= longest):
        return config
    return config.replace(num_draft_tokens=trained)


def recognised(config: BenchConfig) -> BenchConfig:
    """The settings with --method eagle3 where --draft is such a head and no method was named.

    Raises:
        ConfigError: --draft is a head of another method, or the engine takes none.
        ModelError: The draft's header can't be read.
    """
    place, draft, method = config.engine_kind.place, config.draft, config.drafting.method
    kind = None if place == "decoder" or draft is None else _head_kind(draft)
    if kind is None:
        return config
    if place == "process":
        _refuse_in_process(config, kind)
        return config
    wanted = METHOD_OF[kind]
    if wanted == method or (method == "draft" and wanted == "eagle3"):
        return config.replace(method=wanted)
    raise ConfigError(
        f"--draft {draft} is a head ({kind}), which --method {method} does not take; set --method {wanted}"
    )


def _head_kind(draft: str) -> str | None:
    """Kind of a head whose files are here; None for a model, and for a hub id."""
    file = Path(draft) / "config.json"
    if file.is_file():
        content = head_files.read_config(file.parent)
        return draft_kind(content.get("architectures"), content.get("model_type"))
    return model_files.read(draft, "draft").draft_kind if Path(draft).is_file() else None


def _refuse_in_process(config: BenchConfig, kind: str) -> None:
    if kind != "assistant":
        raise ConfigError(
            f"--draft {config.draft} is a head ({kind}), which --engine {config.engine} can't assist with; leave "
            "--engine away to measure an EAGLE-3 head in our decoder, or serve it in vLLM or llama.cpp"
        )


def _is_scored_head(config: BenchConfig) -> bool:
    """Whether the head is one that runs here too, with its target."""
    if config.drafting.method != "eagle3" or config.draft is None or not config.target_is_present:
        return False
    if not Path(config.draft).is_dir():
        return False
    head: Any = LlamaConfig.from_dict(head_files.read_config(Path(config.draft)))
    # Engines run variants that are not run here: those are timed without scores.
    return is_head(head) and not any(getattr(head, name, False) for name in (*VARIANTS, "attention_bias"))


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
