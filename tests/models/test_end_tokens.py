"""The id that ends given answers, and models whose stop ids are missing or impossible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import wild_checkpoints as wild
from tiny_models import make_model, make_tokenizer, save
from tiny_runs import (
    annotate_config,
    before_each_step,
    cut_config,
    generate_config,
    prompt_rows,
    standard_models,
    train,
    train_config,
    write_folder,
    write_rows,
)

from specdistill import BenchConfig, annotate, bench, generate, init_draft, load_model, train_draft
from specdistill.cli import main
from specdistill.data import Example, Prompt
from specdistill.distill.sequences.retokenise import retokenise
from specdistill.errors import ModelError
from specdistill.models import ModelPair
from specdistill.models.answer_end import answer_end, document_end

# <bot> (id 4) closes turns, as <end_of_turn> does in Gemma; the tokenizer's own end is <eos> (id 1).
CLOSES_TURNS = (
    "{% for m in messages %}<user> {{ m['content'] }} {% if m['role'] == 'assistant' %}<bot> \n{% endif %}{% endfor %}"
)
EOS, END_OF_TURN = 1, 4


def closing_tokenizer(template: str = CLOSES_TURNS, special: bool = False):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<bot>"]})
    return tokenizer


def ending_model(template: str = CLOSES_TURNS, stop: object = (EOS, END_OF_TURN), special: bool = False):
    model = make_model(layers=1, tokenizer=closing_tokenizer(template, special))
    model.model.generation_config.eos_token_id = list(stop) if isinstance(stop, tuple) else stop
    return model


@pytest.mark.parametrize(
    ("template", "stop", "special", "end"),
    [
        pytest.param(CLOSES_TURNS, (EOS, END_OF_TURN), False, END_OF_TURN, id="the template's end is a stop id"),
        pytest.param(CLOSES_TURNS, EOS, True, END_OF_TURN, id="the template's end is a special token only"),
        pytest.param(CLOSES_TURNS, EOS, False, EOS, id="plain words after the answer are no end"),
        pytest.param(
            "{% for m in messages %}{{ m['content'] }} w7 w8 <bot> w9 {% endfor %}",
            (EOS, END_OF_TURN),
            False,
            END_OF_TURN,
            id="of several ids only the stop id",
        ),
        pytest.param(
            "{% for m in messages %}{{ m['content'] }} <bot> <eos> {% endfor %}",
            EOS,
            True,
            EOS,
            id="a stop id before a special token",
        ),
        pytest.param(
            "{% for m in messages %}{{ m['content'] }} <bot> <eos> {% endfor %}",
            (EOS, END_OF_TURN),
            False,
            END_OF_TURN,
            id="the first of two stop ids",
        ),
        pytest.param("{{ raise_exception('no') }}", (EOS, END_OF_TURN), False, EOS, id="the template refuses"),
        pytest.param("{% if %}", (EOS, END_OF_TURN), False, EOS, id="the template is broken"),
        pytest.param("", (EOS, END_OF_TURN), False, EOS, id="no template, the configuration agrees"),
        pytest.param("", (END_OF_TURN, 3), False, END_OF_TURN, id="no template, the configuration names others"),
        pytest.param("{{ 'w1' }}", EOS, False, EOS, id="the template hides the answer"),
    ],
)
def test_answers_end_as_the_template_ends_turns_not_with_the_tokenizers_eos(template, stop, special, end):
    model = ending_model(template, stop, special)
    assert answer_end(model) == end
    assert document_end(model) == EOS


def turn_folder(place: Path) -> Path:
    """Target and draft whose template closes turns with <bot>."""
    return write_folder(place, {"target": ending_model(), "draft": ending_model()})


def test_sft_trains_the_end_of_turn_that_the_target_says(tmp_path, monkeypatch):
    folder = turn_folder(tmp_path)
    seen: list[Example] = []
    before_each_step(monkeypatch, lambda step, examples: seen.extend(examples))
    train(folder, tmp_path / "out", method="sft", steps=2, eval_every=2)
    assert {example.answer_ids[-1] for example in seen} == {END_OF_TURN}


def test_annotate_labels_the_end_of_turn_that_the_target_says(tmp_path):
    from specdistill.distill.answers.shards import read_rollouts

    folder = turn_folder(tmp_path)
    prompts = str(folder / "prompts.jsonl")
    annotate(annotate_config(folder, tmp_path / "labels", rollouts=None, prompts=prompts))
    rows = read_rollouts(tmp_path / "labels")
    assert {row["answer_ids"][-1] for row in rows} == {END_OF_TURN}


def test_retokenised_answers_end_as_the_drafts_template_ends_turns():
    """The end of the target's turn, although no stop id here, ends the answer and is no text of it."""
    target, draft = ending_model(stop=EOS, special=True), ending_model()
    prompt = Prompt("p", ({"role": "user", "content": "w1"},))
    answer = (6, 7, END_OF_TURN)
    (example,), _ = retokenise([Example("p", (6,), answer, (1, 1, 1))], [prompt], ModelPair(target, draft))
    assert example.answer_ids == answer


# ---- models without a usable stop id


def spoil(directory: Path, stop: int | None) -> None:
    """Gives a saved model one stop id, or none; the tokenizer names none."""
    for name in ("config.json", "generation_config.json"):
        values = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps(values | {"eos_token_id": stop}))
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "special_tokens_map.json").unlink(missing_ok=True)


@pytest.fixture(scope="module", params=[None, 77], ids=["no stop id", "a stop id beyond the vocabulary"])
def endless(request, tmp_path_factory):
    """A folder whose target can't end an answer, and the message about it."""
    folder = tmp_path_factory.mktemp("endless")
    write_folder(folder, {"target": make_model(layers=3), "draft": make_model(layers=1), "whole": make_model(layers=2)})
    spoil(folder / "target", request.param)
    # Nothing may be read from the weights: they are not even there.
    (folder / "target" / "model.safetensors").unlink()
    text = "has no stop id" if request.param is None else "names the stop id 77, which is beyond the vocabulary of 65"
    return folder, text


def run_train(folder: Path, output: Path) -> None:
    train_draft(train_config(folder, output))


COMMANDS = {
    "train-draft": run_train,
    "init-draft": lambda folder, output: init_draft(cut_config(folder, output)),
    "generate": lambda folder, output: generate(generate_config(folder, output)),
    "annotate": lambda folder, output: annotate(
        annotate_config(folder, output, rollouts=None, prompts=str(folder / "prompts.jsonl"))
    ),
    "bench": lambda folder, output: bench(
        BenchConfig.flat(
            target=str(folder / "target"), draft=str(folder / "draft"), prompts=str(folder / "prompts.jsonl")
        )
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_target_that_cannot_end_is_refused_before_any_work(endless, tmp_path, command):
    folder, text = endless
    with pytest.raises(ModelError, match=text) as caught:
        COMMANDS[command](folder, tmp_path / "out")
    assert "eos_token_id" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.*")), "nothing was written"


@pytest.mark.parametrize("command", ["export", "bench --engine transformers"])
def test_a_target_that_cannot_end_is_one_line_and_exit_2(endless, tmp_path, capsys, command):
    folder, text = endless
    name, *words = command.split()
    words += ["--target", str(folder / "target"), "--draft", str(folder / "draft")]
    if name == "export":
        words += ["--format", "vllm", "--output", str(tmp_path / "out")]
    else:
        words += ["--prompts", str(folder / "prompts.jsonl"), "--num-draft-tokens", "2"]
    assert main([name, *words]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert text in line and "--target" in line and "unexpected" not in line.lower()
    assert not list(tmp_path.rglob("*.*")), "nothing was written"


@pytest.mark.parametrize("stop", [None, 77])
def test_a_draft_of_another_tokenizer_that_cannot_end_is_refused(tmp_path, stop):
    folder = write_folder(tmp_path, {"target": make_model(layers=2), "draft": standard_models()["foreign"]})
    spoil(folder / "draft", stop)
    with pytest.raises(ModelError, match=r"--draft .*stop id"):
        train(folder, tmp_path / "out", method="seqkd")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stop_id_without_weights_alone_is_refused_before_any_work(tmp_path, command):
    """The tokenizer has it, the head has not: an IndexError of --vocab-keep after the whole layer search."""
    folder = beyond_head(tmp_path)
    (folder / "target" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="the stop id 65 has no weights, since the head ends at id 64"):
        COMMANDS[command](folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_stop_id_without_weights_beside_a_usable_one_is_left_out(tmp_path):
    folder = beyond_head(tmp_path, EOS)
    target = load_model(str(folder / "target"))
    assert target.eos_token_ids == {EOS} and answer_end(target) == document_end(target) == EOS
    summary = init_draft(cut_config(folder, tmp_path / "cut", vocab_keep=32))
    assert summary.head_size == 32


def beyond_head(folder: Path, *usable: int) -> Path:
    """A target whose end was added to the tokenizer, and got no row."""
    write_folder(folder, {"target": make_model(layers=3), "draft": make_model(layers=1)})
    end = wild.add_token(folder / "target", "<end>")
    assert end == 65
    for name in ("config.json", "generation_config.json"):
        wild.change_json(folder / "target" / name, eos_token_id=[end, *usable])
    wild.change_json(folder / "target" / "tokenizer_config.json", eos_token="<end>")
    template = folder / "target" / "chat_template.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
    )
    return folder


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "can't read .*generation_config.json"),
        ("[]", "can't read .*generation_config.json"),
        ('{"eos_token_id": "<eos>"}', "generation_config.json names the stop id '<eos>', which is no number"),
    ],
)
def test_a_broken_generation_config_is_named_and_not_passed_over(tmp_path, content, text):
    """Its stop ids were lost without a word, or ended in a TypeError."""
    folder = write_folder(tmp_path, {"target": make_model(layers=1)})
    (folder / "target" / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=text):
        generate(generate_config(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_drafts_own_answers_end_where_the_targets_do(tmp_path, monkeypatch):
    """Its files name another stop id, or none: its answers ran on past the target's end, up to the limit."""
    target = make_model(layers=1)
    stops = tuple(range(1, 40))
    target.model.generation_config.eos_token_id = list(stops)
    folder = write_folder(tmp_path, {"target": target, "draft": make_model(layers=1, seed=9)})
    spoil(folder / "draft", None)
    seen: list[Example] = []
    before_each_step(monkeypatch, lambda step, examples: seen.extend(examples))
    train(folder, tmp_path / "out", method="gkd", lmbda=1.0, steps=2, eval_every=2)
    assert any(example.answer_ids[-1] in stops for example in seen)
    assert not any(set(example.answer_ids[:-1]) & set(stops) for example in seen)


def test_a_draft_without_stop_ids_can_be_benched(tmp_path):
    """The target ends answers there, so nothing is asked of the draft."""
    folder = write_folder(tmp_path, {"target": make_model(layers=2), "draft": make_model(layers=1)}, prompt_rows(4))
    spoil(folder / "draft", None)
    loaded = load_model(str(folder / "draft"), "draft")
    assert not loaded.eos_token_ids
    config = BenchConfig.flat(
        target=str(folder / "target"),
        draft=str(folder / "draft"),
        prompts=str(folder / "prompts.jsonl"),
        max_new_tokens=6,
        num_draft_tokens=2,
        max_draft_tokens=2,
    )
    assert bench(config).acceptance is not None


def test_a_stop_id_of_the_tokenizer_alone_is_enough(tmp_path):
    folder = write_folder(tmp_path, {"target": make_model(layers=1)})
    for name in ("config.json", "generation_config.json"):
        path = folder / "target" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": None}))
    write_rows(folder / "prompts.jsonl", prompt_rows(4))
    assert load_model(str(folder / "target")).eos_token_ids == {EOS}
    assert save(load_model(str(folder / "target")), tmp_path / "again").is_dir()
