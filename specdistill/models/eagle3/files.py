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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from specdistill.errors import ModelError, first_line
from specdistill.files import atomic
from specdistill.files.head_record import AUX_KEY, LAYERS_KEY
from specdistill.models.eagle3.described import ARCHITECTURE, WEIGHTS, described, inner_name, outer_name, read_ids
from specdistill.models.eagle3.head import Eagle3Head
from specdistill.models.eagle3.start import default_aux_layers


def head_tensors(head: Eagle3Head, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Tensors of the file, by name, on the CPU.

    Args:
        head: The head.
        dtype: dtype of the weights; None keeps theirs.
    """
    found = {outer_name(name): tensor.detach().to("cpu", dtype) for name, tensor in head.state_dict().items()}
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
    # The usual layers are not named, and would be others of another target.
    content[LAYERS_KEY] = num_target_layers
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
    directory: Path,
    num_target_layers: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    where: str | None = None,
    role: str = "draft",
    target: str = "the target",
) -> Eagle3Head:
    """Reads a head, ours or somebody else's. Give it the target's embedding next (`use_embedding`).

    Args:
        directory: Holds config.json and one safetensors file of the flat format.
        num_target_layers: Layers of its target, which decide the layers that are read where the file names none.
        dtype: dtype to load into.
        device: Where to.
        where: Names the head in messages; by default its flag and directory.
        role: Flag that names it.
        target: Names its target in messages.

    Raises:
        ModelError: The files are damaged, incomplete, or of a variant that is not run here.
        IncompatibleModelsError: It was made for a target of other layers, or reads layers that its target lacks.
    """
    where = where or f"--{role} {directory}"
    config = described(directory, num_target_layers, where, role, target)
    try:
        tensors = {inner_name(name): tensor for name, tensor in load_file(directory / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"can't read {where}: {first_line(error)}; download the file again") from error
    head = Eagle3Head(config)
    head.load_state_dict({name: tensors[name] for name in head.state_dict()})
    # Rows in the order of their ids, as everything that trims a vocabulary has them.
    ids, order = read_ids(directory, config, where).sort()
    with torch.no_grad():
        head.lm_head.weight.copy_(head.lm_head.weight[order])
    head.draft_ids = ids
    # transformers' own annotation of `to` does not take a dtype.
    torch.nn.Module.to(head, device, dtype)
    return head.eval()
