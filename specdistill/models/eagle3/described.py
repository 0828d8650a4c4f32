"""Checks a head's files by config.json and the header of its weights. Of the weights only the map of ids is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig

from specdistill.errors import IncompatibleModelsError, ModelError, first_line
from specdistill.files.head_record import AUX_KEY, LAYERS_KEY, HeadRecord
from specdistill.files.stored_tensors import StoredTensor, stored_tensors
from specdistill.models.eagle3.head import Eagle3Head
from specdistill.models.eagle3.start import default_aux_layers

ARCHITECTURE = "LlamaForCausalLMEagle3"
ARCHITECTURES = (ARCHITECTURE, "Eagle3LlamaForCausalLM")
"""Names of the same thing."""
WEIGHTS = "model.safetensors"
OURS, THEIRS = "midlayer.", "layers.0."
"""Beginnings of the layer's names in a file of the flat format, and in `Eagle3Head` and some other files."""
_UNKNOWN = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "attention_bias")
"""Variants of the architecture that are not run here."""
_IDS = ("d2t", "t2d")
_AGAIN = "download or save it again"


def is_head(config: PretrainedConfig) -> bool:
    """Whether a configuration is that of a head in this format."""
    return names_head(getattr(config, "architectures", None))


def names_head(architectures: object) -> bool:
    """Whether a config.json's `architectures` are those of a head."""
    return isinstance(architectures, list) and bool(architectures) and architectures[0] in ARCHITECTURES


def read_config(directory: Path, where: str) -> LlamaConfig:
    """The configuration of a head, which is not held against its weights yet.

    Args:
        directory: Holds config.json.
        where: Names the head in messages, such as `--draft DIR`.

    Raises:
        ModelError: It can't be read, or is of a variant that is not run here.
    """
    try:
        config = LlamaConfig.from_pretrained(directory)
    except Exception as error:
        # Checks of transformers' configurations raise classes of their own, with several lines.
        reason = " ".join(str(error).split()) or first_line(error)
        raise ModelError(f"can't read {where}/config.json: {reason}; {_AGAIN}") from error
    if not is_head(config):
        raise ModelError(f"{where} is no EAGLE-3 head: its config.json names {config.architectures!r}")
    nested = _nested(config)
    used = [name for name in _UNKNOWN if getattr(config, name, None) or nested.get(name)]
    if used or config.num_hidden_layers != 1 or nested.get("use_aux_hidden_state") is False:
        what = ", ".join(used) or "another number of layers or features"
        raise ModelError(f"{where} is a variant of EAGLE-3 that specdistill does not run ({what}); serve it in vLLM")
    return config


def described(
    directory: Path, num_target_layers: int, where: str, role: str, target: str = "the target"
) -> LlamaConfig:
    """The configuration of a head whose files are whole and fit it, with the fields that `Eagle3Head` takes.

    Args:
        directory: Holds config.json and one safetensors file of the flat format.
        num_target_layers: Layers of its target, which decide the layers that are read where the file names none.
        where: Names the head in messages, such as `--draft NAME`.
        role: Flag that names it.
        target: Names its target in messages, such as `--target NAME`.

    Raises:
        ModelError: The files are damaged, incomplete, or of a variant that is not run here.
        IncompatibleModelsError: It was made for a target of other layers, or reads layers that its target lacks.
    """
    config: Any = read_config(directory, where)
    conflict = HeadRecord.read(directory).conflict(num_target_layers, target)
    if conflict is not None:
        raise IncompatibleModelsError(f"{where} {conflict}")
    if not (directory / WEIGHTS).is_file():
        raise ModelError(f"{where} holds no {WEIGHTS}; a head is one file of this name")
    stored = {inner_name(name): tensor for name, tensor in (stored_tensors(directory, role) or {}).items()}
    head = stored.get("lm_head.weight")
    config.draft_vocab_size = head.shape[0] if head is not None and head.shape else config.vocab_size
    config.own_embedding = "embed_tokens.weight" in stored
    config.target_hidden_size = getattr(config, "target_hidden_size", None) or config.hidden_size
    setattr(config, LAYERS_KEY, num_target_layers)
    config.aux_layers = read_layers(config, num_target_layers, where)
    _check_shapes(config, stored, where)
    read_ids(directory, config, where)
    return config


def inner_name(name: str) -> str:
    """Name in `Eagle3Head` of a tensor of a file."""
    return THEIRS + name.removeprefix(OURS) if name.startswith(OURS) else name


def outer_name(name: str) -> str:
    """Inverse of `inner_name`, in the flat format."""
    return OURS + name.removeprefix(THEIRS) if name.startswith(THEIRS) else name


def read_ids(directory: Path, config: LlamaConfig, where: str) -> Tensor:
    """The target's id of each row of the output head, int64 [draft_vocab_size], in the file's order.

    Raises:
        ModelError: `d2t` is missing, is of another size, or names ids that don't exist, come twice or are not those of
            `t2d`.
    """
    fields: Any = config
    rows, vocab_size = int(fields.draft_vocab_size), int(fields.vocab_size)
    if rows == vocab_size:
        return torch.arange(rows)
    with safe_open(directory / WEIGHTS, "pt") as file:
        present = set(file.keys())
        offsets, mask = (file.get_tensor(name) if name in present else None for name in _IDS)
    if offsets is None or offsets.shape != (rows,):
        raise ModelError(f"{where} has {rows} rows of {vocab_size} ids and no d2t that names each row's; {_AGAIN}")
    ids = offsets.to(torch.int64) + torch.arange(rows)
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ModelError(f"{where}: its d2t names id {wrong}, and its config.json has {vocab_size} ids; {_AGAIN}")
    if len(ids.unique()) != rows:
        raise ModelError(f"{where}: its d2t names an id for two rows; {_AGAIN}")
    # A damaged map may name ids that exist: the head proposes others than it learnt, and only alpha shows it.
    if mask is not None and mask.shape == (vocab_size,) and not torch.equal(mask.nonzero()[:, 0], ids.sort().values):
        raise ModelError(f"{where}: its d2t and its t2d name other ids; {_AGAIN}")
    return ids


def read_layers(config: PretrainedConfig, num_target_layers: int, where: str) -> tuple[int, ...]:
    """The target's layers that a head reads, in its order.

    Args:
        config: The head's.
        num_target_layers: Layers of its target, which decide where the configuration names none.
        where: Names the head in messages.

    Raises:
        ModelError: Something else than three numbers is named.
        IncompatibleModelsError: The target lacks one of the layers.
    """
    named = getattr(config, AUX_KEY, None) or _nested(config).get(AUX_KEY)
    if named and not (isinstance(named, list | tuple) and len(named) == 3 and all(type(k) is int for k in named)):
        raise ModelError(f"{where}/config.json: {AUX_KEY} must be three whole numbers, got {named!r}; {_AGAIN}")
    if not named and num_target_layers < 2:
        raise IncompatibleModelsError(
            f"{where} reads three hidden states of its target, and this one has {num_target_layers} layer: it was made "
            "for another target"
        )
    layers = tuple(named or default_aux_layers(num_target_layers))
    if min(layers) < 0 or max(layers) > num_target_layers:
        raise IncompatibleModelsError(
            f"{where} reads the states after layers {', '.join(map(str, layers))}, and the target has "
            f"{num_target_layers} layers: it was made for another target"
        )
    return layers


def _check_shapes(config: LlamaConfig, stored: Mapping[str, StoredTensor], where: str) -> None:
    """Holds the file's tensors against those of the module."""
    try:
        with torch.device("meta"):
            module = Eagle3Head(config)
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ModelError(f"{where}/config.json describes no head that can be built ({reason}); {_AGAIN}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = [name for name in wanted if name not in stored]
    extra = [name for name in stored if name not in wanted and name not in _IDS]
    wrong = [name for name in wanted if name in stored and stored[name].shape != wanted[name]]
    if missing:
        raise ModelError(f"{where}: {WEIGHTS} holds no {_named(missing)}, which an EAGLE-3 head has; {_AGAIN}")
    if extra:
        raise ModelError(
            f"{where}: {WEIGHTS} holds {_named(extra)}, which the heads that specdistill runs don't have; serve it in "
            "vLLM"
        )
    if wrong:
        name = wrong[0]
        found, asked = (" x ".join(map(str, shape)) for shape in (stored[name].shape, wanted[name]))
        raise ModelError(f"{where}: {outer_name(name)} is {found}, and by its config.json it is {asked}; {_AGAIN}")


def _named(names: list[str]) -> str:
    rest = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return outer_name(names[0]) + rest


def _nested(config: PretrainedConfig) -> dict[str, Any]:
    nested = getattr(config, "eagle_config", None)
    return nested if isinstance(nested, dict) else {}
