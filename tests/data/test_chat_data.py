"""Chat data as people have it: closing turns, tools, reasoning, other people's field names, and what is kept of it."""

from __future__ import annotations

import json

import datasets
import pyarrow.parquet
import pytest
from tiny_models import make_model, make_tokenizer
from tiny_runs import annotate_config, generate_config, train_config, write_folder, write_rows

from specdistill import annotate, generate, train_draft
from specdistill.data import Prompt, Provenance, load_prompts
from specdistill.data.answer_rows import asked_columns, asked_prompt
from specdistill.data.prompts import encode
from specdistill.data.templates import answer_text
from specdistill.distill.answers.given import given_answers
from specdistill.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}
SYSTEM, AGAIN = {"role": "system", "content": "w3"}, {"role": "user", "content": "w4"}
CALL = {"id": "w9", "type": "function", "function": {"name": "w7", "arguments": {"city": "w8"}}}
TOOL = {"type": "function", "function": {"name": "w7", "parameters": {"type": "object", "properties": {}}}}
RESULT = {"role": "tool", "content": "w10", "tool_call_id": "w9", "name": "w7"}
RICH_TEMPLATE = (
    "{% for tool in tools or [] %}TOOL {{ tool.function.name }} {% endfor %}"
    "{% for m in messages %}<{{ m.role }}> {{ m.name or '' }} "
    "{% if m.reasoning_content %}(w5 {{ m.reasoning_content }}) {% endif %}{{ m.content or '' }} "
    "{% for c in m.tool_calls or [] %}CALL {{ c.function.name }} {{ c.function.arguments.city }} {% endfor %}"
    "{{ m.tool_call_id or '' }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>  {% if enable_thinking is false %}NOTHINK {% endif %}{% endif %}"
)


class Spy:
    """A tokenizer that shows the text of each prompt."""

    def __init__(self, template: str = RICH_TEMPLATE) -> None:
        self._tokenizer = make_tokenizer()
        self._tokenizer.chat_template = template
        self.chat_template, self.name_or_path = template, "tiny"
        self.apply_chat_template = self._tokenizer.apply_chat_template

    def __call__(self, text: str, **settings) -> dict[str, str]:
        return {"input_ids": text}


def load(tmp_path, *rows):
    write_rows(tmp_path / "p.jsonl", rows)
    return load_prompts(str(tmp_path / "p.jsonl"))


def text_of(prompt: Prompt) -> str:
    return str(encode(prompt, Spy()))


# ---- closing turns


def test_the_closing_assistant_turn_is_the_answer_and_no_part_of_the_prompt(tmp_path):
    (prompt,) = load(tmp_path, {"messages": [SYSTEM, USER, ASSISTANT]})
    assert prompt.messages == (SYSTEM, USER) and prompt.answer == "w2"
    assert "w2" not in text_of(prompt)


def test_earlier_assistant_turns_stay_in_the_prompt(tmp_path):
    (prompt,) = load(tmp_path, {"messages": [USER, ASSISTANT, AGAIN, {"role": "assistant", "content": "w5"}]})
    assert prompt.messages == (USER, ASSISTANT, AGAIN) and prompt.answer == "w5"


def test_an_answer_of_its_own_wins_over_the_closing_turn_which_still_leaves_the_prompt(tmp_path):
    (prompt,) = load(tmp_path, {"messages": [USER, ASSISTANT], "answer": "42"})
    assert prompt.messages == (USER,) and prompt.answer == "42"


def test_an_assistant_turn_alone_is_refused_and_a_system_turn_alone_is_a_prompt(tmp_path):
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: holds the assistant's turn alone"):
        load(tmp_path, {"prompt": "w1"}, {"messages": [ASSISTANT]})
    alone, answered = load(tmp_path, {"messages": [SYSTEM]}, {"messages": [SYSTEM, ASSISTANT]})
    assert (alone.messages, alone.answer) == ((SYSTEM,), None) and (answered.messages, answered.answer) == (
        (SYSTEM,),
        "w2",
    )


def test_files_and_data_sets_read_the_same_rows_alike(tmp_path):
    rows = [{"messages": [USER, ASSISTANT, AGAIN, ASSISTANT], "answer": None}, {"messages": [SYSTEM], "answer": "w9"}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "set"))
    assert load_prompts(str(tmp_path / "set")) == load(tmp_path, *rows)


# ---- whole messages and tools


def test_messages_and_tools_reach_the_template_whole(tmp_path):
    for content in (None, ""):
        call = {"role": "assistant", "content": content, "tool_calls": [CALL]}
        turns = [USER, call, RESULT, {"role": "assistant", "content": "w2", "reasoning_content": "w6"}, AGAIN]
        (prompt,) = load(tmp_path, {"messages": turns, "tools": [TOOL]})
        assert list(prompt.messages) == turns and prompt.tools == (TOOL,)
        expected = Spy().apply_chat_template(turns, tools=[TOOL], tokenize=False, add_generation_prompt=True)
        assert text_of(prompt) == expected
        for part in ("TOOL w7", "CALL w7 w8", "w9</tool>", "<tool> w7 w10", "(w5 w6)"):
            assert part in text_of(prompt)


def test_a_call_without_content_needs_no_content_key_and_null_keys_are_absent(tmp_path):
    call = {"role": "assistant", "tool_calls": [CALL]}
    (prompt,) = load(tmp_path, {"messages": [USER | {"tool_calls": None, "name": None}, call, RESULT]})
    assert prompt.messages == (USER, call, RESULT)


def test_tools_and_template_arguments_are_read_from_json_text_too(tmp_path):
    arguments = {"enable_thinking": False}
    as_text = {"tools": json.dumps([TOOL]), "chat_template_kwargs": json.dumps(arguments)}
    given = {"tools": [TOOL], "chat_template_kwargs": arguments}
    one, other = load(tmp_path, {"id": "a", "prompt": "w1", **as_text}, {"id": "b", "prompt": "w1", **given})
    assert one.tools == other.tools == (TOOL,) and one.chat_template_kwargs == other.chat_template_kwargs == arguments
    assert text_of(one) == text_of(other) and text_of(one).endswith("NOTHINK ")


def test_a_list_of_texts_is_their_text_and_images_are_refused_by_line(tmp_path):
    part = {"type": "text", "text": "w1"}
    (prompt,) = load(tmp_path, {"messages": [{"role": "user", "content": [part, part]}, {**ASSISTANT}]})
    assert prompt.messages == ({"role": "user", "content": "w1\nw1"},)
    image = {"type": "image_url", "image_url": {"url": "x"}}
    with pytest.raises(DataError, match=r"line 2: turn 1: content is a list: images are not supported.*image_url"):
        load(tmp_path, {"prompt": "w1"}, {"messages": [{"role": "user", "content": [part, image]}]})


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ('{"city": "w8", "n": [1]}', '{"city": "w8", "n": [1]}'),
        ({"city": "w8"}, '{"city": "w8"}'),
        # No object: as it is.
        ("[1]", '"[1]"'),
        ("w8", '"w8"'),
    ],
)
def test_arguments_as_json_text_reach_the_template_as_an_object(tmp_path, arguments, written):
    """OpenAI's API writes them as text, which `tojson` would quote a second time; servers parse them first."""
    call = {"role": "assistant", "content": None, "tool_calls": [CALL | {"function": {"arguments": arguments}}]}
    asked, answered = load(tmp_path, {"messages": [USER, call, RESULT]}, {"messages": [USER, call]})
    calls = "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}"
    spy = Spy("{% for m in messages %}[" + calls + "]{% endfor %}")
    assert encode(asked, spy) == f"[][{written}][]"
    assert asked.messages == (USER, call, RESULT), "what is kept is the row's own form"
    assert answer_text(answered, spy) == f"[{written}]"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "content must be a string, got dict"),
        ({"messages": [{"role": "user", "content": None}]}, "turn 1 has no content"),
        ({"messages": [{"content": "w1"}]}, "turn 1 has no role"),
        ({"messages": ["w1"]}, "turn 1 is str"),
        ({"prompt": "w1", "tools": "w1"}, '"tools" must be a list of JSON schemas'),
        ({"prompt": "w1", "chat_template_kwargs": 3}, '"chat_template_kwargs" must be an object'),
        ({"prompt": "w1", "chat_template_kwargs": {"tokenize": True}}, "can't set tokenize"),
        ({"prompt": "w1", "chat_template_kwargs": {"self": 1}}, "can't set self"),
        ({"prompt": [USER], "completion": [USER]}, '"completion" must be a string, or turns'),
        ({"conversations": [{"from": "martian", "value": "w1"}]}, "a turn is from 'martian'; known are human, gpt"),
    ],
)
def test_rows_that_cannot_be_used_are_refused_by_line_with_the_reason(tmp_path, row, text):
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: ") as caught:
        load(tmp_path, {"prompt": "fine"}, row)
    assert text in str(caught.value)


def test_tools_without_a_chat_template_are_refused(tmp_path):
    (prompt,) = load(tmp_path, {"prompt": "w1", "tools": [TOOL]})
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"line 1: has tools .* no chat template"):
        encode(prompt, tokenizer)


def test_an_answer_of_tool_calls_and_reasoning_is_written_by_the_template(tmp_path):
    closing = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "w6"}
    (prompt,) = load(tmp_path, {"messages": [USER, closing]})
    assert prompt.messages == (USER,)
    text = answer_text(prompt, Spy())
    assert text.split() == ["(w5", "w6)", "CALL", "w7", "w8"], "without the end of the turn"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = RICH_TEMPLATE
    ((example,), _) = given_answers([prompt], [[5]], tokenizer, 1, 16)
    assert tokenizer.convert_ids_to_tokens(example.answer_ids)[-3:] == ["w7", "w8", "<eos>"]
    plain = Prompt("p", (USER,), answer="w2")
    assert answer_text(plain, Spy()) == "w2"


# ---- other people's field names


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
        {"prompt": [SYSTEM, USER], "completion": "w2"},
        {"prompt": [SYSTEM, USER], "answer": "w2"},
        {"prompt": [SYSTEM, USER, ASSISTANT]},
        {"messages": json.dumps([SYSTEM, USER, ASSISTANT])},
        {"conversations": [SYSTEM, USER, ASSISTANT]},
        # Gemini's role, and capitals: the answer stayed in the prompt.
        {"messages": [SYSTEM, USER, ASSISTANT | {"role": "model"}]},
        {"messages": [SYSTEM | {"role": "System"}, USER | {"role": "USER"}, ASSISTANT | {"role": "Assistant"}]},
        {"conversations": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}], "system": "w3"},
        {
            "conversations": [
                {"from": "system", "value": "w3"},
                {"from": "human", "value": "w1"},
                {"from": "gpt", "value": "w2"},
            ]
        },
    ],
)
def test_trl_and_sharegpt_rows_are_the_same_prompt_as_openai_messages(tmp_path, row):
    (prompt,) = load(tmp_path, row)
    assert prompt.messages == (SYSTEM, USER) and prompt.answer == "w2"


def test_a_completion_of_text_answers_a_prompt_of_text(tmp_path):
    (prompt,) = load(tmp_path, {"prompt": "w1", "completion": "w2"})
    assert prompt.messages == (USER,) and prompt.answer == "w2"


# ---- what is kept


def test_a_set_with_tools_keeps_what_was_asked_as_json_and_a_plain_set_keeps_its_messages():
    plain = Prompt("a", (USER,))
    rich = Prompt("b", (USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT), tools=(TOOL,))
    thinking = Prompt("c", (USER,), chat_template_kwargs={"enable_thinking": False})
    assert asked_columns([plain]) == [{"messages": [USER]}]
    columns = asked_columns([plain, rich, thinking])
    assert all(set(column) == {"asked"} for column in columns), "one schema in all shards"
    for prompt, column in zip((plain, rich, thinking), columns, strict=True):
        row = {"prompt_id": prompt.id, "prompt_ids": [], "answer_ids": [], "provenance": [], **column}
        assert asked_prompt(row) == prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = RICH_TEMPLATE
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    rows = [{"id": f"p{i}", "messages": [USER, ASSISTANT, {"role": "user", "content": f"w{i}"}]} for i in range(12)]
    rows[0] |= {"messages": [USER, call, RESULT, {"role": "assistant", "content": "w2"}], "tools": [TOOL]}
    models = {
        "target": make_model(layers=2, tokenizer=tokenizer),
        "draft": make_model(layers=1, seed=9, tokenizer=tokenizer),
    }
    return write_folder(tmp_path_factory.mktemp("chat"), models, rows)


def test_answers_to_prompts_with_tools_are_labelled_and_trained_on(folder, tmp_path):
    generate(generate_config(folder, tmp_path / "answers", max_new_tokens=4, rollouts_per_prompt=1))
    rows = [
        row for path in (tmp_path / "answers").glob("*.parquet") for row in pyarrow.parquet.read_table(path).to_pylist()
    ]
    kept = {row["prompt_id"]: json.loads(row["asked"]) for row in rows}
    assert len(kept) == 12 and kept["p0"]["tools"] == [TOOL] and kept["p0"]["messages"][2] == RESULT
    summary = annotate(annotate_config(folder, tmp_path / "labels", rollouts=str(tmp_path / "answers")))
    assert summary.answers == 12
    short = {"max_new_tokens": 4, "steps": 2, "eval_every": 2, "heldout_prompts": 4}
    train_draft(train_config(folder, tmp_path / "out", method="seqkd", rollouts=str(tmp_path / "answers"), **short))
    assert (tmp_path / "out" / "summary.json").exists()


def test_rollouts_made_with_other_tools_are_another_template_to_annotate(folder, tmp_path):
    generate(generate_config(folder, tmp_path / "answers", max_new_tokens=4, rollouts_per_prompt=1))
    (path,) = (tmp_path / "answers").glob("*.parquet")
    rows = pyarrow.parquet.read_table(path).to_pylist()
    rows.sort(key=lambda row: row["prompt_id"] != "p0")
    asked = json.loads(rows[0]["asked"]) | {"tools": []}
    rows[0]["asked"] = json.dumps(asked)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match="another tokenizer or chat template"):
        annotate(annotate_config(folder, tmp_path / "labels", rollouts=str(tmp_path / "answers")))


def test_supervised_training_learns_the_closing_turn(folder, tmp_path):
    closing = [{"messages": [USER, {"role": "assistant", "content": f"w{i}"}]} for i in range(3)]
    prompts = load(tmp_path, *closing)
    tokenizer = make_tokenizer()
    examples, _ = given_answers(prompts, [encode(one, tokenizer) for one in prompts], tokenizer, 1, 8)
    words = tokenizer.convert_ids_to_tokens
    for number, example in enumerate(examples):
        assert words(example.prompt_ids) == ["<user>", "w1", "<bot>"]
        assert words(example.answer_ids) == [f"w{number}", "<eos>"]
        assert set(example.provenance) == {int(Provenance.GIVEN)}
