"""Loads a target and its draft. Their tokenizers are compared before any weights are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from specdistill.errors import ConfigError, first_line
from specdistill.models import head_draft, load, stop_ids, vocabulary
from specdistill.models.eagle3 import is_head
from specdistill.models.language_model import LanguageModel
from specdistill.models.outer_weights import OuterWeights, with_outer_weights

_LARGER = 1.05
"""Share of the target's parameters above which a draft is larger: a row for a mask token or some padding is not."""


@dataclass(frozen=True)
class ModelPair:
    """A target and a draft that use the same token ids."""

    target: LanguageModel
    draft: LanguageModel
    same_tokenizer: bool = True
    """False only if the caller allowed it. The ids then mean different tokens, and the models share only text."""


@dataclass(frozen=True)
class FoundPair:
    """Configurations and tokenizers of a target and its draft: enough to check prompts before weights are read."""

    target: load.ModelSource
    draft: load.ModelSource
    same_tokenizer: bool
    draft_role: str = "draft"
    """Flag that names the draft, for messages."""

    @property
    def adapter_labels(self) -> dict[str, str]:
        """Flag that names it -> label of each model that is an adapter."""
        roles = {"target": self.target} | ({} if self.draft is self.target else {self.draft_role: self.draft})
        return {role: source.adapter.label for role, source in roles.items() if source.adapter is not None}

    @property
    def max_context(self) -> int:
        """Largest number of positions that both support."""
        return min(self.target.max_context, self.draft.max_context)


def find_pair(
    target: str,
    draft: str,
    *,
    draft_role: str = "draft",
    other_tokenizer: bool = False,
    say: Callable[[str], None] = print,
    target_base: str | None = None,
) -> FoundPair:
    """Finds both models and compares their tokenizers.

    Args:
        target: Hub id, directory or .gguf file.
        draft: Hub id, directory or .gguf file.
        draft_role: Flag that names the draft, for messages.
        other_tokenizer: Whether to allow different tokenizers, for methods that learn from text.
        say: Called with a line of text when a slow step starts.
        target_base: Base of a target that is an adapter; None takes the adapter's own word.

    Raises:
        ModelError: A model can't be found or read.
        IncompatibleModelsError: The tokenizers differ, and that is not allowed.
    """
    target_source = load.find(target, "target", say, target_base)
    draft_source = head_draft.find_draft(draft, draft_role, target_source, say)
    rows = target_source.rows, draft_source.rows
    same_tokenizer = vocabulary.same_tokens(target_source.tokenizer, draft_source.tokenizer, *rows)
    if not (same_tokenizer or other_tokenizer):
        vocabulary.check_same_vocabulary(target_source.tokenizer, draft_source.tokenizer, target, draft, *rows)
    return FoundPair(target_source, draft_source, same_tokenizer, draft_role)


def load_pair(
    target: str,
    draft: str,
    *,
    found: FoundPair | None = None,
    device: str = "auto",
    target_device: str | None = None,
    dtype: str = "auto",
    draft_dtype: torch.dtype | None = None,
    other_tokenizer: bool = False,
    target_weights: bool = True,
    outer: OuterWeights | None = None,
    keep_target: str = "whole",
    draft_answers: bool = False,
    say: Callable[[str], None] = print,
) -> ModelPair:
    """Finds both models, compares their tokenizers, then loads the weights.

    Args:
        target, draft: Hub id, directory or .gguf file.
        found: Result of `find_pair` for these names, if the caller has it.
        device: A torch device, or `auto`; see `resolve_device`.
        target_device: Device of the target, if it differs from the draft's.
        dtype: Name of a torch dtype, or `auto`; see `resolve_dtype`.
        draft_dtype: dtype of a draft that will be trained, which takes weights that are not quantised. None takes the
            target's.
        other_tokenizer: Whether to allow different tokenizers, for methods that learn from text.
        target_weights: Whether to load the target's weights. Without them the target is a shell (`load.load_shell`).
        outer: Embedding and output head of a target whose other weights are not loaded.
        keep_target: How to keep the target in memory; see `load.load_model`.
        draft_answers: Whether the draft writes or learns whole answers. They then end at the target's stop ids too; a
            draft of another tokenizer needs its own.
        say: Called with a line of text when a slow step starts.

    Raises:
        ModelError: A model can't be loaded.
        IncompatibleModelsError: The tokenizers differ, and that is not allowed.
        ConfigError: The device can't be used.
    """
    found = found or find_pair(target, draft, other_tokenizer=other_tokenizer, say=say)
    if draft_answers and not found.same_tokenizer:
        other = found.draft
        stop_ids.check_stop_ids(other.name, found.draft_role, other.location, other.config, other.tokenizer)
    if target_weights:
        load.check_loadable(found.target, "target", keep_target)
    load.check_loadable(found.draft, found.draft_role, plain=draft_dtype is not None)
    target_dtype = resolve_dtype(dtype, device := resolve_device(device))
    if target_weights:
        target_model = load.load_model(
            found.target, "target", device=target_device or device, dtype=target_dtype, keep=keep_target
        )
    else:
        target_model = with_outer_weights(load.load_shell(found.target), outer, device, target_dtype)
    draft_model = load_draft(found.draft, found.draft_role, target_model, device, draft_dtype or target_dtype)
    _warn_if_swapped(target_model, draft_model, found.draft_role, say)
    if found.same_tokenizer:
        fit(draft_model, target_model.vocab_size)
    if draft_answers and found.same_tokenizer:
        draft_model.target_stop_ids = target_model.eos_token_ids
    return ModelPair(target_model, draft_model, found.same_tokenizer)


def _warn_if_swapped(target: LanguageModel, draft: LanguageModel, role: str, say: Callable[[str], None]) -> None:
    ours, theirs = draft.num_parameters, target.num_parameters
    if ours > _LARGER * theirs:
        say(
            f"warning: --{role} {draft.name} has {ours / 1e6:.1f}M parameters, more than --target {target.name} with "
            f"{theirs / 1e6:.1f}M: are they swapped?"
        )


def load_draft(
    source: load.ModelSource, role: str, target: LanguageModel, device: str, dtype: torch.dtype
) -> LanguageModel:
    """Loads a draft with its weights, or a head.

    Args:
        source: Result of `find_pair` or `head_draft.find_draft`.
        role: Flag that names it, for messages.
        target: Its target.
        device: A torch device.
        dtype: dtype of the weights.

    Raises:
        ModelError: It can't be loaded.
    """
    if is_head(source.config):
        return head_draft.load_head_model(source, role, target, device, dtype)
    return load.load_model(source, role, device=device, dtype=dtype)


def load_another(
    name: str, role: str, target: LanguageModel, device: torch.device, dtype: torch.dtype, say: Callable[[str], None]
) -> LanguageModel:
    """Loads another draft of a target that is loaded already.

    Args:
        name: Hub id, directory or .gguf file.
        role: What it is for, as in the name of its flag.
        target: The target, whose ids it must use.
        device, dtype: Where the weights go, and as what.
        say: Called with a line of text when a slow step starts.

    Raises:
        ModelError: The model can't be loaded.
        IncompatibleModelsError: Its tokenizer differs from the target's.
    """
    source = load.find(name, role, say)
    rows = target.head_weight.shape[0], source.rows
    vocabulary.check_same_vocabulary(target.tokenizer, source.tokenizer, target.name, name, *rows)
    loaded = load.load_model(source, role, device=str(device), dtype=dtype)
    fit(loaded, target.vocab_size)
    return loaded


def fit(draft: LanguageModel, vocab_size: int) -> None:
    """Gives a draft exactly the target's ids, in place, where the two heads end at different ones.

    Rows that the draft lacks are added and get almost no probability; ids that the target lacks are never proposed.

    Args:
        draft: A draft with the target's tokenizer.
        vocab_size: Number of ids that the target can produce.
    """
    if isinstance(draft, head_draft.HeadModel):
        # Its rows are those of ids that the target has.
        return
    if draft.head_weight.shape[0] < vocab_size:
        vocabulary.resize_to(draft.model, vocab_size, draft.vocab_size)
    draft.vocab_size = vocab_size
    if draft.kept_ids is not None:
        draft.kept_ids = draft.kept_ids[draft.kept_ids < vocab_size]


def resolve_device(device: str) -> str:
    """Replaces `auto` by the GPU if there is one, else by the CPU.

    Raises:
        ConfigError: torch does not know the device, or the machine does not have it.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    remedy = "leave it out, or name one that this machine has, such as cpu or cuda:0"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error).partition(". ")[0]
        raise ConfigError(f"--device {device} can't be used: {reason}; {remedy}") from error
    if torch.device(device).type == "meta":
        raise ConfigError(f"--device {device} can't be used: it holds no numbers; {remedy}")
    return device


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """Replaces `auto` by bfloat16 on a GPU, and by float32 on a CPU, where bfloat16 is slower beyond one token."""
    if dtype == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
