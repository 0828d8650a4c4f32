"""Prompts from every source, splits, chat templates and batches."""

from __future__ import annotations

import json

import datasets
import pytest
import torch
from tiny_models import make_tokenizer
from tiny_runs import example

from specdistill.data import Example, Prompt, Provenance, collate, load_prompts, split_prompts
from specdistill.data.prompts import check_source, encode, encode_all
from specdistill.errors import DataError


def jsonl(path, *records):
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records))
    return str(path)


def test_builtin_set_is_large_varied_unique_and_split_in_halves():
    every, train, heldout = (load_prompts(name) for name in ("builtin", "builtin:train", "builtin:heldout"))
    assert len(every) >= 160 and len(train) == len(heldout) == len(every) // 2
    assert {prompt.category for prompt in train} == {prompt.category for prompt in heldout}
    assert {"writing", "reasoning", "maths", "coding", "extraction", "summarisation"} == {
        prompt.category for prompt in every
    }
    texts = [prompt.messages[0]["content"] for prompt in every]
    assert len(set(texts)) == len(texts)
    assert not {prompt.id for prompt in train} & {prompt.id for prompt in heldout}


def test_humaneval():
    prompts = load_prompts("humaneval")
    assert len(prompts) == 164 and prompts[0].id == "HumanEval/0" and "def " in prompts[0].messages[0]["content"]
    assert prompts[0].answer is not None


def test_jsonl_takes_prompt_or_messages_and_keeps_what_is_given(tmp_path):
    path = jsonl(
        tmp_path / "p.jsonl",
        {"prompt": "hi", "category": "greeting", "answer": "hello"},
        "",
        {"id": "x", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
    )
    first, second = load_prompts(path)
    assert first == Prompt("1", ({"role": "user", "content": "hi"},), "greeting", "hello")
    assert second.id == "x" and [turn["role"] for turn in second.messages] == ["system", "user"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"prompt": "x"', r"line 3: not valid JSON"),
        ("[1]", r"line 3: expected a JSON object, got list"),
        ({"prompt": "  "}, r'line 3: needs a non-empty "prompt"'),
        ({"text": "x"}, r'line 3: needs a non-empty "prompt"'),
        ({"messages": []}, r'line 3: "messages" must be a list'),
        ({"messages": [{"role": "user"}]}, r'line 3: "messages" must be a list'),
        ({"prompt": "x", "answer": 4}, r'line 3: "answer" must be a string'),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path, line, text):
    path = jsonl(tmp_path / "p.jsonl", {"prompt": "fine"}, "", line)
    with pytest.raises(DataError, match=text):
        load_prompts(path)


def test_other_bad_files(tmp_path):
    for content in ("", "\n  \n"):
        (tmp_path / "empty.txt").write_text(content)
        with pytest.raises(DataError, match="holds no prompts"):
            load_prompts(str(tmp_path / "empty.txt"))
    with pytest.raises(DataError, match="holds no prompts"):
        load_prompts(jsonl(tmp_path / "e.jsonl"))
    with pytest.raises(DataError, match="does not exist"):
        check_source(str(tmp_path / "missing.jsonl"))
    (tmp_path / "p.docx").write_text("a")
    with pytest.raises(DataError, match=r"\.jsonl, .*\.txt file"):
        check_source(str(tmp_path / "p.docx"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not UTF-8"):
        load_prompts(str(tmp_path / "latin.txt"))
    with pytest.raises(DataError, match="'a' occurs more than once"):
        load_prompts(jsonl(tmp_path / "d.jsonl", {"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}))


def test_text_file_is_one_prompt_a_line(tmp_path):
    (tmp_path / "p.txt").write_text("one\n\n  two  \n")
    assert [prompt.messages[0]["content"] for prompt in load_prompts(str(tmp_path / "p.txt"))] == ["one", "two"]


def test_saved_data_sets_and_unknown_names(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "chat"))
    (prompt,) = load_prompts(str(tmp_path / "chat"))
    assert prompt.messages == ({"role": "user", "content": "q"},) and prompt.answer == "a"
    datasets.Dataset.from_list([{"text": "x"}]).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(DataError, match="it needs 'prompt' or 'messages'"):
        load_prompts(str(tmp_path / "other"))
    with pytest.raises(DataError, match="can't load prompts"):
        load_prompts("no-such-org/no-such-set")


def test_split_is_by_prompt_stable_and_never_shares_a_text():
    prompts = [Prompt(str(index), ({"role": "user", "content": f"text {index % 30}"},)) for index in range(40)]
    inside, outside = split_prompts(prompts, 8)
    texts = [{prompt.messages[0]["content"] for prompt in half} for half in (inside, outside)]
    assert not texts[0] & texts[1] and len(inside) + len(outside) == 40 and len(outside) >= 8
    again = split_prompts(list(reversed(prompts)), 8)
    assert {prompt.id for prompt in again[1]} == {prompt.id for prompt in outside}
    assert len(split_prompts(prompts[:2], 100)[1]) == 1
    with pytest.raises(DataError, match="at least 2 prompts"):
        split_prompts(prompts[:1], 1)
    with pytest.raises(DataError, match="same text"):
        split_prompts([prompts[0], prompts[30]], 1)


def test_encoding_follows_the_chat_template_and_never_cuts():
    tokenizer = make_tokenizer()
    prompt = Prompt("p", ({"role": "user", "content": "w1 w2"},))
    assert tokenizer.convert_ids_to_tokens(encode(prompt, tokenizer)) == ["<user>", "w1", "w2", "<bot>"]
    tokenizer.chat_template = None
    assert tokenizer.convert_ids_to_tokens(encode(prompt, tokenizer)) == ["w1", "w2"]
    with pytest.raises(DataError, match="prompt 'p' has 2 tokens, but only 1"):
        encode_all([prompt], tokenizer, 1)


def test_batch_masks_prompt_and_padding_and_trains_on_the_first_answer_token_and_on_eos():
    batch = collate([example([5, 6], [7, 8, 1]), example([9], [1], Provenance.DRAFT)])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 1], [9, 1, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch.response_mask.tolist() == [[False, False, True, True, True], [False, True, False, False, False]]
    # The hidden state of the last prompt token predicts the first answer token.
    assert batch.predicting.tolist() == [[False, True, True, True, False], [True, False, False, False, False]]
    assert batch.labels.tolist() == [7, 8, 1, 1] and batch.num_response_tokens == 4
    read, target, draft = Provenance.PROMPT, Provenance.TARGET, Provenance.DRAFT
    assert batch.provenance.tolist() == [[read, read, target, target, target], [read, draft, read, read, read]]


def test_a_one_token_answer_has_exactly_one_predicting_position():
    batch = collate([example([5, 6, 7], [1])])
    assert batch.predicting.nonzero().tolist() == [[0, 2]]
    assert torch.equal(batch.predicting.sum(), batch.response_mask.sum())


def test_provenance_must_cover_the_answer():
    with pytest.raises(ValueError, match="2 answer tokens but 1 provenance"):
        Example("p", (5,), (6, 7), (Provenance.GIVEN,))
