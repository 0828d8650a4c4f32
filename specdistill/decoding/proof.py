"""Proves on a few tokens of a model's own that the ragged cache gives exactly what a plain pass gives.

Three rows of different lengths are read, rolled back by different counts and read on; every hidden state is compared
with that of a plain pass over the row's text alone. Windows and chunks are shortened meanwhile, so that a few tokens
reach beyond them. A proof is made once for a checkpoint and kept in the cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

from specdistill.decoding.position_scaling import cached
from specdistill.errors import ModelError, first_line, is_out_of_memory
from specdistill.files import atomic
from specdistill.files.cache import cache_root
from specdistill.models import LanguageModel, families
from specdistill.models.head_draft import HeadModel
from specdistill.models.output_head import sample_ids
from specdistill.models.packed import pack

_VERSION = 1
"""Raised when the cache or this proof changes, so that older proofs no longer count."""
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 3e-2}
_TOLERANCE_OF_OTHERS = 0.1
"""Largest difference allowed, as a share of the largest hidden state; that of bfloat16 is here."""
_KEPT_FROM = 20_000_000
"""Parameters from which a proof is kept in a file; that of a smaller model takes less time than looking for it."""
_SHORT_WINDOW = 4
_STARTS, _NEW, _KEPT = (7, 3, 5), 4, (4, 0, 2)
"""Tokens that each row begins with, that all read next, and that each keeps of them."""
INSTEAD = "'specdistill bench --engine' measures the pair in an engine"
"""Remedy where a model can't be rolled back here."""


class Wrong(NamedTuple):
    """A token whose state is not that of a plain pass."""

    position: int
    """Position in its text."""
    share: float
    """Difference, as a share of the largest state."""


@dataclass(frozen=True)
class Proof:
    """Whether a model decodes exactly here, and why not."""

    decodes: bool
    """Whether a batch of rows of different lengths, read token by token, equals plain passes."""
    rolls_back: bool
    """Whether tokens can be dropped again, which a draft needs in this process."""
    reason: str = ""
    """Names the difference, or the layers that keep a state; empty where there is none."""

    def require_rollback(self, name: str, purpose: str = "speculative decoding") -> None:
        """Refuses a model that can't be rolled back.

        Raises:
            ModelError: Names what differed and what measures such a model.
        """
        if not self.rolls_back:
            raise ModelError(f"{purpose} must drop tokens again, which {name} can't here: {self.reason}; {INSTEAD}")


def state_reason(config: PretrainedConfig) -> str | None:
    """Why a model can't be rolled back, as far as its configuration says; None where it doesn't. Needs no weights."""
    kinds = families.recurrent_kinds(config)
    return f"its layers of the kind {', '.join(kinds)} keep a state that only grows" if kinds else None


def refuse_states(config: PretrainedConfig, name: str, purpose: str) -> None:
    """Refuses a model whose configuration already says that it can't be rolled back; needs no weights.

    Raises:
        ModelError: It has recurrent layers.
    """
    reason = state_reason(config)
    if reason is not None:
        Proof(decodes=True, rolls_back=False, reason=reason).require_rollback(name, purpose)


def prove(model: LanguageModel) -> Proof:
    """The proof of a model: from memory, from the cache folder, or made now by some passes over a few tokens.

    Raises:
        ModelError: Its hidden states don't give its logits (see `LanguageModel.logit_scale`).
    """
    known = model.proof
    if isinstance(known, Proof):
        return known
    if isinstance(model, HeadModel):
        # One layer of plain attention, which can't run without its target.
        return Proof(True, True)
    if getattr(model.packed_head, "kind", None) == "int8":
        # The tokens of a pass share a scale, so nothing would be exact: such a model is lossy, and reported as that.
        state = state_reason(model.config)
        return Proof(True, state is None, state or "")
    # Also proves that hidden states give the model's own logits.
    file = _file(model.with_logit_scale())
    proof = _stored(file)
    if proof is None:
        proof, lasting = _made(model)
        if file is not None and lasting:
            with contextlib.suppress(OSError):
                # A cache that can't be written only costs the next run the same passes.
                file.parent.mkdir(parents=True, exist_ok=True)
                atomic.write_text(file, json.dumps(asdict(proof)) + "\n")
    model.proof = proof
    return proof


def pack_proven(models: Sequence[LanguageModel], kind: str) -> float:
    """Packs models after their proof: packed to int8, the tokens of a pass share a scale and look inexact.

    Returns:
        Seconds that packing took.
    """
    for model in models:
        prove(model)
    return sum(pack(model, kind) for model in models)


def _made(model: LanguageModel) -> tuple[Proof, bool]:
    """The proof, and whether it is worth keeping: an error may have a cause of today's."""
    try:
        with model.generating(), short_windows(model):
            difference = _first_difference(model)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Caches and masks of other shapes fail in as many ways as there are families.
        cause = f"{type(error).__name__}: {first_line(error)}"
        return Proof(False, False, f"its layers don't take this cache ({cause})"), False
    if difference is not None:
        kinds = ", ".join(sorted(families.attention_kinds(model.config)))
        return Proof(False, False, f"{difference} (layers: {kinds})"), True
    state = state_reason(model.config)
    return Proof(True, state is None, state or ""), True


def _first_difference(model: LanguageModel) -> str | None:
    """Compares passes with a cache to plain ones; None if all agree."""
    ids = sample_ids(model.vocab_size, sum(_STARTS) + 2 * _NEW * len(_STARTS))
    texts = [[ids.pop() for _ in range(count)] for count in _STARTS]
    reader = cached(model, len(texts), max(_STARTS) + 3 * _NEW)
    last = reader.read(texts)
    compared = [_difference(model, row, text, last[row][None]) for row, text in enumerate(texts)]
    for kept in (_KEPT, (_NEW, 1, 0)):
        fed = [[ids.pop() for _ in range(_NEW)] for _ in texts]
        if reader.recurrent:
            # One token at a time, each kept, since nothing can be dropped.
            kept = (_NEW,) * len(texts)
            steps = [reader.read_next(torch.tensor(step, device=model.device)) for step in zip(*fed, strict=True)]
            hidden = torch.stack(steps, 1)
        else:
            hidden = reader.forward(torch.tensor(fed, device=model.device))
            reader.advance(list(kept))
        compared += [_difference(model, row, texts[row] + fed[row], hidden[row]) for row in range(len(texts))]
        texts = [text + new[:count] for text, new, count in zip(texts, fed, kept, strict=True)]
    return next((found for found in compared if found is not None), None)


def tolerance_of(model: LanguageModel) -> float:
    """Largest difference between two ways to the same hidden states, as a share of the largest one."""
    if getattr(model.model, "is_quantized", False):
        # Activations may be rounded by a scale that the tokens of a pass share.
        return _TOLERANCE_OF_OTHERS
    return _TOLERANCES.get(model.model.dtype, _TOLERANCE_OF_OTHERS)


def first_wrong(model: LanguageModel, text: list[int], hidden: Tensor) -> Wrong | None:
    """Compares the last states of a text with those of a plain pass over it.

    Args:
        model: In eval mode.
        text: Token ids.
        hidden: [tokens, hidden], of the last tokens.

    Returns:
        None where they agree.
    """
    plain = model.hidden_states(torch.tensor([text], device=model.device))[0, -len(hidden) :].float()
    share = (hidden.float() - plain).abs().amax(-1) / plain.abs().max().clamp(min=1e-6)
    tolerance = tolerance_of(model)
    wrong = ~(share <= tolerance)
    # Rounding may send a token to another expert, in half precision alone.
    forgiven = 0 if tolerance < 1e-2 else len(hidden) // 4
    if int(wrong.sum()) <= forgiven:
        return None
    at = int(wrong.nonzero()[0])
    return Wrong(len(text) - len(hidden) + at, float(share[at]))


def _difference(model: LanguageModel, row: int, text: list[int], hidden: Tensor) -> str | None:
    """Where the last states of a text differ from a plain pass; None if they agree. `hidden` is [tokens, hidden]."""
    found = first_wrong(model, text, hidden)
    if found is None:
        return None
    return (
        f"in a batch of rows of different lengths, position {found.position} of row {row + 1} differs "
        f"by {found.share:.2g} of the largest state, where {tolerance_of(model):g} is rounding"
    )


@contextlib.contextmanager
def short_windows(model: LanguageModel) -> Iterator[None]:
    """Shortens windows, chunks and numbers of chosen keys inside the block.

    Masks read the configuration at every pass, layers that choose keys (DeepSeek V3.2) an attribute of their own.
    """
    places = [(model.config, name) for name in ("sliding_window", "attention_chunk_size")]
    places += [(module, "index_topk") for module in model.model.modules() if hasattr(module, "index_topk")]
    before = [(place, name, getattr(place, name, None)) for place, name in places]
    longer = [entry for entry in before if isinstance(entry[2], int) and entry[2] > _SHORT_WINDOW]
    try:
        for place, name, _ in longer:
            setattr(place, name, _SHORT_WINDOW)
        yield
    finally:
        for place, name, value in longer:
            setattr(place, name, value)


def _file(model: LanguageModel) -> Path | None:
    """File that keeps the proof of a checkpoint as it is loaded; None for a model that came from no files."""
    directory = model.directory or _snapshot(model.name)
    weights = sorted(directory.glob("*.safetensors")) if directory is not None else []
    if not weights or model.num_parameters < _KEPT_FROM:
        return None
    facts = {
        "proof": _VERSION,
        "files": [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in weights],
        "config": model.config.to_dict(),
        "attention": getattr(model.config, "_attn_implementation", None),
        "versions": [torch.__version__, transformers.__version__],
        "numbers": [str(model.model.dtype), model.device.type],
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    return cache_root() / "proofs" / f"{digest[:32]}.json"


def _snapshot(name: str) -> Path | None:
    """Folder of a hub id's files in the hub's local cache."""
    try:
        found = cached_file(name, "config.json", local_files_only=True)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found).parent


def _stored(file: Path | None) -> Proof | None:
    if file is None:
        return None
    try:
        return Proof(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        # Missing, or written by another version.
        return None
