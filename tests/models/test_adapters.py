"""PEFT adapters: merged into the base that they name, with their own tokenizer, and known by what their files hold."""

from __future__ import annotations

import importlib.util
import json
import re

import pytest
import torch
import wild_checkpoints as wild
from peft import PromptTuningConfig, get_peft_model
from peft_adapters import make_adapter
from tiny_models import make_model, make_tokenizer, save
from transformers import AutoModelForCausalLM

from specdistill.errors import ModelError
from specdistill.models import load_model
from specdistill.models.load import find

IDS = torch.tensor([[3, 7, 8, 4], [3, 9, 12, 4]])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A base and an adapter that names it by a path from its own directory."""
    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "cache"))
    save(make_model(layers=2), tmp_path / "base")
    make_adapter(tmp_path / "base", tmp_path / "tuned", named="../base")
    return tmp_path


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


KINDS = {
    "matrices": {},
    "whole embedding and head": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "whole embedding": {"modules_to_save": ["embed_tokens"]},
    "low-rank embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "DoRA": {"use_dora": True},
    "added rows": {"rows": 70},
    "added rows, whole": {"rows": 70, "modules_to_save": ["embed_tokens", "lm_head"]},
    "added rows, low-rank head": {"rows": 70, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_says_what_the_unmerged_one_does(folder, kind, tied):
    """Merging an embedding that the head shares would change the head, which the adapter leaves alone."""
    save(make_model(layers=2, tied=tied), folder / "base")
    unmerged = make_adapter(folder / "base", folder / "own", **KINDS[kind])
    loaded = load_model(str(folder / "own"))
    torch.testing.assert_close(logits(loaded.model), logits(unmerged), rtol=1e-4, atol=1e-4)
    assert loaded.config.vocab_size == KINDS[kind].get("rows", 65) and loaded.vocab_size == 65
    base = logits(load_model(str(folder / "base")).model)
    assert not torch.allclose(logits(loaded.model)[..., :65], base, atol=0.1), "the adapter does something"
    assert not hasattr(loaded.model, "peft_config")
    assert all(weight.requires_grad for weight in loaded.model.parameters()), "it may be a draft to train"


def test_an_added_token_can_be_written(folder):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool>"])
    make_adapter(folder / "base", folder / "own", rows=66)
    tokenizer.save_pretrained(folder / "own")
    loaded = load_model(str(folder / "own"))
    assert loaded.vocab_size == 66 and loaded.tokenizer.convert_tokens_to_ids("<tool>") == 65
    assert load_model(str(folder / "base")).vocab_size == 65


# ---- the base


@pytest.mark.parametrize("named", ["../base", "absolute", "from here"])
def test_the_base_is_found_by_the_adapters_own_word(folder, named, monkeypatch):
    monkeypatch.chdir(folder)
    named = {"absolute": str(folder / "base"), "from here": "base"}.get(named, named)
    wild.change_json(folder / "tuned/adapter_config.json", base_model_name_or_path=named)
    source = find(str(folder / "tuned"), "target")
    assert source.adapter is not None and source.adapter.base == str(folder / "base")


def test_a_named_base_wins(folder):
    save(make_model(layers=2, seed=5), folder / "other")
    unmerged = make_adapter(folder / "other", folder / "own", named="../base")
    loaded = load_model(find(str(folder / "own"), "target", base=str(folder / "other")))
    torch.testing.assert_close(logits(loaded.model), logits(unmerged), rtol=1e-4, atol=1e-4)


def hub_cache(folder, name: str, source) -> None:
    """Puts a directory into a local hub cache, as a download would."""
    home = folder / "hub" / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs/main").write_text("0" * 40)
    (home / "snapshots").mkdir()
    (home / "snapshots" / ("0" * 40)).symlink_to(source)


def test_hub_ids_of_adapter_and_base(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    hub_cache(folder, "org/base", folder / "base")
    hub_cache(folder, "org/tuned", folder / "tuned")
    local = logits(load_model(str(folder / "tuned")).model)
    wild.change_json(folder / "tuned/adapter_config.json", base_model_name_or_path="org/base")
    loaded = load_model("org/tuned")
    assert loaded.name == "org/tuned" and loaded.adapter is not None and loaded.adapter.base == "org/base"
    assert torch.equal(logits(loaded.model), local)
    snapshots = folder / "hub/models--org--base/snapshots"
    (snapshots / ("0" * 40)).rename(snapshots / ("1" * 40))
    (snapshots.parent / "refs/main").write_text("1" * 40)
    assert load_model("org/tuned").label != loaded.label, "another commit may hold other weights"
    with pytest.raises(ModelError, match="--target-base x has no effect: --target org/base is no adapter"):
        find("org/base", "target", base="x")


# ---- tokenizer and template


def test_the_adapters_tokenizer_and_template_win(folder):
    other = make_tokenizer(first_word="zebra")
    other.chat_template = "of the adapter"
    other.save_pretrained(folder / "tuned")
    tokenizer = load_model(str(folder / "tuned")).tokenizer
    assert tokenizer.convert_tokens_to_ids("zebra") == 5 and tokenizer.chat_template == "of the adapter"


@pytest.mark.parametrize("inside", [False, True])
def test_a_template_alone_joins_the_other_sides_tokenizer(folder, inside):
    """Older files hold the template inside tokenizer_config.json, where it belongs to the tokenizer's files."""
    if inside:
        (folder / "base/chat_template.jinja").unlink()
        wild.change_json(folder / "base/tokenizer_config.json", chat_template="of the base")
    (folder / "tuned/chat_template.jinja").write_text("of the adapter")
    tokenizer = load_model(str(folder / "tuned")).tokenizer
    assert tokenizer.convert_tokens_to_ids("w0") == 5 and tokenizer.chat_template == "of the adapter"
    (folder / "tuned/chat_template.jinja").unlink()
    other = make_tokenizer(first_word="zebra")
    other.chat_template = None
    other.save_pretrained(folder / "tuned")
    tokenizer = load_model(str(folder / "tuned")).tokenizer
    kept = "of the base" if inside else make_tokenizer().chat_template
    assert tokenizer.convert_tokens_to_ids("zebra") == 5 and tokenizer.chat_template == kept


# ---- content


def test_another_state_under_the_same_name_is_another_model(folder):
    def label() -> str:
        return load_model(str(folder / "tuned")).label

    first = label()
    assert label() == first and str(folder / "tuned") in first and str(folder / "base") in first
    before = logits(load_model(str(folder / "tuned")).model)
    make_adapter(folder / "base", folder / "tuned", named="../base", seed=4)
    second = label()
    assert second != first and not torch.allclose(logits(load_model(str(folder / "tuned")).model), before)
    wild.change_weights(folder / "base", lambda weights: weights["model.norm.weight"].mul_(2))
    assert label() not in (first, second)


# ---- refusals


def say_of(folder, change) -> str:
    change(folder / "tuned")
    with pytest.raises(ModelError) as caught:
        load_model(str(folder / "tuned"))
    assert "\n" not in str(caught.value) and "unexpected" not in str(caught.value)
    return str(caught.value)


def settings(**changes):
    return lambda adapter: wild.change_json(adapter / "adapter_config.json", **changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (settings(peft_type="PROMPT_TUNING"), "puts vectors before each prompt and so can't be merged"),
        (settings(peft_type="XLORA"), "adds layers of its own and so can't be merged"),
        (settings(layer_replication=[[0, 2], [1, 2]]), "repeats layers of its base"),
        (settings(base_model_name_or_path=None), "does not say of which model; name it with --target-base"),
        (settings(base_model_name_or_path="./gone"), r"the base ./gone of --target .*/tuned is no directory here"),
        (settings(base_model_name_or_path="."), "is an adapter itself"),
        (settings(base_model_name_or_path="m.gguf"), "is no directory here; name it with --target-base"),
        (settings(target_modules=["nothing"]), "can't be merged into .*/base: .*is that the model"),
        (settings(r=5), "can't be merged into .*/base: "),
        (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "without its adapter_model.safetensors"),
        (
            lambda adapter: (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin"),
            "as a pickle",
        ),
        (lambda adapter: (adapter.parent / "base" / wild.WEIGHTS).unlink(), "its base .* holds no weights"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(folder, change, words):
    assert re.search(words, say_of(folder, change))


def test_real_prompt_tuning_is_refused(folder):
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(base, config).save_pretrained(str(folder / "tuned"))
    assert "is a PROMPT_TUNING adapter" in say_of(folder, lambda adapter: None)


def test_weights_that_are_missing_or_left_over_are_refused(folder):
    from safetensors.torch import load_file, save_file

    file = folder / "tuned/adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("q_proj.lora_B.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, file)
    assert "lacks" in say_of(folder, lambda adapter: None)
    save_file(weights | {name.replace("layers.0", "layers.7"): weights[name].clone()}, file)
    assert "without a place for it" in say_of(folder, lambda adapter: None)


def test_a_quantised_base_is_refused_and_the_remedy_named(folder):
    wild.change_json(folder / "base/config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert "name the full-precision model with --target-base" in say_of(folder, lambda adapter: None)


def test_peft_is_asked_for(folder, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else found(name, *more))
    assert "pip install 'specdistill[lora]'" in say_of(folder, lambda adapter: None)


def test_a_base_for_a_whole_model_is_refused(folder, capsys):
    assert wild.run("generate", folder, target=str(folder / "base"), more=["--target-base", str(folder / "base")]) == 2
    assert "is no adapter; leave it away" in wild.one_line(capsys)


def test_an_adapter_is_not_quantised_before_it_is_merged(folder):
    with pytest.raises(ModelError, match="--target-memory nf4 quantises weights before"):
        load_model(str(folder / "tuned"), keep="nf4")


def test_the_joined_files_hold_no_weights(folder):
    source = find(str(folder / "tuned"), "target")
    assert source.adapter is not None
    names = sorted(path.name for path in source.adapter.joined.iterdir())
    assert "config.json" in names and not any(name.endswith((".safetensors", ".bin")) for name in names)
    assert json.loads((source.adapter.joined / "config.json").read_text())["vocab_size"] == 65
