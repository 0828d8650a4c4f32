"""Checkpoints as they are found in the wild: quantised, incomplete, adapters, tokenizers that don't fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_runs import write_rows
from torch import Tensor

from specdistill.cli import main

WEIGHTS = "model.safetensors"
BLOCK = 128


def change_json(path: Path, **changes) -> None:
    """Overwrites keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(directory: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Rewrites a checkpoint's weights after `change` has edited them in place."""
    weights = load_file(directory / WEIGHTS)
    change(weights)
    save_file(weights, directory / WEIGHTS, {"format": "pt"})


def copy(source: Path, directory: Path) -> Path:
    """A copy of a checkpoint that a test may damage."""
    shutil.copytree(source, directory)
    return directory


def add_token(directory: Path, token: str = "<image>") -> int:
    """Adds a special token to the tokenizer without a row in the embedding; its id."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    tokenizer.save_pretrained(directory)
    return int(tokenizer.convert_tokens_to_ids(token))


def block_fp8(directory: Path, scales: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Stores the layers' matrices as FP8 with a scale for each block, as Qwen3-8B-FP8 does.

    Returns:
        Every weight's value, which the stored numbers stand for.
    """
    meant: dict[str, Tensor] = {}

    def change(weights: dict[str, Tensor]) -> None:
        for name, weight in list(weights.items()):
            if ".layers." not in name or weight.ndim != 2:
                weights[name] = weight.bfloat16()
                meant[name] = weights[name].float()
                continue
            rows, columns = (-(-size // BLOCK) for size in weight.shape)
            scale = torch.zeros(rows, columns)
            whole = torch.zeros_like(weight)
            stored = torch.zeros_like(weight, dtype=torch.float8_e4m3fn)
            for row in range(rows):
                for column in range(columns):
                    block = (slice(row * BLOCK, (row + 1) * BLOCK), slice(column * BLOCK, (column + 1) * BLOCK))
                    scale[row, column] = (weight[block].abs().max() / 448).to(scales).float()
                    stored[block] = (weight[block] / scale[row, column]).to(torch.float8_e4m3fn)
                    whole[block] = stored[block].float() * scale[row, column]
            weights[name], weights[f"{name}_scale_inv"], meant[name] = stored, scale.to(scales), whole

    change_weights(directory, change)
    settings = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
    change_json(directory / "config.json", quantization_config=settings, dtype="bfloat16")
    return meant


def adapter(directory: Path, base: str = "org/base-8b") -> Path:
    """A LoRA adapter as peft writes it, with the tokenizer files that trainers put beside it."""
    directory.mkdir(parents=True)
    settings = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 8, "task_type": "CAUSAL_LM"}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"base_model.model.lm_head.lora_A.weight": torch.zeros(8, 4)}, directory / "adapter_model.safetensors")
    return directory


COMMANDS = ("bench", "init-draft", "train-draft", "generate", "annotate", "export")


def run(command: str, folder, more: list[str] | None = None, **models: str) -> int:
    """Runs a command on the folder's models at its smallest; `more` are flags that go before its own."""
    target, draft = (models.get(role, str(folder / role)) for role in ("target", "draft"))
    prompts = ["--prompts", str(folder / "prompts.jsonl")]
    if not (folder / "prompts.jsonl").exists():
        write_rows(folder / "prompts.jsonl", [{"prompt": f"w{i} w{i + 1}", "answer": "w3"} for i in range(6)])
    output, short = ["--output", str(folder / "out")], ["--max-new-tokens", "4"]
    words = {
        "bench": ["--draft", draft, *prompts, *short, "--num-prompts", "2", "--num-draft-tokens", "2"],
        "init-draft": ["--layers", "1", "--calibration-tokens", "4", *prompts, *output],
        "train-draft": [
            *("--method", "sft", "--steps", "1", "--heldout-prompts", "2", "--draft", draft),
            *(*prompts, *short, *output),
        ],
        "generate": [*prompts, *short, *output],
        "annotate": [*prompts, *short, *output],
        "export": ["--draft", draft, "--format", "vllm", *output],
        "check": ["--draft", draft],
    }[command]
    pairs = [words[at : at + 2] for at in range(0, len(words), 2)]
    own = [word for pair in pairs if pair[0] not in (more or []) for word in pair]
    return main([command, "--target", target, *own, *(more or [])])


def one_line(capsys) -> str:
    """The error, which is one line and never says that something was unexpected."""
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("specdistill: ") and "unexpected" not in line
    return line


def written(folder) -> list[str]:
    """Files that a refused command has left in its output."""
    return sorted(path.name for path in (folder / "out").rglob("*")) if (folder / "out").exists() else []
