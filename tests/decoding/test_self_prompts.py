"""Prompts that a target writes itself: what it continues, where it stops, what is kept, reused and refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_model, make_tokenizer, save
from tiny_runs import Said
from transformers import AutoModelForCausalLM

from specdistill.data import load_prompts
from specdistill.data.self_draws import half_of
from specdistill.decoding import Sampling, generate_plain, self_prompts
from specdistill.decoding.self_prompts import Weights, prompts_file, written_before
from specdistill.errors import ConfigError, DataError
from specdistill.files import locks
from specdistill.models import load, load_model
from specdistill.progress import Quiet
from specdistill.settings.chat import ChatSettings
from specdistill.settings.self_prompts import SelfPromptSettings

USER, BOT = 3, 4
HOT = SelfPromptSettings(self_temperature=2.0, self_max_tokens=40)
COLD = SelfPromptSettings(self_temperature=0.001, self_max_tokens=40)
CPU = Weights("cpu", "float32")
CHAT = ChatSettings()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prompts"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A target whose greedy continuation of <user> comes to <bot>, but not at once."""
    for seed in range(100):
        model = make_model(seed=seed)
        written = greedily(model.model, [USER])
        if BOT in written[3:] and BOT not in written[:3] and 1 not in written[: written.index(BOT)]:
            return save(model, tmp_path_factory.mktemp("models") / "target")
    raise AssertionError("no such seed")


def greedily(model, ids):
    """Ids that transformers writes."""
    given = torch.tensor([ids])
    written = model.generate(given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=40)
    return written[0, len(ids) :].tolist()


def likeliest_text(target):
    """Words that the target writes greedily from <user> to <bot>, by transformers."""
    written = greedily(AutoModelForCausalLM.from_pretrained(target), [USER])
    return " ".join(make_tokenizer().convert_ids_to_tokens(written[: written.index(BOT)]))


def ask(target, source="self:20", half="train", settings=HOT, chat=CHAT, weights=CPU, progress=None):
    return prompts_file(source, half, settings, chat, str(target), weights, progress or Quiet())


def rows_of(path):
    return [json.loads(line) for line in open(path)]


def draws_in(directory):
    return [row for path in sorted(directory.glob("draws-*.jsonl")) for row in rows_of(path)]


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def seed_of(seed, number):
    """Seed of one draw."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, "self", number]).encode()).digest()[:6])


def no_weights(*arguments, **settings):
    raise AssertionError("weights were read")


# ---- what is written


def test_the_target_continues_the_text_before_a_users_words_up_to_the_turns_end(target, cache):
    with pytest.raises(DataError, match="hardly any new ones"):
        ask(target, settings=COLD)
    (directory,) = cache.iterdir()
    # At so low a temperature every draw is the likeliest text.
    assert {(row["text"].strip(), row["ended"]) for row in draws_in(directory)} == {(likeliest_text(target), True)}


def test_the_error_counts_what_was_dropped(target):
    with pytest.raises(DataError) as refused:
        ask(target, settings=COLD)
    usable = int(half_of(likeliest_text(target)) == "train")
    assert f"wrote {usable} usable ones of that half in 512 draws" in str(refused.value)
    assert "(dropped: duplicate 511)" in str(refused.value)
    assert "raise --self-temperature" in str(refused.value)


def test_a_draw_has_its_own_seed_and_the_settings_sampling(target, cache):
    settings = SelfPromptSettings(self_temperature=1.5, self_top_p=0.7, self_max_tokens=9, self_seed=5)
    file = ask(target, "self:4", settings=settings)
    assert file.startswith(str(cache))
    (directory,) = cache.iterdir()
    model = load_model(str(target))
    draws = draws_in(directory)
    assert [draw["number"] for draw in draws] == list(range(len(draws)))
    for number in (0, 1, 17, 63):
        (alone,) = generate_plain(
            model,
            [[USER]],
            sampling=Sampling(temperature=1.5, top_p=0.7),
            max_new_tokens=9,
            seeds=[seed_of(5, number)],
            stop_strings=("<bot>",),
        )
        text = model.tokenizer.decode(alone.token_ids).partition("<bot>")[0]
        assert draws[number]["text"].strip() == text.removesuffix("<eos>").strip()
        assert draws[number]["ended"] == (alone.finish_reason != "length")


def test_the_prompts_are_the_usable_draws_in_order(target, cache):
    said = Said()
    prompts = load_prompts(ask(target, progress=said))
    (directory,) = cache.iterdir()
    texts = {row["number"]: row["text"].strip() for row in draws_in(directory) if row["ended"]}
    assert len(prompts) == 20 and len({prompt.messages[0]["content"] for prompt in prompts}) == 20
    numbers = [int(prompt.id.removeprefix("self-")) for prompt in prompts]
    assert numbers == sorted(numbers)
    assert [texts[number] for number in numbers] == [prompt.messages[0]["content"] for prompt in prompts]
    counts = json.loads((directory / "train-20.counts.json").read_text())
    kept, dropped = counts["train"] + counts["heldout"], ("empty", "truncated", "duplicate", "marked")
    assert counts["draws"] == kept + sum(counts[reason] for reason in dropped) == numbers[-1] + 1
    (line,) = said.lines
    assert f"of {counts['draws']} draws {kept} are usable" in line and str(directory / "train-20.jsonl") in line


def test_no_prompt_is_on_both_sides_whatever_the_number_and_the_seed(target):
    other = SelfPromptSettings(self_temperature=2.0, self_max_tokens=40, self_seed=9)
    training = [ask(target), ask(target, "self:40"), ask(target, settings=other)]
    heldout = [ask(target, half="heldout"), ask(target, "self:9:heldout"), ask(target, half="heldout", settings=other)]
    texts = [
        {prompt.messages[0]["content"] for file in files for prompt in load_prompts(file)}
        for files in (training, heldout)
    ]
    assert not texts[0] & texts[1] and len(texts[0]) > 40 and len(texts[1]) > 20


def test_a_system_prompt_is_written_under_and_kept_with_each_prompt(target, tmp_path, monkeypatch):
    (tmp_path / "system.txt").write_text("w1 w2\n")
    asked = []
    original = generate_plain

    def watched(model, prompts, **settings):
        asked.extend(prompts)
        return original(model, prompts, **settings)

    monkeypatch.setattr(self_prompts, "generate_plain", watched)
    settings = SelfPromptSettings(self_system=str(tmp_path / "system.txt"), self_temperature=2.0, self_max_tokens=40)
    for prompt in load_prompts(ask(target, settings=settings)):
        assert prompt.messages[0] == {"role": "system", "content": "w1 w2"} and len(prompt.messages) == 2
    tokenizer = make_tokenizer()
    assert set(map(tuple, asked)) == {tuple(tokenizer("<user> w1 w2 <user>")["input_ids"])}


def test_a_model_without_template_continues_bos_and_its_text_is_cut_at_a_word(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template, tokenizer.bos_token = None, "w3"
    base = save(make_model(tokenizer=tokenizer), tmp_path / "base")
    settings = SelfPromptSettings(self_temperature=0.5, self_max_tokens=6)
    prompts = load_prompts(ask(base, "self:3", settings=settings))
    bos = tokenizer.convert_tokens_to_ids("w3")
    for prompt in prompts:
        number = int(prompt.id.removeprefix("self-"))
        (alone,) = generate_plain(
            load_model(str(base)),
            [[bos]],
            sampling=Sampling(temperature=0.5),
            max_new_tokens=6,
            seeds=[seed_of(0, number)],
        )
        words = tokenizer.convert_ids_to_tokens(alone.token_ids)
        cut = words[:-1] if alone.finish_reason in ("length", "eos") else words
        assert prompt.messages[0]["content"].split() == cut


# ---- kept, and gone on with


def test_after_a_kill_the_rest_is_what_it_would_have_been(target, cache, monkeypatch):
    ask(target, "self:120")
    (directory,) = cache.iterdir()
    whole = content(directory)
    assert len([name for name in whole if name.startswith("draws")]) > 2
    shutil.rmtree(directory)
    original, calls = generate_plain, []

    def killed(*arguments, **settings):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    monkeypatch.setattr(self_prompts, "generate_plain", killed)
    with pytest.raises(KeyboardInterrupt):
        ask(target, "self:120")
    assert sorted(content(directory)) == ["draws-00000.jsonl", "written_by.json"]
    ask(target, "self:120")
    assert content(directory) == whole
    # The shard that was there is not drawn again.
    assert len(calls) == 1 + len([name for name in whole if name.startswith("draws")])


def test_a_larger_number_goes_on_with_the_same_draws(target, cache):
    few = ask(target, "self:20")
    before = content(next(cache.iterdir()))
    many = ask(target, "self:90")
    after = content(next(cache.iterdir()))
    assert before == {name: after[name] for name in before}
    assert rows_of(many)[:20] == rows_of(few)


def test_finished_prompts_need_no_weights_and_no_draws(target, monkeypatch):
    file = ask(target)
    before = rows_of(file)
    monkeypatch.setattr(load, "load_model", no_weights)
    assert ask(target) == file and ask(target, weights=None) == file and rows_of(file) == before
    # Draws that are there already are enough for fewer prompts, and for the other side.
    assert rows_of(ask(target, "self:5")) == before[:5]
    assert len(rows_of(ask(target, "self:2", half="heldout", weights=None))) == 2


def test_the_same_content_under_another_name_is_the_same_target(target, tmp_path, monkeypatch):
    file = ask(target)
    copied = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(target, copied)
    (copied / "README.md").write_text("a card")
    monkeypatch.setattr(load, "load_model", no_weights)
    assert ask(copied) == file


def changed_weights(target):
    weights = load_file(target / "model.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def changed_template(target):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "w5 " + tokenizer.chat_template
    tokenizer.save_pretrained(target)


@pytest.mark.parametrize("change", [changed_weights, changed_template])
def test_another_target_writes_its_own(target, tmp_path, change):
    file = ask(target)
    other = tmp_path / "elsewhere" / target.name
    shutil.copytree(target, other)
    change(other)
    with pytest.raises(ConfigError, match=r"weights of --target .* are not loaded here"):
        ask(other, weights=None)
    assert ask(other) != file


@pytest.mark.parametrize(
    "settings",
    [
        {"self_seed": 1},
        {"self_temperature": 1.9},
        {"self_top_p": 0.9},
        {"self_max_tokens": 39},
    ],
)
def test_prompts_of_other_settings_are_not_taken(target, settings):
    ask(target)
    other = SelfPromptSettings(**({"self_temperature": 2.0, "self_max_tokens": 40} | settings))
    assert written_before("self:20", "train", HOT, ChatSettings(), str(target), None) is not None
    assert written_before("self:20", "train", other, ChatSettings(), str(target), None) is None
    assert written_before("self:20", "heldout", HOT, ChatSettings(), str(target), None) is None
    assert written_before("builtin:train", "train", HOT, ChatSettings(), str(target), None) is None
    with pytest.raises(ConfigError):
        ask(target, settings=other, weights=None)


def test_a_folder_of_another_target_is_refused(target, cache, tmp_path):
    ask(target)
    (directory,) = cache.iterdir()
    other = tmp_path / "other"
    shutil.copytree(target, other)
    changed_weights(other)
    ask(other)
    (own,) = [path for path in cache.iterdir() if path != directory]
    shutil.rmtree(own)
    shutil.copytree(directory, own)
    with pytest.raises(DataError, match="holds prompts of another target"):
        ask(other)


@pytest.mark.parametrize("content", ["{", "{}", "[1]", None])
def test_damaged_counts_name_what_to_remove(target, cache, content):
    prompts = Path(ask(target))
    counts = prompts.with_suffix(".counts.json")
    counts.unlink() if content is None else counts.write_text(content)
    with pytest.raises(DataError, match=f"remove {prompts}, and both are written again"):
        ask(target)
    prompts.unlink()
    assert ask(target) == str(prompts) and counts.is_file()


@pytest.mark.parametrize("row", ['{"number": 0, "text": 5, "ended": true}', '{"number": 0}', "[1]", ""])
def test_a_shard_of_something_else_is_named(target, cache, row):
    prompts = Path(ask(target))
    prompts.unlink()
    (prompts.parent / "draws-00000.jsonl").write_text(f"{row}\n" if row else "")
    with pytest.raises(DataError, match=r"draws-00000.jsonl is damaged; remove it"):
        ask(target)


def test_a_damaged_shard_is_named(target, cache):
    ask(target)
    (directory,) = cache.iterdir()
    (directory / "draws-00000.jsonl").write_text('{"number": 0}\n')
    with pytest.raises(DataError, match=r"draws-00000.jsonl is damaged; remove it"):
        ask(target, "self:21")
    (directory / "draws-00000.jsonl").unlink()
    assert len(rows_of(ask(target, "self:21"))) == 21


def test_a_shard_that_is_gone_is_written_again_and_no_other(target, cache, monkeypatch):
    file = ask(target, "self:90")
    (directory,) = cache.iterdir()
    whole, rows = content(directory), rows_of(file)
    (directory / "draws-00000.jsonl").unlink()
    original, calls = generate_plain, []

    def counted(*arguments, **settings):
        calls.append(1)
        return original(*arguments, **settings)

    monkeypatch.setattr(self_prompts, "generate_plain", counted)
    assert rows_of(ask(target, "self:89")) == rows[:89] and len(calls) == 1
    assert {name: text for name, text in content(directory).items() if name in whole} == whole


def test_a_second_run_waits_for_the_first(target, cache, monkeypatch):
    monkeypatch.setattr(self_prompts, "_PAUSE", 0.01)
    ask(target, "self:1")
    (directory,) = cache.iterdir()
    said, found = Said(), []
    with locks.output_lock(directory, print):
        thread = threading.Thread(target=lambda: found.append(ask(target, progress=said)))
        thread.start()
        while not said.lines:
            thread.join(0.01)
        assert not found
    thread.join()
    assert len(rows_of(found[0])) == 20 and said.lines[0].startswith("waiting for another run")


# ---- refused before any weights are read


def test_other_sources_are_left_alone(monkeypatch):
    monkeypatch.setattr(load, "find", no_weights)
    assert ask("nowhere", "builtin:train") == "builtin:train"


def test_what_does_not_fit_the_context_is_refused(target, monkeypatch):
    monkeypatch.setattr(load, "load_model", no_weights)
    with pytest.raises(ConfigError, match=r"--self-max-tokens 256 does not fit the context of .*257 tokens of 256"):
        ask(target, settings=SelfPromptSettings())


def test_an_empty_system_prompt_is_refused(target, tmp_path):
    (tmp_path / "system.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"--self-system .* is empty"):
        ask(target, settings=SelfPromptSettings(self_system=str(tmp_path / "system.txt")))
    with pytest.raises(DataError, match="can't read"):
        ask(target, settings=SelfPromptSettings(self_system=str(tmp_path / "none.txt")))
