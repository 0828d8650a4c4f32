"""`specdistill check` on what people have: .gguf files, adapters; and the commands that it prints."""

from __future__ import annotations

import json
import shlex

import gguf
import pytest
import wild_checkpoints as wild
from tiny_models import make_model, make_tokenizer, save

from specdistill.cli import main
from specdistill.serving import draft_flags
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.engine_table import Drafting, Launch
from specdistill.serving.engines import llama_server, vllm_server
from specdistill.serving.gates import check

CHECKPOINTS_ONLY = {"vllm", "sglang", "tensorrt-llm"}


def write_gguf(path, tokens=None, *, eos=1, kind="gpt2", context=256, **numbers):
    """A .gguf file without weights, which no gate reads."""
    if tokens is None:
        vocabulary = make_tokenizer().get_vocab()
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_eos_token_id(eos)
    for name, value in numbers.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


@pytest.fixture
def target(tmp_path):
    return write_gguf(tmp_path / "target.gguf")


def verdicts(target, draft, **settings):
    return {each.engine: each for each in check(CheckConfig.flat(target=target, draft=draft, **settings))}


def refusing(found):
    return {name for name, verdict in found.items() if not verdict.loads}


def one_line(capsys) -> str:
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("specdistill: ") and "unexpected" not in line
    return line


# ---- .gguf files


def test_a_pair_of_gguf_files_is_checked_for_llama_cpp(target, tmp_path):
    draft = write_gguf(tmp_path / "draft.gguf")
    found = verdicts(target, draft, num_draft_tokens=6)
    assert refusing(found) == CHECKPOINTS_ONLY
    assert "the target is a .gguf file" in found["vllm"].refusals[0]
    assert shlex.split(found["llama.cpp"].command) == [
        "llama-server", "-m", target, "-md", draft, "--spec-type", "draft-simple", "--spec-draft-n-max", "6",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"eos": 4}, "eos_token is 1 in the target and 4 in the draft"),
        ({"kind": "llama"}, "the target's vocabulary is BPE, the draft's SPM"),
        ({"add_bos_token": True}, "add_bos_token is False in the target and True in the draft"),
        ({"tokens": [f"t{i}" for i in range(65)]}, "id 5 is 'w0' in the target and 't5' in the draft"),
        ({"tokens": [f"t{i}" for i in range(300)]}, "vocab_size differs by 235"),
    ],
)
def test_what_llama_cpp_refuses_in_gguf_files(tmp_path, changes, reason):
    target = write_gguf(tmp_path / "target.gguf", add_bos_token=False)
    draft = write_gguf(tmp_path / "draft.gguf", **{"add_bos_token": False} | changes)
    assert any(reason in refusal for refusal in verdicts(target, draft)["llama.cpp"].refusals)


def test_a_gguf_target_with_a_checkpoint_as_its_draft(target, tmp_path):
    """The draft is still to be exported: its tokens are compared, and the command says how."""
    draft = save(make_model(layers=1), tmp_path / "draft")
    found = verdicts(target, str(draft))
    assert found["llama.cpp"].loads and f"-m {target} -md draft.gguf" in found["llama.cpp"].command
    exported = found["llama.cpp"].command.split("specdistill export ")[1]
    assert "--format gguf" in exported and f"--draft {draft}" in exported and str(target) in exported
    assert found["transformers"].loads and "gguf_file='target.gguf'" in found["transformers"].warnings[0]


def test_the_real_file_is_read(gguf_path, smollm2):
    """Converted by llama.cpp's own script, where the others here are ours."""
    found = verdicts(str(gguf_path), str(smollm2.directory))
    assert found["llama.cpp"].loads, found["llama.cpp"].refusals


def test_the_command_takes_gguf_files(target, tmp_path, capsys):
    out = tmp_path / "verdicts.json"
    assert main(["check", "--target", target, "--draft", target, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "llama.cpp: loads" in printed and "--spec-type draft-simple" in printed
    assert {each["engine"] for each in json.loads(out.read_text())["engines"] if each["loads"]} == {
        "llama.cpp",
        "transformers",
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.gguf", b"GGUFnonsense", "can't be read as .gguf"),
        ("empty.gguf", b"", "can't be read as .gguf"),
        ("model.bin", b"x", "is a file but no .gguf"),
        ("absent.gguf", None, "does not exist"),
    ],
)
def test_files_that_are_no_gguf(target, tmp_path, name, content, message, capsys):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert main(["check", "--target", target, "--draft", str(tmp_path / name)]) == 2
    error = one_line(capsys)
    assert message in error and f"--draft {tmp_path / name}" in error


def test_a_later_part_of_a_split_gguf_is_named(target, tmp_path, capsys):
    writer = gguf.GGUFWriter(tmp_path / "m-00002-of-00002.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert main(["check", "--target", target, "--draft", str(tmp_path / "m-00002-of-00002.gguf")]) == 2
    assert "name the first part" in one_line(capsys)


# ---- adapters


def test_adapter_weights_are_no_weights_of_a_model(tmp_path):
    """An adapter's weights beside a configuration: nothing that an engine could load."""
    target, draft = (save(make_model(layers=1), tmp_path / name) for name in ("target", "draft"))
    adapter = wild.adapter(tmp_path / "adapter")
    (draft / wild.WEIGHTS).unlink()
    (adapter / "adapter_model.safetensors").rename(draft / "adapter_model.safetensors")
    found = verdicts(str(target), str(draft))
    assert refusing(found) == set(found) and "holds no weights" in found["vllm"].refusals[-1]


def test_a_pickled_adapter_or_a_trainers_state_is_no_pickled_model(tmp_path):
    target, draft = (save(make_model(layers=1), tmp_path / name) for name in ("target", "draft"))
    (draft / wild.WEIGHTS).unlink()
    for name in ("adapter_model.bin", "training_args.bin", "optimizer.pt"):
        (draft / name).write_bytes(b"")
    assert "holds no weights" in verdicts(str(target), str(draft))["vllm"].refusals[-1]


# ---- printed commands


def launch(drafting):
    return Launch(
        target="target", drafting=drafting, port=1, context=64, batch_size=1, device="cpu", dtype="float32", threads=1,
        servers=2, engine_args="",
    )  # fmt: skip


@pytest.mark.parametrize(("engine", "module"), [("llama.cpp", llama_server), ("vllm", vllm_server)])
def test_bench_starts_what_check_prints(engine, module, monkeypatch):
    """The flags that make it draft; the model, the port and the sizes are bench's own."""
    monkeypatch.setattr("shutil.which", lambda program: f"/bin/{program}")
    drafting = Drafting(draft="draft", num_draft_tokens=5)
    started, plain = module.command(launch(drafting)), module.command(launch(None))
    flags = draft_flags.SERVERS[engine][1](drafting)
    assert [word for word in started if word not in plain] == flags
    assert draft_flags.command(engine, "target", drafting)[-len(flags) :] == flags


def test_the_printed_llama_cpp_command_drafts(tmp_path):
    """A draft that is named without --spec-type is loaded and never asked."""
    for role in ("target", "draft"):
        save(make_model(layers=1), tmp_path / role)
    words = shlex.split(verdicts(str(tmp_path / "target"), str(tmp_path / "draft"))["llama.cpp"].command, comments=True)
    assert words[words.index("--spec-type") + 1] == "draft-simple" and words[-2:] == ["--spec-draft-n-max", "4"]
