"""A folder in which the commands of README, docs and recipes run, on tiny models."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from fake_vllm import FakeVllm
from own_heads import make_base
from peft_adapters import make_adapter
from tiny_models import make_model, make_tokenizer, save
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from specdistill import load_model
from specdistill.cli import app, main

ROOT = Path(__file__).parents[2]
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
# Settings of real models that tiny ones can't have, and what keeps the runs short.
SMALLER = {"--vocab-keep 8192": "--vocab-keep 40", "--vocab-keep 32768": "--vocab-keep 40", "--layers 6": "--layers 2"}
SMALLER |= {"--max-new-tokens 128": "--max-new-tokens 12", "--donor SMALL_MODEL": "--donor SMALL_MODEL --layers 1"}
SMALLER |= {"self:1000": "self:8", "self:32": "self:4"}
SHORT = {
    "init-draft": "--calibration-prompts 4 --calibration-tokens 6 --probe-steps 2",
    "generate": "",
    "annotate": "",
    "train-draft": "--max-new-tokens 8 --heldout-prompts 2 --steps 2",
    "bench": "--max-new-tokens 8 --num-prompts 4",
    "advise": "--max-new-tokens 8 --num-prompts 4 --vocab-keep 40 --cut-layers 1",
}
NEEDS = {
    "--engine vllm": "--engine vllm needs vLLM installed next to specdistill",
    "target.gguf": "target.gguf",
}
"""Commands that can't run here, and the one line that says so; `make test-engines` runs these with real engines."""


def docs_folder(tmp_path_factory, monkeypatch):
    """A folder in which the names that the pages use are there: tiny models and prompts."""
    folder = tmp_path_factory.mktemp("docs")
    save(make_model(layers=6, context=512), folder / "TARGET")
    shutil.copytree(folder / "TARGET", folder / LLAMA)
    other = make_tokenizer(40, "zebra")
    save(make_model("gemma3_text", layers=2, context=512, tokenizer=other, vocab_size=45), folder / "SMALL_MODEL")
    small = BitsAndBytesConfig(load_in_8bit=True)
    AutoModelForCausalLM.from_pretrained(folder / "TARGET", quantization_config=small).save_pretrained(
        folder / "TARGET-INT8"
    )
    make_tokenizer().save_pretrained(folder / "TARGET-INT8")
    make_adapter(folder / "TARGET", folder / "tuned", named="../TARGET")
    make_base("qwen3_next", folder / "BASE")
    AutoModelForCausalLM.from_pretrained(folder / "BASE").save_pretrained(folder / "TUNED")
    for name, seed in (("served", 0), ("tomorrow", 30)):
        prompts = [
            {"id": f"p{i}", "prompt": f"w{(i + seed) % 60} w{(7 * i) % 60}", "answer": f"w{i}"} for i in range(12)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("SPECDISTILL_CACHE", str(folder / "cache"))
    return folder


def run_line(line: str, capsys, needs: Mapping[str, str] = NEEDS) -> None:
    """Runs a command; one that holds a key of `needs` must be refused with that key's text."""
    for given, smaller in SMALLER.items():
        line = line.replace(given, smaller)
    arguments = shlex.split(line, comments=True)[1:]
    short = shlex.split(SHORT.get(arguments[0], ""))
    # A head has no layers to probe.
    short = short[:-2] if "--kind eagle3" in line else short
    pairs = [pair for pair in zip(short[::2], short[1::2], strict=True) if pair[0] not in arguments]
    code = main([*arguments, *(word for pair in pairs for word in pair)])
    error = capsys.readouterr().err
    excuse = next((text for word, text in needs.items() if word in line), None)
    if excuse is None:
        assert code == 0, f"{line}\n{error}"
    else:
        assert code == 2 and excuse in error, f"{line}\n{error}"


def run_lines(lines: list[str], capsys) -> int:
    """How many of them were run."""
    ran = 0
    target = load_model("TARGET")
    with FakeVllm(target, "TARGET") as plain:
        for line in lines:
            if "openai-server" in line:
                draft = load_model("draft", "draft")
                draft.kept_ids = None
                with FakeVllm(target, "TARGET", draft=draft, num_draft_tokens=4) as drafting:
                    line = line.replace("http://host:8000/v1", drafting.url)
                    run_line(line.replace("http://host:8001/v1", plain.url), capsys)
            elif line.startswith("specdistill "):
                run_line(line, capsys)
            elif line.startswith("accelerate launch "):
                # Several processes are tests/distill/test_ranks.py; here the file and the settings must be there.
                words = shlex.split(line)
                assert (ROOT / words[words.index("--config_file") + 1]).is_file()
                app.parse_args(words[words.index("specdistill") + 1 :], exit_on_error=False, print_error=False)
            else:
                assert line.split()[0] in ("pip", "vllm", "llama-server", "python", "lm_eval"), line
                continue
            ran += 1
    return ran
