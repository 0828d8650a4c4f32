"""Checkpoints as people have them: ids beyond the head, incomplete weights, adapters, files that are missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import wild_checkpoints as wild
from tiny_models import make_model, make_tokenizer, save
from tiny_runs import write_rows

from specdistill.cli import main
from specdistill.errors import DataError, IncompatibleModelsError, ModelError
from specdistill.models import load_model, load_pair
from specdistill.models.checkpoint import save_draft, tokenizer_files
from specdistill.models.load import find, load_shell


@pytest.fixture
def pair(tmp_path):
    """A target of three layers and a draft of one, which a test may damage."""
    save(make_model(layers=3), tmp_path / "target")
    save(make_model(layers=1, seed=9), tmp_path / "draft")
    return tmp_path


COMMANDS = ("bench", "init-draft", "train-draft", "generate", "annotate", "export")


def run(command: str, folder, **models: str) -> int:
    """Runs a command on the folder's models at its smallest."""
    target, draft = (models.get(role, str(folder / role)) for role in ("target", "draft"))
    prompts = ["--prompts", str(folder / "prompts.jsonl")]
    if not (folder / "prompts.jsonl").exists():
        write_rows(folder / "prompts.jsonl", [{"prompt": f"w{i} w{i + 1}", "answer": "w3"} for i in range(6)])
    output, short = ["--output", str(folder / "out")], ["--max-new-tokens", "4"]
    words = {
        "bench": ["--draft", draft, *prompts, *short, "--num-prompts", "2", "--num-draft-tokens", "2"],
        "init-draft": ["--layers", "1", "--calibration-tokens", "4", *prompts, *output],
        "train-draft": ["--draft", draft, "--method", "sft", "--steps", "1", "--heldout-prompts", "2", *prompts, *short]
        + output,
        "generate": [*prompts, *short, *output],
        "annotate": [*prompts, *short, *output],
        "export": ["--draft", draft, "--format", "vllm", *output],
        "check": ["--draft", draft],
    }[command]
    return main([command, "--target", target, *words])


def one_line(capsys) -> str:
    """The error, which is one line and never says that something was unexpected."""
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("specdistill: ") and "unexpected" not in line
    return line


def written(folder) -> list[str]:
    return sorted(path.name for path in (folder / "out").rglob("*")) if (folder / "out").exists() else []


# ---- ids beyond the head


@pytest.mark.parametrize("command", COMMANDS)
def test_an_added_token_without_a_row_is_no_reason_to_refuse_a_model(pair, command, capsys):
    for role in ("target", "draft"):
        assert wild.add_token(pair / role) == 65
    assert run(command, pair) == 0, capsys.readouterr().err


def test_ids_beyond_the_head_can_not_be_produced(pair):
    for role in ("target", "draft"):
        wild.add_token(pair / role)
    loaded = load_pair(str(pair / "target"), str(pair / "draft"))
    assert loaded.target.vocab_size == loaded.draft.vocab_size == 65
    assert loaded.target.logits(torch.randn(2, 32)).shape == (2, 65)
    assert load_shell(find(str(pair / "target"), "target")).vocab_size == 65


def test_only_one_side_has_the_added_token(pair):
    wild.add_token(pair / "target")
    loaded = load_pair(str(pair / "target"), str(pair / "draft"))
    assert loaded.same_tokenizer and loaded.target.vocab_size == 65


def test_a_prompt_with_a_token_without_weights_is_named(pair, capsys):
    wild.add_token(pair / "target")
    write_rows(pair / "prompts.jsonl", [{"id": "fine", "prompt": "w1"}, {"id": "photo", "prompt": "w1 <image> w2"}])
    assert run("generate", pair) == 2
    error = one_line(capsys)
    assert "'photo'" in error and "'<image>' (id 65)" in error and "ids 0 to 64" in error and not written(pair)


def test_an_answer_with_a_token_without_weights_is_named(pair, capsys):
    for role in ("target", "draft"):
        wild.add_token(pair / role)
    rows = [{"id": f"p{i}", "prompt": f"w{i}", "answer": "w3 <image>"} for i in range(6)]
    write_rows(pair / "prompts.jsonl", rows)
    assert run("train-draft", pair) == 2
    # The held-out prompts, which are fine, were answered before.
    assert "'<image>' (id 65)" in capsys.readouterr().err.splitlines()[-1]


def test_a_draft_whose_head_is_shorter_than_the_targets_ids_keeps_its_distribution(pair):
    """Gemma 3: the 4B has rows for the image token, the 270M has none, and the tokenizers are equal."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    save(make_model(layers=3, vocab_size=72, tokenizer=tokenizer), pair / "wide")
    wild.add_token(pair / "draft")
    alone = load_model(str(pair / "draft"), "draft")
    loaded = load_pair(str(pair / "wide"), str(pair / "draft"))
    assert loaded.target.vocab_size == loaded.draft.vocab_size == 66
    ids = torch.randint(5, 65, (2, 9))
    with torch.no_grad():
        before = alone.logits(alone.hidden_states(ids)).softmax(-1)
        after = loaded.draft.logits(loaded.draft.hidden_states(ids)).softmax(-1)
    torch.testing.assert_close(after[..., :65] / after[..., :65].sum(-1, keepdim=True), before)
    assert after[..., 65].mean() < 1 / 66


def test_a_real_token_beyond_the_head_still_means_other_files(pair):
    make_tokenizer(words=80).save_pretrained(pair / "target")
    with pytest.raises(ModelError, match="id 65 .* belong to another model"):
        find(str(pair / "target"), "target")


def test_an_added_token_with_a_row_is_still_a_difference(pair):
    save(make_model(layers=3, vocab_size=72), pair / "wide")
    wild.add_token(pair / "wide", "<think>")
    with pytest.raises(IncompatibleModelsError, match="id 65 is '<think>'"):
        load_pair(str(pair / "wide"), str(pair / "draft"))


# ---- weights that are not the architecture's own


def without_head(weights):
    del weights["lm_head.weight"]


def with_scales(weights):
    weights["model.layers.0.self_attn.q_proj.weight_scale"] = torch.ones(1)


def of_another_shape(weights):
    weights["model.norm.weight"] = torch.ones(16)


def with_nan(weights):
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan


DAMAGES = {
    without_head: "holds no weights for lm_head.weight",
    with_scales: "no place for: model.layers.0.self_attn.q_proj.weight_scale",
    of_another_shape: "model.norm.weight has the shape [16], but config.json asks for [32]",
    with_nan: "model.layers.1.mlp.up_proj.weight holds NaN or infinity",
}


@pytest.mark.parametrize("command", COMMANDS[:-1])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_weights_that_are_not_the_models_own_are_refused_by_name(pair, command, damage, capsys):
    wild.change_weights(pair / "target", damage)
    assert run(command, pair) == 2
    if command == "annotate":
        # It says what the labels will take, and records its settings, before workers read the weights.
        assert DAMAGES[damage] in capsys.readouterr().err.splitlines()[-1]
        return
    assert DAMAGES[damage] in one_line(capsys) and not written(pair)


def test_weights_that_change_nothing_are_no_reason_to_refuse(pair):
    def change(weights):
        weights["mtp.layers.0.weight"] = torch.ones(2)
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    before = load_model(str(pair / "target"))
    wild.change_weights(pair / "target", change)
    after = load_model(str(pair / "target"))
    assert all(map(torch.equal, before.model.state_dict().values(), after.model.state_dict().values()))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_tied_head_is_not_missing(tmp_path, family):
    directory = save(make_model(family, tied=True), tmp_path / "tied")
    assert load_model(str(directory)).head_weight is not None


def test_large_finite_weights_are_no_infinity(pair):
    def change(weights):
        weights["model.layers.0.mlp.up_proj.weight"].fill_(3e37)

    wild.change_weights(pair / "target", change)
    load_model(str(pair / "target"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("pytorch_model.bin",), "pickles (pytorch_model.bin)"),
        ((), "holds no weights (*.safetensors)"),
        (("training_args.bin", "optimizer.pt"), "holds no weights (*.safetensors)"),
    ],
)
def test_checkpoints_without_safetensors(pair, names, message, capsys):
    (pair / "target" / wild.WEIGHTS).unlink()
    for name in names:
        (pair / "target" / name).write_bytes(b"")
    assert run("generate", pair) == 2 and message in one_line(capsys) and not written(pair)


def test_a_missing_shard_is_named(pair, capsys):
    model = make_model(layers=3)
    (pair / "target" / wild.WEIGHTS).unlink()
    model.model.save_pretrained(pair / "target", max_shard_size="20KB")
    load_model(str(pair / "target"))
    shard = sorted((pair / "target").glob("model-0000*.safetensors"))[-1]
    shard.unlink()
    assert run("generate", pair) == 2 and f"names {shard.name}, which is missing" in one_line(capsys)


def test_a_cut_off_weight_file_is_one_line(pair, capsys):
    file = pair / "target" / wild.WEIGHTS
    file.write_bytes(file.read_bytes()[:2000])
    assert run("generate", pair) == 2 and "can't load the weights of --target" in one_line(capsys)


# ---- adapters


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("command", [*COMMANDS, "check"])
@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_is_named_for_what_it_is(pair, command, role, with_config, capsys):
    if role == "draft" and command in ("init-draft", "generate", "annotate"):
        return
    directory = wild.adapter(pair / "adapter")
    if with_config:
        (directory / "config.json").write_text((pair / role / "config.json").read_text())
    assert run(command, pair, **{role: str(directory)}) == 2
    error = one_line(capsys)
    assert f"--{role} {directory} is a LoRA adapter of org/base-8b" in error and "merge_and_unload" in error
    assert not (pair / "out").exists()


# ---- files and packages that are missing


def test_missing_tokenizer_files_are_named(pair, capsys):
    for file in (pair / "target").glob("tokenizer*"):
        file.unlink()
    assert run("generate", pair) == 2
    error = one_line(capsys)
    assert "has no tokenizer files" in error and "network" not in error


def test_sentencepiece_is_asked_for_where_it_is_missing(pair, capsys, monkeypatch):
    (pair / "target/tokenizer.json").unlink()
    (pair / "target/tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    wild.change_json(pair / "target/tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    assert run("generate", pair) == 2
    error = one_line(capsys)
    assert "pip install sentencepiece" in error and "tiktoken" not in error


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_never_asked_about(pair, file):
    """A terminal would be asked for a yes; here standard input is one that would answer it."""
    code = {"AutoConfig": "mine.MyConfig", "AutoTokenizer": ["mine.MyTokenizer", None]}
    changes = {"model_type": "mine"} if file == "config.json" else {"tokenizer_class": "MyTokenizer"}
    wild.change_json(pair / "target" / file, auto_map=code, **changes)
    (pair / "target/mine.py").write_text("raise SystemExit('this code ran')\n")
    command = [sys.executable, "-m", "specdistill", "generate", "--target", str(pair / "target"), "--output"]
    done = subprocess.run([*command, str(pair / "out")], input="y\ny\ny\n", capture_output=True, text=True, timeout=120)
    assert "this code ran" not in done.stderr + done.stdout and "Do you wish" not in done.stdout + done.stderr
    if done.returncode:
        assert done.returncode == 2 and "never run" in done.stderr and done.stderr.count("\n") == 1
    else:
        # The tokenizer's own file is enough without its code.
        assert file == "tokenizer_config.json"


def test_only_hub_ids_are_told_about_the_network(pair, capsys):
    (pair / "target/tokenizer.json").write_text("{")
    assert run("generate", pair) == 2 and "network" not in one_line(capsys)
    assert run("generate", pair, target="nobody/nothing") == 2 and "network access" in one_line(capsys)


def test_a_broken_config_names_its_file(pair, capsys):
    (pair / "target/config.json").write_text("{")
    assert run("generate", pair) == 2 and "target/config.json" in one_line(capsys)


# ---- written drafts


def test_named_chat_templates_are_copied(pair):
    templates = pair / "target/additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_text("{{ tools }}")
    (pair / "target/chat_template.jinja").write_text("{{ messages }}")
    loaded = load_pair(str(pair / "target"), str(pair / "draft"))
    assert "additional_chat_templates/tool_use.jinja" in tokenizer_files(loaded.target)
    (pair / "saved").mkdir()
    save_draft(loaded.draft, loaded.target, pair / "saved")
    assert (pair / "saved/additional_chat_templates/tool_use.jinja").read_text() == "{{ tools }}"
    saved = load_model(str(pair / "saved"), "draft").tokenizer.chat_template
    assert saved == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}


def test_ids_of_another_model_are_refused_in_text(pair):
    from specdistill.data.prompts import check_ids

    with pytest.raises(DataError, match=r"'w59' \(id 64\)"):
        check_ids([1, 64], make_tokenizer(), 64, "the text")
    check_ids([1, 63], make_tokenizer(), 64, "the text")


def test_optional_kernels_of_bitsandbytes_are_not_asked_for():
    """Its import says so on CPUs with AVX-512; the command that loads it is ours."""
    code = "import specdistill.models.load, logging; log = logging.getLogger('bitsandbytes.backends.cpu.ops')\n"
    code += (
        "import bitsandbytes\nlog.warning('Failed to load CPU gemm_4bit_forward from %s', 'x'); log.warning('other')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gemm_4bit" not in done.stderr and "other" in done.stderr


def test_adapter_settings_that_are_broken_are_one_line(pair, capsys):
    directory = wild.adapter(pair / "adapter")
    (directory / "adapter_config.json").write_text(json.dumps([1]))
    assert run("generate", pair, target=str(directory)) == 2 and "adapter_config.json" in one_line(capsys)
