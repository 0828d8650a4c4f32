"""Reads and writes heads in the flat EAGLE-3 format, which vLLM, SGLang and llama.cpp's converter read.

`config.json` is a Llama configuration of one layer with `architectures` LlamaForCausalLMEagle3 and `draft_vocab_size`.
`model.safetensors` holds `fc.weight`, `midlayer.*`, `norm.weight`, `lm_head.weight` and, for a trimmed vocabulary,
`d2t` (int64: id of the target minus the row's number) and `t2d` (bool over the target's vocabulary).
`embed_tokens.weight` is there only where the head has an embedding of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig

from specdistill.errors import ModelError, first_line
from specdistill.files import atomic
from specdistill.models.eagle3.head import AUX_KEY, Eagle3Head
from specdistill.models.eagle3.start import default_aux_layers

ARCHITECTURE = "LlamaForCausalLMEagle3"
ARCHITECTURES = (ARCHITECTURE, "Eagle3LlamaForCausalLM")
"""Names of the same thing."""
WEIGHTS = "model.safetensors"
_OURS = "midlayer."
_THEIRS = "layers.0."
_UNKNOWN = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "attention_bias")
"""Variants of the architecture that this module does not run."""


def is_head(config: PretrainedConfig) -> bool:
    """Whether a configuration is that of a head in this format."""
    names = getattr(config, "architectures", None)
    return bool(names) and names[0] in ARCHITECTURES


def head_tensors(head: Eagle3Head, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Tensors of the file, by name, on the CPU.

    Args:
        head: The head.
        dtype: dtype of the weights; None keeps theirs.
    """
    found = {
        name.replace(_THEIRS, _OURS, 1) if name.startswith(_THEIRS) else name: tensor.detach().to("cpu", dtype)
        for name, tensor in head.state_dict().items()
    }
    vocab_size = head.config.vocab_size
    if head.draft_vocab_size != vocab_size:
        ids = head.draft_ids.cpu()
        found["d2t"] = ids - torch.arange(len(ids))
        found["t2d"] = torch.zeros(vocab_size, dtype=torch.bool).index_fill_(0, ids, True)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def head_json(head: Eagle3Head, num_target_layers: int, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Contents of config.json.

    Args:
        head: The head.
        num_target_layers: Layers of its target; the layers that are read are named only where they are not the usual.
        dtype: dtype of the weights in the file; None for theirs.
    """
    content = head.config.to_dict()
    for name in ("aux_layers", "own_embedding", "_name_or_path", "transformers_version"):
        content.pop(name, None)
    content |= {"architectures": [ARCHITECTURE], "dtype": str(dtype or head.dtype).removeprefix("torch.")}
    rope = content.get("rope_parameters") or {}
    if "rope_theta" in rope:
        # Engines that don't read transformers 5's rope_parameters look for it here.
        content["rope_theta"] = rope["rope_theta"]
    usual = num_target_layers >= 7 and head.aux_layers == default_aux_layers(num_target_layers)
    if not usual:
        content[AUX_KEY] = list(head.aux_layers)
        content["eagle_config"] = {AUX_KEY: list(head.aux_layers), "use_aux_hidden_state": True}
    return content


def save_head(head: Eagle3Head, directory: Path, num_target_layers: int, dtype: torch.dtype | None = None) -> None:
    """Writes config.json and the weights, which come last. Tokenizer files are the caller's.

    Args:
        head: The head.
        directory: An existing directory.
        num_target_layers: As for `head_json`.
        dtype: dtype of the weights in the file; None keeps theirs.

    Raises:
        OutputError: The disk is full or the directory can't be written.
    """
    content = head_json(head, num_target_layers, dtype)
    atomic.write_text(directory / "config.json", json.dumps(content, indent=2, sort_keys=True) + "\n")
    tensors = head_tensors(head, dtype)

    def write(path: Path) -> None:
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o666 & ~atomic.umask())

    atomic.write_with(directory / WEIGHTS, write)


def load_head(
    directory: Path, num_target_layers: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Eagle3Head:
    """Reads a head, ours or somebody else's. Give it the target's embedding next (`use_embedding`).

    Args:
        directory: Holds config.json and one safetensors file of the flat format.
        num_target_layers: Layers of its target, which decide the layers that are read where the file names none.
        dtype: dtype to load into.
        device: Where to.

    Raises:
        ModelError: The files are damaged, incomplete, or of a variant that is not run here; nothing was changed.
    """
    where = f"--draft {directory}"
    try:
        config: Any = LlamaConfig.from_pretrained(directory)
        _refuse_variants(config, where)
        tensors = load_file(directory / WEIGHTS)
    except (OSError, ValueError) as error:
        raise ModelError(f"can't read {where}: {first_line(error)}; download the file again") from error
    tensors = {_loaded_name(name): tensor for name, tensor in tensors.items()}
    offsets = tensors.pop("d2t", None)
    tensors.pop("t2d", None)
    rows = tensors["lm_head.weight"].shape[0] if "lm_head.weight" in tensors else config.vocab_size
    config.draft_vocab_size, config.own_embedding = rows, "embed_tokens.weight" in tensors
    config.target_hidden_size = getattr(config, "target_hidden_size", None) or config.hidden_size
    config.aux_layers = _aux_layers(config) or default_aux_layers(num_target_layers)
    head = Eagle3Head(config)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelError(f"{where} is no EAGLE-3 head of the flat format: {first_line(error)}") from error
    if rows != config.vocab_size:
        if offsets is None or len(offsets) != rows:
            raise ModelError(f"{where} has {rows} rows of {config.vocab_size} ids and no d2t that names them")
        head.draft_ids = offsets.to(torch.int64) + torch.arange(rows)
    # transformers' own annotation of `to` does not take a dtype.
    torch.nn.Module.to(head, device, dtype)
    return head.eval()


def _loaded_name(name: str) -> str:
    return _THEIRS + name.removeprefix(_OURS) if name.startswith(_OURS) else name


def _aux_layers(config: PretrainedConfig) -> tuple[int, ...] | None:
    named = getattr(config, AUX_KEY, None) or _nested(config).get(AUX_KEY)
    return tuple(named) if named else None


def _nested(config: PretrainedConfig) -> dict[str, Any]:
    return getattr(config, "eagle_config", None) or {}


def _refuse_variants(config: PretrainedConfig, where: str) -> None:
    if not is_head(config):
        raise ModelError(f"{where} is no EAGLE-3 head: its config.json names {config.architectures!r}")
    nested = _nested(config)
    used = [name for name in _UNKNOWN if getattr(config, name, None) or nested.get(name)]
    if used or config.num_hidden_layers != 1 or nested.get("use_aux_hidden_state") is False:
        what = ", ".join(used) or "another number of layers or features"
        raise ModelError(f"{where} is a variant of EAGLE-3 that specdistill does not run ({what}); serve it in vLLM")
