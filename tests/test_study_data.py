"""The mails of the drifted-target study: the same for a seed, right by construction, and not the same for two seeds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks/studies/service_mail.py"


def mail_script():
    spec = importlib.util.spec_from_file_location("service_mail", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_answers_hold_what_the_mail_says():
    mails = mail_script()
    for record in mails.records(200, 7):
        answer, prompt = json.loads(record["answer"]), record["prompt"]
        assert list(answer) == mails.SCHEMA.split(", ")
        for name in ("customer", "email", "order_id", "product"):
            assert str(answer[name]) in prompt, (name, prompt)
        assert (answer["quantity"] > 1) == (f"({answer['quantity']} of them)" in prompt)
        assert answer["urgent"] == (answer["deadline"] is not None)
        if answer["urgent"]:
            _, month, day = answer["deadline"].split("-")
            assert f"{int(day)} {mails.MONTHS[int(month) - 1]}" in prompt
        assert any(text in prompt for text in mails.ISSUES[answer["issue"]])
        assert any(text in prompt for text in mails.ACTIONS[answer["action"]])


def test_a_seed_is_a_set():
    mails = mail_script()
    assert mails.records(50, 1) == mails.records(60, 1)[:50]
    one, other = ({record["prompt"] for record in mails.records(500, seed)} for seed in (1, 3))
    assert len(one) == 500 and not one & other
