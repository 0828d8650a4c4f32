"""The target's hidden states of labelled answers on disk, so that a head trains without the target in memory.

Beside a labelled shard NAME.parquet lies features/NAME.npy, [rows, hidden]. For each answer of the shard, in order, it
holds the states that a head reads, one row for each of its layers at each token of prompt and answer, and then the
states that predict the answer's tokens, as `TargetStates` gives them. NumPy has no bfloat16: its bits are stored as
uint16. Behind the numbers, where NumPy does not look, stands a hash of whose states of which texts they are: a file of
another set or shard may have the same size. features/target.safetensors holds the target's embedding and output head,
and whose states these are.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from specdistill.data.answer_rows import AnswerRow
from specdistill.data.batch import Example
from specdistill.errors import DataError, first_line
from specdistill.files import atomic, parquet

STATES = 3
"""Hidden states of a token that a head reads."""
_FOLDER, _TARGET, _KEY = "features", "target.safetensors", "specdistill"
_STORED = {torch.float16: "<f2", torch.bfloat16: "<u2", torch.float32: "<f4"}
_AGAIN = "the same 'specdistill annotate' completes it"
_HASH_BYTES = 16


class TextStates(NamedTuple):
    """Hidden states of the target over one prompt with its answer."""

    predicting: Tensor
    """[answer, hidden]: those that predict the answer, after the final norm."""
    aux: Tensor
    """[prompt and answer, 3 x hidden]: those that a head reads."""


@dataclasses.dataclass(frozen=True)
class StatesOf:
    """Whose states are stored, and of which layers."""

    target: str
    """The target's label."""
    content: str
    """Hash of its files."""
    layers: tuple[int, ...]
    """Layers that a head reads, in the order in which they are stored."""
    hidden_size: int
    """Numbers of one state."""
    num_layers: int
    """Layers of the target."""
    logit_scale: float
    """Factor on the product of its output head."""


def feature_bytes(tokens: float, answer_tokens: float, hidden_size: float, number_bytes: float) -> float:
    """Bytes of stored states: three of each token of prompt and answer, and one of each answer token.

    Args:
        tokens: Tokens of prompts and answers.
        answer_tokens: Those of answers.
        hidden_size: Numbers of a state.
        number_bytes: Bytes of a number.
    """
    return (STATES * tokens + answer_tokens) * hidden_size * number_bytes


def features_of(shard: Path) -> Path:
    """File of the states that belong to a labelled shard."""
    return shard.parent / _FOLDER / f"{shard.stem}.npy"


def feature_file_bytes(directory: Path) -> int:
    """Bytes of the stored states in a directory of labels, and of the target's own tensors."""
    return sum(path.stat().st_size for path in (directory / _FOLDER).glob("[!.]*"))


def are_whole(shard: Path, rows: Sequence[AnswerRow], states_of: StatesOf) -> bool:
    """Whether the states of a labelled shard are there, and are this target's of these answers."""
    path = features_of(shard)
    try:
        whole = path.is_file() and _open(path).shape == (_total(rows), states_of.hidden_size)
        return whole and _belongs(path, _owner(states_of, rows))
    except DataError:
        return False


def remove_leftovers(directory: Path) -> None:
    """Removes files that nobody can use; nobody else may write there.

    These are halves that a kill left, states without the file that says whose they are, and, where no answer is
    labelled yet, all states: the settings may have changed since.
    """
    folder = directory / _FOLDER
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
    if not any(directory.glob("*.parquet")):
        (folder / _TARGET).unlink(missing_ok=True)
    if not (folder / _TARGET).is_file():
        for path in folder.glob("*.npy"):
            path.unlink(missing_ok=True)


class FeatureWriter:
    """Writes the states of one shard, an answer at a time.

    Args:
        file: Opened for writing.
        rows: The shard's answers, in the order in which they will come.
        states_of: Whose states they are.
        dtype: Number format: float16, bfloat16 or float32.
    """

    def __init__(self, file: BinaryIO, rows: Sequence[AnswerRow], states_of: StatesOf, dtype: torch.dtype) -> None:
        self._file, self._dtype, self._owner = file, dtype, _owner(states_of, rows)
        shape = _total(rows), states_of.hidden_size
        header: dict[str, Any] = {"descr": _STORED[dtype], "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)

    def add(self, states: TextStates, name: str) -> None:
        """Writes the states of the next answer.

        Args:
            states: Of any float dtype.
            name: Of the prompt, for the message.

        Raises:
            DataError: A number is too large for float16, or none at all.
        """
        for part in (states.aux, states.predicting):
            narrow = part.detach().to("cpu", self._dtype)
            if not bool(narrow.isfinite().all()):
                if not bool(part.isfinite().all()):
                    raise DataError(
                        f"a hidden state of prompt {name!r} is not finite, as the target computes it in "
                        f"{str(part.dtype).removeprefix('torch.')}; set another --dtype"
                    )
                most = float(part.abs().max())
                raise DataError(
                    f"a hidden state of prompt {name!r} reaches {most:.3g}, more than float16 holds; set --features "
                    "bfloat16"
                )
            bits = narrow.view(torch.uint16) if self._dtype == torch.bfloat16 else narrow
            self._file.write(bits.contiguous().numpy().tobytes())

    def finish(self) -> None:
        """Writes whose states these were, behind the last one."""
        self._file.write(self._owner)


class FeatureStore:
    """Reads stored states by the text that they belong to; nothing is held in memory.

    Args:
        shards: Labelled shards.
        rows: Their rows in order, with prompt_ids and answer_ids.
        states_of: Whose states they are.

    Raises:
        DataError: States are missing, damaged, of other answers or of another target.
    """

    def __init__(self, shards: Sequence[Path], rows: Sequence[AnswerRow], states_of: StatesOf) -> None:
        self._places: dict[bytes, tuple[Path, int]] = {}
        start = 0
        for shard in shards:
            path, count, at = features_of(shard), parquet.num_rows(shard), 0
            own = rows[start : start + count]
            for row in own:
                self._places[_key(row["prompt_ids"], row["answer_ids"])] = path, at
                at += _num_rows(row["prompt_ids"], row["answer_ids"])
            found = _open(path).shape
            if found != (at, states_of.hidden_size):
                raise DataError(
                    f"{path} holds {' x '.join(map(str, found))} numbers, and the answers of {shard.name} have {at} x "
                    f"{states_of.hidden_size}; {_AGAIN}"
                )
            if not _belongs(path, _owner(states_of, own)):
                raise DataError(
                    f"{path} holds hidden states of other answers, of another target or of other layers than "
                    f"{shard.name} has; {_AGAIN}"
                )
            start += count

    def states_of(self, example: Example) -> TextStates:
        """Reads the states of an example that was labelled."""
        path, at = self._places[_key(example.prompt_ids, example.answer_ids)]
        answer, tokens = len(example.answer_ids), len(example.prompt_ids) + len(example.answer_ids)
        block = torch.from_numpy(np.array(_open(path)[at : at + STATES * tokens + answer]))
        if block.dtype == torch.uint16:
            block = block.view(torch.bfloat16)
        return TextStates(block[STATES * tokens :], block[: STATES * tokens].reshape(tokens, -1))


def write_target(directory: Path, tensors: Mapping[str, Tensor], states_of: StatesOf) -> None:
    """Writes the target's own tensors and whose states these are; does nothing where they are there.

    Args:
        directory: The labels.
        tensors: Embedding and output head.
        states_of: Kept in the file's metadata.
    """
    path = directory / _FOLDER / _TARGET
    if path.exists():
        return
    metadata = {_KEY: json.dumps(dataclasses.asdict(states_of))}

    def write(temporary: Path) -> None:
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(own, temporary, metadata=metadata)
        temporary.chmod(0o666 & ~atomic.umask())

    atomic.write_with(path, write)


def read_states_of(directory: Path) -> StatesOf | None:
    """Whose states a directory of labels holds; None where it holds none.

    Raises:
        DataError: The file is damaged, or missing beside states.
    """
    path = directory / _FOLDER / _TARGET
    if not path.is_file():
        if any(path.parent.glob("*.npy")):
            raise DataError(f"{path} is missing; {_AGAIN}")
        return None
    try:
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {})[_KEY])
        return StatesOf(**content | {"layers": tuple(content["layers"])})
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path} can't be read ({first_line(error)}); remove it, and {_AGAIN}") from error


def target_tensors(directory: Path) -> dict[str, Tensor]:
    """The target's own tensors, which `write_target` wrote."""
    return load_file(directory / _FOLDER / _TARGET)


def _open(path: Path) -> np.ndarray:
    """The file's numbers, of which nothing is read yet. Not kept open: a set may have more files than a process may."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise DataError(f"{path} can't be read ({first_line(error)}); {_AGAIN}") from error
    if not isinstance(found, np.ndarray) or found.dtype.str not in _STORED.values():
        raise DataError(f"{path} holds no hidden states; {_AGAIN}")
    return found


def _owner(states_of: StatesOf, rows: Sequence[AnswerRow]) -> bytes:
    """Hash of whose states of which texts a shard's are."""
    whose = json.dumps([states_of.content, states_of.layers, states_of.hidden_size])
    keys = b"".join(_key(row["prompt_ids"], row["answer_ids"]) for row in rows)
    return hashlib.blake2b(whose.encode() + keys, digest_size=_HASH_BYTES).digest()


def _belongs(path: Path, owner: bytes) -> bool:
    """Whether a file that `_open` takes ends with this hash, or with its numbers, as those of older versions do."""
    numbers = _open(path)
    end = getattr(numbers, "offset", 0) + numbers.nbytes
    with path.open("rb") as file:
        file.seek(end)
        return file.read() in (b"", owner)


def _total(rows: Sequence[AnswerRow]) -> int:
    return sum(_num_rows(row["prompt_ids"], row["answer_ids"]) for row in rows)


def _num_rows(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> int:
    return STATES * (len(prompt_ids) + len(answer_ids)) + len(answer_ids)


def _key(prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> bytes:
    ids = np.array([len(prompt_ids), *prompt_ids, *answer_ids], dtype=np.int64)
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
