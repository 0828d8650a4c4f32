"""`specdistill check`: each engine's own gate, on pairs that it loads and pairs that it refuses."""

from __future__ import annotations

import json
import resource
import shlex
import subprocess
import sys

import pytest
from tiny_models import make_config, make_model, make_tokenizer, save

from specdistill.cli import main
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.export_config import ExportConfig
from specdistill.serving.gates import check

EVERY = {"vllm", "sglang", "llama.cpp", "transformers", "tensorrt-llm"}


def model(folder, family="llama", *, tokenizer=None, weights="model.safetensors", **changes):
    """A checkpoint's files without real weights: no gate reads them."""
    folder.mkdir(parents=True)
    config = make_config(family).to_dict() | changes
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer is not False:
        (tokenizer or make_tokenizer()).save_pretrained(folder)
    (folder / weights).write_bytes((2).to_bytes(8, "little") + b"{}")
    return str(folder)


def cut(folder):
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])


def lose_a_shard(folder):
    (weights,) = folder.glob("*.safetensors")
    weights.rename(folder / "model-1.safetensors")
    listed = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))


def verdicts(target, draft, **settings):
    return {each.engine: each for each in check(CheckConfig.flat(target=target, draft=draft, **settings))}


def refusing(found):
    return {name for name, verdict in found.items() if not verdict.loads}


@pytest.fixture
def target(tmp_path):
    return model(tmp_path / "target")


def test_an_equal_pair_loads_everywhere_and_the_commands_name_it(target, tmp_path):
    found = verdicts(target, model(tmp_path / "draft"), num_draft_tokens=6)
    assert set(found) == EVERY and not refusing(found)
    assert not any(verdict.warnings for verdict in found.values())
    speculative = found["vllm"].command.split("--speculative-config ")[1].strip("'")
    assert json.loads(speculative) == {
        "method": "draft_model",
        "model": str(tmp_path / "draft"),
        "num_speculative_tokens": 6,
    }
    assert "--speculative-num-draft-tokens 7" in found["sglang"].command
    assert "--spec-draft-n-max 6" in found["llama.cpp"].command
    served, _, notes = found["llama.cpp"].command.partition("  # ")
    assert "target.gguf" in served and "draft.gguf" in served
    convert, export = notes.split("; the draft: ")
    assert convert.endswith(f": python convert_hf_to_gguf.py {target} --outfile target.gguf")
    # Typed as it is, it is no wrong command.
    words = dict(zip(*[iter(shlex.split(export)[2:])] * 2, strict=True))
    ExportConfig.flat(**{name[2:].replace("-", "_"): value for name, value in words.items()})
    assert words["--draft"] == str(tmp_path / "draft") and words["--target-gguf"] == "target.gguf"


@pytest.mark.parametrize(("sizes", "llama_cpp"), [((151936, 152064), True), ((151936, 152065), False)])
def test_a_padded_vocabulary(tmp_path, sizes, llama_cpp):
    """Qwen2.5's own: 0.5B has 151936 rows, 7B has 152064, and the tokenizer is the same."""
    target = model(tmp_path / "target", "qwen2", vocab_size=sizes[1])
    found = verdicts(target, model(tmp_path / "draft", "qwen2", vocab_size=sizes[0]))
    assert refusing(found) == {"vllm", "sglang", "tensorrt-llm"} | (set() if llama_cpp else {"llama.cpp"})
    assert "only padding differs" in found["vllm"].refusals[0] and "specdistill export" in found["vllm"].refusals[0]
    assert found["transformers"].warnings


def test_other_tokenizers_of_one_size(target, tmp_path):
    found = verdicts(target, model(tmp_path / "draft", tokenizer=make_tokenizer(first_word="zero")))
    assert refusing(found) == {"sglang", "llama.cpp", "tensorrt-llm"}
    assert "id 5 is 'w0' in the target and 'zero' in the draft" in found["sglang"].refusals[0]
    # vLLM compares sizes only: it starts, and accepts next to nothing.
    assert "nearly no token" in found["vllm"].warnings[0]
    assert "assistant_tokenizer" in found["transformers"].command


def test_another_token_below_id_5_is_no_matter_to_llama_cpp(target, tmp_path):
    tokenizer = make_tokenizer()
    text = json.loads(tokenizer.backend_tokenizer.to_str())
    text["model"]["vocab"]["<human>"] = text["model"]["vocab"].pop("<user>")
    folder = tmp_path / "draft"
    draft = model(folder)
    (folder / "tokenizer.json").write_text(json.dumps(text))
    found = verdicts(target, draft)
    assert found["llama.cpp"].loads and not found["sglang"].loads


def test_another_end_of_sequence(target, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<bot>"
    found = verdicts(target, model(tmp_path / "draft", tokenizer=tokenizer))
    assert refusing(found) == {"llama.cpp"} and "eos_token is 1 in the target and 4" in found["llama.cpp"].refusals[0]


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_a_draft_of_two_attention_kinds(target, tmp_path, family):
    found = verdicts(target, model(tmp_path / "draft", family))
    assert refusing(found) == {"vllm"} and "one KV-cache group" in found["vllm"].refusals[0]
    assert "slides" in found["sglang"].warnings[0]


def test_a_draft_that_slides_in_every_layer_is_one_group(target, tmp_path):
    found = verdicts(target, model(tmp_path / "draft", "mistral", sliding_window=64))
    assert not refusing(found) and "every layer sees 64 tokens" in found["sglang"].warnings[0]
    assert not verdicts(target, model(tmp_path / "unused", "qwen2", sliding_window=64, use_sliding_window=False))[
        "sglang"
    ].warnings


def test_a_short_context_warns(target, tmp_path):
    draft = model(tmp_path / "draft", max_position_embeddings=128)
    found = verdicts(target, draft)
    assert not refusing(found)
    assert "made for 128 positions, the server runs 256" in found["vllm"].warnings[0]
    assert found["sglang"].warnings and not verdicts(target, draft, max_model_len=128)["vllm"].warnings


def test_missing_tokenizer_files(target, tmp_path):
    found = verdicts(target, model(tmp_path / "draft", tokenizer=False))
    assert refusing(found) == {"sglang", "llama.cpp"}
    assert "the draft's tokenizer can't be read (no tokenizer.json" in found["sglang"].refusals[0]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_refused(target, tmp_path, name):
    found = verdicts(target, model(tmp_path / "draft", weights=name))
    assert refusing(found) == EVERY and name in found["vllm"].refusals[0]


def test_no_weights_at_all(target, tmp_path):
    assert refusing(verdicts(target, model(tmp_path / "draft", weights="notes.txt"))) == EVERY


def test_m_rope(target, tmp_path):
    found = verdicts(target, model(tmp_path / "draft", rope_parameters={"mrope_section": [8, 8, 8]}))
    assert refusing(found) == {"vllm"} and "M-RoPE" in found["vllm"].refusals[0]


@pytest.mark.parametrize(("gpus", "loads"), [(1, True), (2, True), (4, True), (3, False)])
def test_tensor_parallel(target, tmp_path, gpus, loads):
    found = verdicts(target, model(tmp_path / "draft"), tensor_parallel=gpus)
    assert found["vllm"].loads is found["sglang"].loads is loads


def test_the_text_part_of_a_multimodal_target(tmp_path):
    target = model(tmp_path / "target")
    file = tmp_path / "target" / "config.json"
    file.write_text(json.dumps({"model_type": "mm", "text_config": json.loads(file.read_text())}))
    assert not refusing(verdicts(target, model(tmp_path / "draft")))


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "vit"}'])
def test_what_is_no_language_model(target, tmp_path, capsys, text):
    draft = model(tmp_path / "draft")
    (tmp_path / "draft" / "config.json").write_text(text)
    assert main(["check", "--target", target, "--draft", draft]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "config.json" in error and "Traceback" not in error


def test_the_command_prints_json_and_takes_less_than_five_seconds(target, tmp_path):
    draft, out = model(tmp_path / "draft", vocab_size=70), tmp_path / "verdicts.json"
    command = [sys.executable, "-m", "specdistill", "check", "--target", target, "--draft", draft, "--json", str(out)]
    # Processor seconds: other tests run meanwhile.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert "vllm: refuses" in done.stdout and "llama.cpp: loads" in done.stdout
    found = {each["engine"]: each["loads"] for each in json.loads(out.read_text())["engines"]}
    assert found == {"vllm": False, "sglang": False, "llama.cpp": True, "transformers": True, "tensorrt-llm": False}


def test_the_command_reads_files_without_torch(target, tmp_path):
    """Its seconds were those of importing torch and transformers."""
    draft = model(tmp_path / "draft", vocab_size=70)
    code = f"""
import sys
from specdistill.cli import main
main(["check", "--target", {target!r}, "--draft", {draft!r}])
print(sorted({{"torch", "transformers"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize(
    ("spoil", "text"), [(cut, "is incomplete: it has"), (lose_a_shard, "model-2.safetensors, which")]
)
def test_incomplete_weights_start_no_engine(tmp_path, role, spoil, text):
    folders = {name: save(make_model(layers=1), tmp_path / name) for name in ("target", "draft")}
    spoil(folders[role])
    found = verdicts(str(folders["target"]), str(folders["draft"]))
    assert refusing(found) == EVERY
    assert all(f"--{role} " in each.refusals[-1] and text in each.refusals[-1] for each in found.values())
