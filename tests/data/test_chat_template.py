"""Prompts as text: template arguments from the settings and from rows, raw prompts, and what is warned about."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from tiny_models import TEMPLATE, make_tokenizer
from tiny_runs import write_rows
from tokenizers.processors import TemplateProcessing

from specdistill.data import Prompt, load_prompts
from specdistill.data.prompt_checks import template_variables, warn_about_prompts
from specdistill.data.prompts import encode
from specdistill.distill.answers.matching import select_rows
from specdistill.errors import ConfigError, DataError
from specdistill.settings.chat import ChatSettings

THINKING = "{% if enable_thinking | default(true) %}w7 {% else %}w9 {% endif %}"
CHAT = ChatSettings(chat_template_kwargs='{"enable_thinking": false}')


@pytest.fixture
def tokenizer():
    made = make_tokenizer()
    made.chat_template = TEMPLATE + THINKING
    return made


def with_specials(single: str):
    """A tokenizer of base models that adds <user> (its BOS) and <bot> (its EOS) where `single` says."""
    made = make_tokenizer()
    made.chat_template = None
    made.bos_token, made.eos_token = "<user>", "<bot>"
    specials = [("<user>", made.bos_token_id), ("<bot>", made.eos_token_id)]
    made._tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=specials)
    return made


def words(ids, tokenizer):
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def user(text: str, **fields) -> Prompt:
    return Prompt("p", ({"role": "user", "content": text},), **fields)


def warnings_of(prompts, tokenizer, stop_ids=frozenset({1})) -> list[str]:
    said: list[str] = []
    encoded = [encode(prompt, tokenizer) for prompt in prompts]
    warn_about_prompts(prompts, encoded, SimpleNamespace(tokenizer=tokenizer, eos_token_ids=stop_ids), said.append)
    return said


# ---- template arguments


def test_the_settings_arguments_reach_the_template(tmp_path, tokenizer):
    write_rows(tmp_path / "p.jsonl", [{"prompt": "w1"}])
    (plain,), (quick,) = (load_prompts(str(tmp_path / "p.jsonl"), chat) for chat in (ChatSettings(), CHAT))
    assert words(encode(plain, tokenizer), tokenizer) == "<user> w1 <bot> w7"
    assert words(encode(quick, tokenizer), tokenizer) == "<user> w1 <bot> w9"


def test_a_rows_own_argument_wins_over_the_setting_and_the_others_stay(tmp_path, tokenizer):
    tokenizer.chat_template += "{{ ending }}"
    chat = ChatSettings(chat_template_kwargs='{"enable_thinking": false, "ending": "w8"}')
    rows = [{"prompt": "w1"}, {"prompt": "w1", "chat_template_kwargs": {"enable_thinking": True}}]
    write_rows(tmp_path / "p.jsonl", rows)
    texts = [words(encode(prompt, tokenizer), tokenizer) for prompt in load_prompts(str(tmp_path / "p.jsonl"), chat)]
    assert texts == ["<user> w1 <bot> w9 w8", "<user> w1 <bot> w7 w8"]


def test_a_data_sets_gaps_do_not_hide_the_setting(tmp_path, tokenizer):
    """`datasets` fills the arguments that a row lacks with None."""
    rows = [{"enable_thinking": True, "ending": None}, {"enable_thinking": None, "ending": "w8"}]
    table = datasets.Dataset.from_list([{"prompt": "w1", "chat_template_kwargs": row} for row in rows])
    table.save_to_disk(str(tmp_path / "set"))
    first, second = load_prompts(str(tmp_path / "set"), CHAT)
    assert first.chat_template_kwargs == {"enable_thinking": True}
    assert second.chat_template_kwargs == {"enable_thinking": False, "ending": "w8"}


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ([1], "must be an object, got list"),
        ("thinking", "must be an object, got str"),
        ({"add_generation_prompt": False}, "'add_generation_prompt' is set by specdistill"),
    ],
)
def test_a_rows_bad_arguments_are_named_by_line(tmp_path, arguments, cause):
    write_rows(tmp_path / "p.jsonl", [{"prompt": "w1"}, {"prompt": "w1", "chat_template_kwargs": arguments}])
    with pytest.raises(DataError, match=r"p\.jsonl, line 2") as caught:
        load_prompts(str(tmp_path / "p.jsonl"))
    assert cause in str(caught.value)


def test_equal_arguments_are_equal_settings_however_they_are_written():
    spelled = ['{"b": [1], "a": "é"}', '{ "a":"\\u00e9","b":[1] }', {"b": [1], "a": "é"}]
    settings = {ChatSettings(chat_template_kwargs=each) for each in spelled}  # pyright: ignore[reportArgumentType]
    assert len(settings) == 1
    assert ChatSettings(chat_template_kwargs="{}") == ChatSettings()
    assert settings.pop().template_arguments == {"a": "é", "b": [1]}


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ("enable_thinking=false", "not valid JSON"),
        ("[1]", "must be a JSON object, got [1]"),
        ("3", "must be a JSON object"),
        ('{"a": NaN}', "that JSON does not have"),
        ('{"a": "\\ud83d"}', "that JSON does not have"),
        ('{"tokenize": true}', "'tokenize' is set by specdistill"),
    ],
)
def test_bad_arguments_are_refused(given, cause):
    with pytest.raises(ConfigError) as caught:
        ChatSettings(chat_template_kwargs=given)
    assert cause in str(caught.value) and "--chat-template-kwargs" in str(caught.value)


# ---- raw prompts


def test_a_raw_prompt_is_not_wrapped_a_second_time(tmp_path, tokenizer):
    write_rows(tmp_path / "p.jsonl", [{"prompt": "<user> w1 <bot> w9"}])
    (wrapped,) = load_prompts(str(tmp_path / "p.jsonl"))
    (raw,) = load_prompts(str(tmp_path / "p.jsonl"), ChatSettings(raw_prompts=True))
    assert words(encode(wrapped, tokenizer), tokenizer) == "<user> <user> w1 <bot> w9 <bot> w7"
    assert words(encode(raw, tokenizer), tokenizer) == "<user> w1 <bot> w9"


@pytest.mark.parametrize("text", ["w1 w2", "<user> w1 w2"])
@pytest.mark.parametrize("raw", [True, False])
def test_bos_is_never_doubled(text, raw):
    """A templated text begins with BOS, which the tokenizer would add again; so does a base model's prompt."""
    tokenizer = with_specials("<user> $A")
    assert words(encode(user(text, raw=raw), tokenizer), tokenizer) == "<user> w1 w2"


def test_raw_prompts_keep_the_tokenizers_own_specials():
    tokenizer = make_tokenizer()
    assert words(encode(user("w1 w2", raw=True), tokenizer), tokenizer) == "w1 w2"
    assert words(encode(user("w1", raw=True), with_specials("<user> $A <bot>")), tokenizer) == "<user> w1 <bot>"


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ({"messages": [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]}, "2 messages"),
        ({"prompt": "w1", "chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs"),
    ],
)
def test_rows_that_need_a_template_are_refused_with_raw_prompts(tmp_path, row, cause):
    write_rows(tmp_path / "p.jsonl", [{"prompt": "w1"}, row])
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: --raw-prompts") as caught:
        load_prompts(str(tmp_path / "p.jsonl"), ChatSettings(raw_prompts=True))
    assert cause in str(caught.value)


def test_raw_prompts_and_template_arguments_exclude_each_other():
    with pytest.raises(ConfigError, match="--raw-prompts uses no chat template"):
        ChatSettings(raw_prompts=True, chat_template_kwargs='{"a": 1}')


# ---- warnings


def test_an_argument_that_the_template_never_reads_is_named(tokenizer):
    prompts = [user("w1", chat_template_kwargs={"enable_thinking": False, "enable_thinkng": True})]
    (line,) = warnings_of(prompts, tokenizer)
    assert "never reads enable_thinkng of" in line and "enable_thinking, messages" in line
    assert not warnings_of([user("w1", chat_template_kwargs={"enable_thinking": False})], tokenizer)


def test_arguments_without_a_template_are_named():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    (line,) = warnings_of([user("w1", chat_template_kwargs={"enable_thinking": False})], tokenizer)
    assert "has no chat template" in line and "enable_thinking" in line


def test_variables_are_found_in_templates_as_models_have_them():
    template = "{%- set a = a | default(true) %}{% for m in messages %}{% generation %}{{ m.b }}{% endgeneration %}"
    template += "{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ strftime_now('%d') }}"
    assert template_variables(template) == {"a", "messages", "strftime_now"}
    assert template_variables("{% unknown_tag %}") is None


def test_a_prompt_that_is_templated_already_is_named(tokenizer):
    prompts = [user("w1"), Prompt("twice", ({"role": "user", "content": " <user> w1 <bot>"},))]
    (line,) = warnings_of(prompts, tokenizer)
    assert "prompt 'twice' begins with '<user>'" in line and "--raw-prompts" in line
    assert not warnings_of([user("<user> w1 <bot>", raw=True)], tokenizer)


def test_a_special_token_behind_another_system_turn_is_recognised(tokenizer):
    """Templates with a default system turn begin otherwise than a served prompt with its own."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im|>"]})
    tokenizer.chat_template = "<|im|>system w1 " + "{% for m in messages %}<|im|>user {{ m.content }}{% endfor %}"
    (line,) = warnings_of([user("<|im|>user w3")], tokenizer)
    assert "begins with '<|im|>'" in line


def test_a_template_of_plain_words_suspects_nobody(tokenizer):
    tokenizer.chat_template = "Question: {% for m in messages %}{{ m.content }}{% endfor %}"
    assert not warnings_of([user("Question: w1")], tokenizer)


@pytest.mark.parametrize("raw", [True, False])
def test_a_prompt_that_the_tokenizer_ends_is_named_once(raw):
    tokenizer = with_specials("$A <bot>")
    prompts = [user("w1", raw=raw), user("w2", raw=raw), user("w3", raw=raw)]
    (line,) = warnings_of(prompts, tokenizer, frozenset({tokenizer.eos_token_id}))
    assert "prompt 'p' (and 2 more) ends in the stop token '<bot>' (id 4)" in line and "add_eos_token" in line


ANSWERED = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]


@pytest.mark.parametrize(
    ("row", "unread", "read"),
    [
        ({"messages": ANSWERED, "answer": "w3"}, "the closing assistant turn", "the field answer"),
        ({"prompt": "w1", "completion": "w2", "answer": "w3"}, "the field completion", "the field answer"),
        ({"messages": ANSWERED, "prompt": "w3"}, "the field prompt", "the field messages"),
        ({"messages": ANSWERED[:1], "completion": "w2"}, "the field completion", "the field messages"),
    ],
)
def test_parts_of_rows_that_are_passed_over_are_named_once(tmp_path, tokenizer, row, unread, read):
    write_rows(tmp_path / "p.jsonl", [row, {"prompt": "w1"}, row])
    prompts = load_prompts(str(tmp_path / "p.jsonl"), ChatSettings())
    (line,) = warnings_of(prompts, tokenizer)
    assert f"prompt '1' (and 1 more) has {unread} and {read} too" in line and f"{unread} is left out" in line


@pytest.mark.parametrize(
    "row",
    [
        {"messages": ANSWERED, "answer": None},
        {"messages": ANSWERED, "answer": "w2"},
        {"messages": ANSWERED, "prompt": "w1", "completion": "w2"},
        {"prompt": "w1", "completion": "w2"},
        {"prompt": "w1", "answer": "w2"},
    ],
)
def test_parts_that_say_the_same_are_not_warned_about(tmp_path, tokenizer, row):
    write_rows(tmp_path / "p.jsonl", [row])
    assert warnings_of(load_prompts(str(tmp_path / "p.jsonl"), ChatSettings()), tokenizer) == []


LLAMA_DATE = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
    "{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}{{ date_string }} "
)


def test_a_template_that_writes_the_date_is_named_with_what_fixes_it(tokenizer):
    tokenizer.chat_template = LLAMA_DATE + TEMPLATE
    (line,) = warnings_of([user("w1")], tokenizer)
    assert "today's date into prompt 'p'" in line
    assert """--chat-template-kwargs '{"date_string": "26 Jul 2024"}'""" in line
    assert not warnings_of([user("w1", chat_template_kwargs={"date_string": "26 Jul 2024"})], tokenizer)
    assert not warnings_of([user("w1", raw=True)], tokenizer)


def test_a_date_without_an_argument_is_fixed_in_the_template_and_one_that_is_not_written_is_none(tokenizer):
    tokenizer.chat_template = "{{ strftime_now('%Y') }} " + TEMPLATE
    (line,) = warnings_of([user("w1")], tokenizer)
    assert "write a fixed date into the template" in line and "date_string" not in line
    tokenizer.chat_template = "{% set today = strftime_now('%Y') %}" + TEMPLATE
    assert not warnings_of([user("w1")], tokenizer)


def test_answers_of_another_day_are_told_why_they_answer_nothing(tokenizer):
    row = {"prompt_id": "p", "prompt_ids": [5], "answer_ids": [6], "provenance": [1]}
    for template, told in ((TEMPLATE, False), (LLAMA_DATE + TEMPLATE, True)):
        tokenizer.chat_template = template
        with pytest.raises(DataError, match="answers none of the training prompts") as caught:
            select_rows([row], Path("x"), [user("w1")], [[4]], 65, tokenizer=tokenizer)  # pyright: ignore[reportArgumentType]
        assert ("another day" in str(caught.value) and "date_string" in str(caught.value)) is told


def test_ordinary_prompts_are_not_warned_about(tokenizer):
    builtin = load_prompts("builtin", ChatSettings())
    assert warnings_of(builtin, tokenizer) == []
