"""A folder of everything that people hand to commands and that can't be used: checkpoints, prompts, settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import wild_checkpoints as wild
from tiny_runs import standard_models, write_folder, write_rows

USER, ASSISTANT = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m.content }} {% endfor %}"
)


def make_folder(folder: Path) -> Path:
    """Writes the models target, draft and foreign, files that are fine, and beside them those that are not."""
    write_folder(folder, standard_models())
    (folder / "used").mkdir()
    (folder / "used" / "precious").write_text("keep me")
    (folder / "empty-directory").mkdir()
    (folder / "fine.txt").write_text("w1 w2\nw3 w4\n")
    (folder / "leaves.py").write_text("import sys\n\nsys.exit(0)\n")
    (folder / "scores.py").write_text("def fine(prompt, text):\n    return 1.0\n\nnumber = 3\n")
    (folder / "breaks.py").write_text("1 / 0\n")
    _prompts(folder)
    _settings(folder / "settings")
    _checkpoints(folder)
    return folder


def _prompts(folder: Path) -> None:
    texts: dict[str, bytes] = {
        "blank.txt": b" \n\t\n  \n",
        "empty.jsonl": b"",
        "broken.jsonl": b'{"prompt": "w1"}\n{"prompt": \n',
        "latin.txt": "w1 \u00e9\n".encode("latin-1"),
        "scalar.json": b"3",
        "numbers.json": b"[1, 2]",
        "nothing.json": b"[]",
        "cut.parquet": b"PAR1 and no more",
        "cut.jsonl.gz": b"\x1f\x8b\x08\0",
        "p.docx": b"w1",
        "bom.jsonl": b'\xef\xbb\xbf{"prompt": "w1"}\n{"prompt": 3}\n',
        "surrogate.jsonl": b'{"prompt": "w1"}\n{"prompt": "\\ud800"}\n',
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    rows = {
        "ids.jsonl": [{"id": 1, "prompt": "w1"}, {"id": 1, "prompt": "w2"}],
        "other-fields.jsonl": [{"question": "w1"}],
        "image.jsonl": [{"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]}],
        "assistant.jsonl": [{"messages": [ASSISTANT]}],
        "system.jsonl": [{"messages": [{"role": "system", "content": f"w{i}"}, USER, ASSISTANT]} for i in range(4)],
        "long.jsonl": [{"prompt": "w1 " * 300, "answer": "w2"}, {"prompt": "w4", "answer": "w2"}],
    }
    for name, content in rows.items():
        write_rows(folder / name, content)


def _settings(folder: Path) -> None:
    folder.mkdir()
    texts: dict[str, bytes] = {
        "numeric-key.yaml": b"1: 2\n",
        "no-name.yaml": b"null: 3\n",
        "repeated.yaml": b"seed: 1\nseed: 2\n",
        "two-spellings.yaml": b"top-k: 1\ntop_k: 2\n",
        "empty.yaml": b"",
        "comment.yaml": b"# nothing yet\n",
        "list.yaml": b"- seed\n",
        "scalar.yaml": b"hello\n",
        "broken.yaml": b"seed: [1\n",
        "deep.yaml": b"seed: " + b"[" * 3000,
        "python.yaml": b"seed: !!python/object:os.system x\n",
        "documents.yaml": b"seed: 1\n---\nseed: 2\n",
        "latin.yaml": b"prompts: \xe9\n",
        "nested.yaml": b"part: {seed: 1}\n",
        "several.yaml": b"seed: [1, 2]\n",
        "bytes.yaml": b"seed: !!binary aGVsbG8=\n",
        "unknown.yaml": b"temprature: 1\n",
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content)


def _checkpoints(folder: Path) -> None:
    def damaged(name: str, damage: Callable[[Path], object]) -> None:
        damage(wild.copy(folder / "target", folder / name))

    def spoil(key: str) -> Callable[[Path], None]:
        return lambda path: wild.change_weights(path, lambda weights: weights[key].fill_(torch.nan))

    def drop(key: str) -> Callable[[Path], None]:
        return lambda path: wild.change_weights(path, lambda weights: weights.pop(key))

    def whole_numbers(key: str) -> Callable[[Path], None]:
        return lambda path: wild.change_weights(
            path, lambda weights: weights.update({key: weights[key].to(torch.int8)})
        )

    def config(**changes) -> Callable[[Path], None]:
        return lambda path: wild.change_json(path / "config.json", **changes)

    def tokenizer(path: Path, template) -> None:
        for file in path.glob("chat_template*"):
            file.unlink()
        wild.change_json(path / "tokenizer_config.json", chat_template=template)

    layer = "model.layers.0.mlp.up_proj.weight"
    damaged("empty-weights", lambda path: (path / wild.WEIGHTS).write_bytes(b""))
    damaged("cut-weights", lambda path: _cut(path / wild.WEIGHTS))
    damaged("no-weights", lambda path: (path / wild.WEIGHTS).unlink())
    damaged("nan-weights", spoil(layer))
    damaged("integer-weights", whole_numbers(layer))
    damaged("missing-weight", drop(layer))
    damaged("no-config", lambda path: (path / "config.json").unlink())
    damaged("broken-config", lambda path: (path / "config.json").write_text("{"))
    damaged("list-config", lambda path: (path / "config.json").write_text("[]"))
    damaged("too-many-experts", config(num_local_experts=4, num_experts_per_tok=9))
    damaged("unknown-architecture", config(model_type="t5", architectures=["T5ForConditionalGeneration"]))
    damaged("gptq", config(quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128}))
    damaged("modelopt", config(quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"}))
    damaged("no-tokenizer", lambda path: [file.unlink() for file in path.glob("tokenizer*")])
    damaged("broken-tokenizer", lambda path: (path / "tokenizer.json").write_text("{"))
    damaged("broken-template", lambda path: tokenizer(path, "w1\n{% if %}"))
    damaged("silent-template", lambda path: tokenizer(path, "{# nothing #}"))
    two = [{"name": "rag", "template": "w1"}, {"name": "tool_use", "template": "w2"}]
    damaged("two-templates", lambda path: tokenizer(path, two))
    damaged("no-system", lambda path: tokenizer(path, NO_SYSTEM))
    damaged("no-stop-id", lambda path: _stop(path, None))
    damaged("stop-id-beyond", lambda path: _stop(path, 4711))
    wild.adapter(folder / "adapter", "../nowhere")
    shutil.copytree(folder / "target", folder / "pickled")
    (folder / "pickled" / wild.WEIGHTS).rename(folder / "pickled" / "pytorch_model.bin")
    (folder / "cut.gguf").write_bytes(b"GGUF\3\0\0\0\7")
    (folder / "text.gguf").write_text("hello")
    (folder / "empty.gguf").write_bytes(b"")


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _stop(path: Path, stop: int | None) -> None:
    """Takes the stop ids away, or names one that has no weights."""
    wild.change_json(path / "config.json", eos_token_id=stop)
    wild.change_json(path / "generation_config.json", eos_token_id=stop)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings.pop("eos_token", None)
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
