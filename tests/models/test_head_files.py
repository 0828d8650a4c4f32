"""Head files as people have them: damaged, incomplete, of another target or kind. One line, before weights."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from head_drafts import IDS, make_head
from safetensors.torch import load_file, save_file
from tiny_models import make_model, save
from tiny_runs import prompt_rows, write_rows

from specdistill.cli import main
from specdistill.models import load_pair
from specdistill.models.checkpoint import save_draft
from specdistill.models.eagle3 import load_head, save_head

AUX = "eagle_aux_hidden_state_layer_ids"
LAYERS = "must be three whole numbers, got"
TWO_MAPS = "its d2t and its t2d name other ids"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    target = make_model(layers=7)
    save(target, folder / "target")
    save_draft(make_head(target), target, folder / "head")
    write_rows(folder / "prompts.jsonl", prompt_rows(8))
    return folder


def changed_head(folder, place, *, config=None, weights=None, raw=None):
    """A copy of the head with other settings, other tensors or other bytes."""
    shutil.copytree(folder / "head", place)
    if config is not None:
        file = place / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
    file = place / "model.safetensors"
    if weights is not None:
        save_file(weights(load_file(file)), file)
    if raw is not None:
        file.write_bytes(raw(file.read_bytes()))
    return place


def without(name):
    return {"weights": lambda stored: {key: value for key, value in stored.items() if key != name}}


def other(name, change):
    return {"weights": lambda stored: stored | {name: change(stored[name]).contiguous()}}


CASES = {
    "cut short": ({"raw": lambda data: data[:-50]}, "model.safetensors is incomplete"),
    "no safetensors": ({"raw": lambda data: b"hello world, no tensors"}, "model.safetensors: a header of"),
    "empty": ({"raw": lambda data: b""}, "model.safetensors: a header of 0 bytes"),
    "a pointer of Git LFS": (
        {"raw": lambda data: b"version https://git-lfs.github.com/spec/v1\n"},
        "download the file",
    ),
    "no map of ids": (without("d2t"), f"has {len(IDS)} rows of 65 ids and no d2t that names each row's"),
    "a map of other rows": (other("d2t", lambda ids: ids[:-1]), "and no d2t that names each row's"),
    "a map of two dimensions": (other("d2t", lambda ids: ids[:, None]), "and no d2t that names each row's"),
    "ids below zero": (other("d2t", lambda ids: ids - 10), "its d2t names id -10, and its config.json has 65 ids"),
    "ids beyond the vocabulary": (other("d2t", lambda ids: ids + 65), "its d2t names id 129"),
    "an id twice": (other("d2t", lambda ids: 5 - torch.arange(len(ids))), "its d2t names an id for two rows"),
    "ids of other tokens": (other("d2t", lambda ids: ids + (torch.arange(len(ids)) == 13)), TWO_MAPS),
    "a mask of other tokens": (other("t2d", lambda mask: mask.roll(1)), TWO_MAPS),
    "no fc": (without("fc.weight"), "holds no fc.weight, which an EAGLE-3 head has"),
    "no output head": (without("lm_head.weight"), "holds no lm_head.weight"),
    "no attention": (without("midlayer.self_attn.q_proj.weight"), "holds no midlayer.self_attn.q_proj.weight"),
    "one tensor more": ({"weights": lambda stored: stored | {"other": torch.ones(2)}}, "holds other, which the heads"),
    "fc of two layers": (other("fc.weight", lambda weight: weight[:, :64]), "fc.weight is 32 x 64, and by its config"),
    "an output head of numbers": (other("lm_head.weight", torch.flatten), "lm_head.weight is 1920"),
    "weights that are no numbers": (other("fc.weight", lambda weight: weight * torch.nan), "are not finite"),
    "layers in words": ({"config": {AUX: "2,3,4"}}, f"{LAYERS} '2,3,4'"),
    "two layers": ({"config": {AUX: [2, 3]}}, f"{LAYERS} [2, 3]"),
    "half a layer": ({"config": {AUX: [2, 3, 3.5]}}, f"{LAYERS} [2, 3, 3.5]"),
    "a layer below zero": ({"config": {AUX: [-1, 2, 3]}}, "after layers -1, 2, 3, and the target has 7 layers"),
    "a layer too many": ({"config": {AUX: [2, 3, 8]}}, "after layers 2, 3, 8, and the target has 7 layers"),
    "a size in words": ({"config": {"hidden_size": "32"}}, "config.json: Validation error for field 'hidden_size'"),
    "heads that divide nothing": ({"config": {"num_attention_heads": 3}}, "multiple of the number of attention heads"),
    "an unknown rope": (
        {"config": {"rope_parameters": {"rope_type": "nonsense", "rope_theta": 1.0}}},
        "describes no head that can be built",
    ),
    "another variant": ({"config": {"norm_before_residual": True}}, "does not run (norm_before_residual); serve it in"),
}


COMMANDS = [("bench", case) for case in CASES]
COMMANDS += [(name, case) for name in ("train-draft", "export") for case in ("cut short", "no map of ids", "no fc")]


@pytest.mark.parametrize(("command", "case"), COMMANDS)
def test_a_wrong_head_is_one_line(folder, tmp_path, command, case, capsys, monkeypatch):
    edit, message = CASES[case]
    draft = changed_head(folder, tmp_path / "head", **edit)
    if case != "weights that are no numbers":
        monkeypatch.setattr("specdistill.models.load.load_model", None)
    words = [command, "--target", str(folder / "target"), "--draft", str(draft)]
    more = {
        "bench": ["--prompts", str(folder / "prompts.jsonl"), "--max-new-tokens", "4"],
        "train-draft": ["--prompts", str(folder / "prompts.jsonl"), "--output", str(tmp_path / "out"), "--steps", "1"],
        "export": ["--format", "vllm", "--output", str(tmp_path / "out")],
    }
    assert main([*words, *more[command]]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said and "unexpected" not in said
    assert f"--draft {draft}" in said
    assert not list((tmp_path / "out").glob("*"))


def test_rows_in_another_order_are_the_same_head(folder, tmp_path):
    """A map need not ascend, and whoever trims a vocabulary here takes for granted that it does."""

    def turned(stored):
        ids = (stored["d2t"] + torch.arange(len(IDS))).flip(0)
        return stored | {"d2t": ids - torch.arange(len(IDS)), "lm_head.weight": stored["lm_head.weight"].flip(0)}

    place = changed_head(folder, tmp_path / "head", weights=turned)
    whole, again = load_head(folder / "head", 7), load_head(place, 7)
    assert again.draft_ids.tolist() == whole.draft_ids.tolist() == IDS
    assert torch.equal(again.lm_head.weight, whole.lm_head.weight)


def test_a_broken_tokenizer_beside_a_head_is_named(folder, tmp_path, capsys):
    place = changed_head(folder, tmp_path / "head")
    (place / "tokenizer.json").write_text("{")
    assert main(["export", "--target", str(folder / "target"), "--draft", str(place), "--format", "vllm", "--output",
                 str(tmp_path / "out")]) == 2  # fmt: skip
    said = capsys.readouterr().err
    assert f"can't load --draft {place}" in said and "check the JSON and tokenizer files" in said


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "--draft", "HEAD"],
        ["generate", "--output", "out"],
        ["train-draft", "--draft", "TARGET", "--output", "out"],
        ["export", "--draft", "HEAD", "--format", "vllm", "--output", "out"],
        ["init-draft", "--layers", "1", "--output", "out"],
    ],
)
def test_a_head_is_no_target(folder, tmp_path, monkeypatch, words, capsys):
    """It was called a checkpoint without weights, and exported for itself as a target."""
    monkeypatch.chdir(tmp_path)
    places = {"HEAD": str(folder / "head"), "TARGET": str(folder / "target")}
    named = [places.get(word, word) for word in words]
    prompts = [] if words[0] == "export" else ["--prompts", str(folder / "prompts.jsonl")]
    assert main([*named, "--target", str(folder / "head"), *prompts]) == 2
    said = capsys.readouterr().err
    assert "head is a head (eagle3), which writes nothing without its target" in said and "as --draft" in said


def test_a_head_without_files_of_its_own_takes_the_targets_tokenizer(folder, tmp_path):
    place = changed_head(folder, tmp_path / "head")
    for file in place.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    assert load_pair(str(folder / "target"), str(place), device="cpu").draft.kept_ids.tolist() == IDS


def test_a_head_of_all_ids_proposes_no_padding(tmp_path):
    """A checkpoint's vocabulary is often longer than its tokenizer's; such heads were taken for another target's."""
    target = make_model(layers=7, vocab_size=70)
    save(target, tmp_path / "target")
    (tmp_path / "head").mkdir()
    save_head(make_head(make_model(layers=7, vocab_size=70), range(65)).head, tmp_path / "head", 7)
    whole = load_file(tmp_path / "head" / "model.safetensors")
    del whole["d2t"], whole["t2d"]
    own = whole["lm_head.weight"]
    # Ids of padding would win every round.
    whole["lm_head.weight"] = torch.cat([own, own[:5] * 100])
    save_file(whole, tmp_path / "head" / "model.safetensors")
    loaded = load_pair(str(tmp_path / "target"), str(tmp_path / "head"), device="cpu")
    assert loaded.draft.kept_ids.tolist() == list(range(65))
    assert torch.equal(loaded.draft.head_weight, own)
    (tmp_path / "again").mkdir()
    save_draft(loaded.draft, loaded.target, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert torch.equal(again["lm_head.weight"], own) and again["t2d"].tolist() == [True] * 65 + [False] * 5
    assert load_pair(str(tmp_path / "target"), str(tmp_path / "again"), device="cpu").draft.head.draft_vocab_size == 65
