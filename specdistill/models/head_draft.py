"""An EAGLE-3 head as a draft: its module with a name, a tokenizer and ids, which are its target's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer

from specdistill.errors import IncompatibleModelsError, ModelError, first_line
from specdistill.files import checkpoint_files
from specdistill.files.head_record import HeadRecord
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import families, load
from specdistill.models.eagle3 import Eagle3Head, load_head
from specdistill.models.eagle3.described import described, names_head, read_config
from specdistill.models.hub_files import cached
from specdistill.models.language_model import LanguageModel
from specdistill.models.load_errors import why_not
from specdistill.models.quiet import quiet_transformers


@dataclass
class HeadModel(LanguageModel):
    """A head for one target. Without that target's hidden states it can't run; `decoding.head_draft` runs it.

    Its `hidden` are what the module gives: features of the next step, and `own_logits` norms them first.
    """

    @property
    def head(self) -> Eagle3Head:
        """The module."""
        return cast(Eagle3Head, self.model)

    @property
    def base_model(self) -> Eagle3Head:
        """The module, whose only layer's cache is that of a model."""
        return self.head

    @property
    def parallel(self) -> ParallelDrafting | None:
        """None: a head takes a pass for each token."""
        return None

    @property
    def guesses_by_start(self) -> bool:
        """True: from the second token of a round on it reads what it gave for the one before."""
        return True

    @property
    def takes_positions(self) -> bool:
        return True

    def _find_logit_scale(self) -> float:
        return 1.0

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Never gives any: there is no text alone that a head could read."""
        raise ModelError(f"{self.name} is a head, which reads its target's hidden states and writes nothing alone")

    def own_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the ids that the head can propose, [..., N]."""
        return self.head.logits(hidden)

    def inference_head(self) -> Tensor:
        """The head's own rows, [N, hidden], which are those of `kept_ids` already."""
        return self.head_weight

    def inference_bias(self) -> None:
        """None: heads have none."""
        return


def find_draft(name: str, role: str, target: load.ModelSource, say: Callable[[str], None] = print) -> load.ModelSource:
    """Finds a draft, which may be a head, before any weights are read.

    Args:
        name: Hub id, directory or .gguf file.
        role: Flag that names it, for messages.
        target: The target, whose tokenizer a head without files of its own takes.
        say: Called with a line of text when a slow conversion starts, and where a head's files name another target.

    Raises:
        ModelError: It can't be found or read.
        IncompatibleModelsError: It is a head of a target of other sizes or layers.
    """
    found = _find_head(name, role, target, say)
    if found is not None:
        return found
    try:
        return load.find(name, role, say)
    except ModelError:
        # A head on the hub is refused as a model, and only now its config.json is here.
        found = None if Path(name).exists() else _find_head(name, role, target, say)
        if found is None:
            raise
        return found


def says_head(file: Path) -> bool:
    """Whether a config.json is there and is that of a head; `load.find` says what is wrong with a damaged one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and names_head(content.get("architectures"))


def _find_head(name: str, role: str, target: load.ModelSource, say: Callable[[str], None]) -> load.ModelSource | None:
    """The head of a directory, or of a hub id whose files are here already; None for anything else."""
    path = Path(name)
    file = (
        path / "config.json" if path.is_dir() else None if path.exists() else cached(name, "config.json", ask_hub=False)
    )
    if file is None or not says_head(file):
        return None
    config = read_config(file.parent, f"--{role} {name}")
    tokenizer = target.tokenizer
    if any((file.parent / known).is_file() for known in checkpoint_files.TOKENIZER_VOCABULARIES):
        try:
            with quiet_transformers():
                tokenizer = AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False)
        except Exception as error:
            raise ModelError(why_not(error, str(file.parent), name, role)) from error
    record = HeadRecord.read(file.parent)
    found = _checked(load.ModelSource(name, name, config, tokenizer), role, target, record)
    remark = record.remark(target.name)
    if remark is not None:
        say(f"BEWARE: --{role} {name} {remark}")
    return found


def _checked(source: load.ModelSource, role: str, target: load.ModelSource, record: HeadRecord) -> load.ModelSource:
    config: Any = source.config
    wanted, read = target.config.hidden_size, getattr(config, "target_hidden_size", None) or config.hidden_size
    if read != wanted:
        raise IncompatibleModelsError(
            f"--{role} {source.name} is a head that reads hidden states of {read} numbers, and those of {target.name} "
            f"have {wanted}: it was made for another target"
        )
    layers, where = families.num_layers(target.config), f"--target {target.name}"
    conflict = record.conflict(layers, where)
    if conflict is not None:
        raise IncompatibleModelsError(f"--{role} {source.name} {conflict}")
    if source.directory is not None:
        checkpoint_files.check_weights(source.directory, source.name, role)
        described(source.directory, layers, f"--{role} {source.name}", role, where)
    # A head stands at its target's positions, whatever length it was trained at; engines do the same.
    config.max_position_embeddings = target.max_context
    return source


def load_head_model(
    source: load.ModelSource, role: str, target: LanguageModel, device: str, dtype: torch.dtype
) -> HeadModel:
    """Loads a head with its weights, and gives it its target's embedding where it has none of its own.

    Args:
        source: Result of `find_draft`.
        role: Flag that names it, for messages.
        target: Its target, or the shell of it.
        device: A torch device.
        dtype: dtype of the weights.

    Raises:
        ModelError: Weights are missing, damaged, not finite, or of a variant that is not run here.
    """
    layers, where = families.num_layers(target.config), f"--{role} {source.name}"
    own = f"--target {target.name}"
    head = load_head(_directory(source, role), layers, dtype, device, where=where, role=role, target=own)
    if not all(bool(weight.isfinite().all()) for weight in head.parameters()):
        raise ModelError(f"the weights of {where} are not finite; take an earlier checkpoint")
    loaded = as_draft(head, target, source.name)
    loaded.directory = source.directory
    stored = getattr(source.config, "dtype", None)
    loaded.stored_dtype = stored if isinstance(stored, torch.dtype) else None
    return loaded


def as_draft(head: Eagle3Head, target: LanguageModel, name: str) -> HeadModel:
    """A head that is in memory, as a draft of its target.

    Args:
        head: The module; it gets the target's embedding where it has none of its own.
        target: Its target.
        name: For reports and messages.

    Raises:
        IncompatibleModelsError: It proposes ids that the target lacks.
    """
    kept = head.draft_ids < target.vocab_size
    if int(head.draft_ids.max()) >= target.head_weight.shape[0] or not bool(kept.any()):
        raise IncompatibleModelsError(
            f"{name} proposes id {int(head.draft_ids.max())}, and the ids of {target.name} end at "
            f"{target.head_weight.shape[0] - 1}: it was made for another target"
        )
    # As for any draft, what the target's tokenizer lacks is never proposed: a head of all ids has those of padding too.
    head.keep_ids(kept)
    head.use_embedding(cast(Tensor, target.model.get_input_embeddings().weight))
    return HeadModel(head, target.tokenizer, name, None, target.vocab_size, kept_ids=head.draft_ids)


def _directory(source: load.ModelSource, role: str) -> Path:
    if source.directory is not None:
        checkpoint_files.check_weights(source.directory, source.name, role)
        return source.directory
    # Fetched by name: a head is one file.
    try:
        found = [cached(source.location, file) for file in ("config.json", "model.safetensors")]
    except OSError as error:
        raise ModelError(f"can't fetch --{role} {source.name}: {first_line(error)}") from error
    if None in found or found[0] is None:
        raise ModelError(f"--{role} {source.name} holds no model.safetensors; only safetensors are read")
    return found[0].parent
