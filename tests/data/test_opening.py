"""The text that a target continues when it writes a user's words, and the text that ends them."""

from __future__ import annotations

import pytest
from tiny_models import TEMPLATE, make_tokenizer

from specdistill.data.opening import find_opening
from specdistill.errors import ConfigError, DataError, ModelError
from specdistill.settings.chat import ChatSettings

CHAT = ChatSettings()
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = "{% for m in messages %}<s>[INST] {{ m['content'] }} [/INST]{% endfor %}"
VICUNA = "A chat. {% for m in messages %}USER: {{ m['content'] }} {% endfor %}ASSISTANT:"
LATE_TOKEN = "{% for m in messages %}<user> {{ m['content'] }}\nAnswer:<|im_end|>{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE


def tokenizer_with(template):
    made = make_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    return made


@pytest.mark.parametrize(
    ("template", "text", "end"),
    [
        (CHATML, "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n", "<|im_end|>"),
        # The space belongs to the word behind it.
        (LLAMA_2, "<s>[INST]", "[/INST]"),
        (VICUNA, "A chat. USER:", "ASSISTANT:"),
        (LATE_TOKEN, "<user>", "Answer:"),
        (TEMPLATE, "<user>", "<bot>"),
        ("{% for m in messages %}<user> {{ m['content'] }}\n{% endfor %}", "<user>", ""),
    ],
)
def test_the_opening_ends_where_a_users_words_begin(template, text, end):
    found = find_opening(tokenizer_with(template), CHAT, None, None)
    assert (found.text, found.end, found.raw) == (text, end, False)
    assert list(found.ids) == tokenizer_with(template)(text, add_special_tokens=False)["input_ids"]


def test_a_system_prompt_comes_first():
    found = find_opening(tokenizer_with(CHATML), CHAT, "Be brief.", None)
    assert found.text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"


def test_template_arguments_reach_the_opening():
    made = tokenizer_with("{% if enable_thinking %}w1 {% endif %}" + TEMPLATE)
    chat = ChatSettings(chat_template_kwargs='{"enable_thinking": true}')
    assert find_opening(made, chat, None, None).text == "w1 <user>"


@pytest.mark.parametrize("chat", [CHAT, ChatSettings(raw_prompts=True)])
def test_raw_text_begins_at_bos(chat):
    made = tokenizer_with(TEMPLATE if chat.raw_prompts else None)
    found = find_opening(made, chat, None, 7)
    assert found.ids == (7,) and found.raw and found.end == ""


def test_an_opening_without_text_begins_at_bos():
    made = tokenizer_with("{{ messages[0]['content'] }} <bot>")
    found = find_opening(made, CHAT, None, 7)
    assert found.ids == (7,) and not found.raw and found.end == "<bot>"


@pytest.mark.parametrize(
    ("template", "system", "error", "words"),
    [
        (None, None, ModelError, "no chat template, and there is no BOS token"),
        ("{{ messages[0]['content'] }}", None, ModelError, "writes nothing before a user's words"),
        ("<user> {{ messages[0]['content'] * 2 }}", None, ModelError, "2 times in place of once"),
        ("<user> hello", None, ModelError, "0 times in place of once"),
        (NO_SYSTEM, "Be brief.", DataError, "refuses the prompt: no system role"),
        (None, "Be brief.", ConfigError, "--self-system needs a chat template"),
    ],
)
def test_where_there_is_nothing_to_continue_the_reason_is_said(template, system, error, words):
    with pytest.raises(error, match=words):
        find_opening(tokenizer_with(template), CHAT, system, None)
