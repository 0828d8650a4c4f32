"""Scorers: how right an answer is, by the prompt's field answer or by a user's function. Needs no model."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from specdistill.data.prompt import Prompt, lacking_answers
from specdistill.errors import ConfigError, DataError, first_line
from specdistill.settings.checks import LARGEST_FLOAT
from specdistill.settings.scoring import LIKELIHOOD, TEXT_SCORERS, check_name

Scorer = Callable[[Prompt, str], float]
"""(prompt, answer's text) -> a number; more is better."""

# A minus between two numbers is no sign, and "w7" holds no number.
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)")
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def exact_match(prompt: Prompt, text: str) -> float:
    """1 where the answer, or its last line, equals the prompt's given answer up to case and white space; else 0.

    Of a given answer in GSM8K's form only what follows the last "####" counts, and of a last line in the form
    "The answer is 42." what follows "answer is" or "####". "1,200" and "1200" are one answer; "1,2" and "12" are not.
    """
    wanted = _wanted(_given(prompt))
    last = text.strip().rpartition("\n")[2]
    candidates = {_plain(text), _plain(last), _plain(last.rpartition("####")[2])}
    lowered = last.lower()
    if "answer is" in lowered:
        candidates.add(_plain(lowered.rpartition("answer is")[2]))
    return float(wanted in candidates)


def same_number(prompt: Prompt, text: str) -> float:
    """1 where the last number in the answer equals the last one in the prompt's given answer; else 0.

    "1,200" and "1200.0" are one number. Signs count, units and currency marks don't.
    """
    wanted, written = _last_number(_given(prompt)), _last_number(text)
    return float(wanted is not None and wanted == written)


def same_json(prompt: Prompt, text: str) -> float:
    """1 where the answer is the same JSON value as the prompt's given answer; else 0.

    The order of keys and white space don't count. The value is the whole answer, or its only ``` block.
    """
    try:
        return float(_same_value(_json_value(_given(prompt)), _json_value(text)))
    except ValueError:
        return 0.0


SCORERS: Mapping[str, Scorer] = dict(zip(TEXT_SCORERS, (exact_match, same_number, same_json), strict=True))
"""Scorers that compare with the field answer, by their names on the command line."""


def load_function(name: str, flag: str) -> Scorer:
    """Imports `module:function`; modules of the current folder are found too.

    Raises:
        ConfigError: Not of that form, or there is no such function.
    """
    module, _, function = name.partition(":")
    if module.endswith(".py") and function:
        importable = module.removesuffix(".py").removeprefix("./").replace("/", ".")
        raise ConfigError(f"{flag} {name} names a file, not a module; write {importable}:{function}")
    if not module or not function or module.startswith("."):
        raise ConfigError(f"{flag} must be module:function, got {name!r}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        scorer = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ConfigError(f"{flag} {name}: can't import {module} ({error}); is it in the current folder?") from error
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"{flag} {name}: importing {module} fails ({reason}); mend the module") from error
    finally:
        sys.path.remove(here)
    if not callable(scorer):
        raise ConfigError(f"{flag} {name}: {module} has no function {function}")
    _check_signature(scorer, flag, name)

    def checked(prompt: Prompt, text: str) -> float:
        try:
            value = float(scorer(prompt, text))  # pyright: ignore[reportArgumentType]
        except (Exception, SystemExit) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise DataError(f"{flag} {name} fails for prompt {prompt.id!r} ({reason}); mend the function") from error
        if not abs(value) <= LARGEST_FLOAT:
            must = "a finite number" if not math.isfinite(value) else f"a number of at most {LARGEST_FLOAT:g}"
            raise DataError(f"{flag} {name} gave {value} for prompt {prompt.id!r}; it must return {must}")
        return value

    return checked


def _check_signature(function: Callable[..., object], flag: str, name: str) -> None:
    """Refuses a function that can't be called with a prompt and a text before any answer is written."""
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{flag} {name} is async; it must return a number, not a coroutine")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        # Functions written in C may tell nothing of themselves.
        return
    try:
        signature.bind("prompt", "text")
    except TypeError as error:
        raise ConfigError(f"{flag} {name} must take (prompt, text), but takes {signature}") from error


def check_scorer(
    name: str, prompts: Sequence[Prompt], *, likelihood: bool = True, flag: str = "--scorer"
) -> Scorer | None:
    """Finds a scorer before any model is loaded; None for `target-likelihood`, which the target itself is.

    Args:
        name: Value of the flag.
        prompts: Prompts whose answers will be scored.
        likelihood: Whether `target-likelihood` is a choice here.
        flag: The flag, for messages.

    Raises:
        ConfigError: No such scorer.
        DataError: It compares with the field answer, and a prompt has none that it can read.
    """
    check_name(name, flag, likelihood=likelihood)
    if name == LIKELIHOOD:
        return None
    if name in SCORERS:
        if (lacking := lacking_answers(prompts)) is not None:
            raise DataError(f"{lacking}, which {flag} {name} compares with; write it there, or choose another scorer")
        for prompt in prompts:
            _check_answer(name, prompt, flag)
        return SCORERS[name]
    return load_function(name, flag)


def _check_answer(name: str, prompt: Prompt, flag: str) -> None:
    answer, problem = _given(prompt), None
    if prompt.is_empty:
        problem = 'has an empty field "answer"'
    elif name == "exact-match" and not _wanted(answer):
        problem = f'has nothing to compare with in its field "answer" ({answer[:40]!r})'
    elif name == "number" and _last_number(answer) is None:
        problem = f'has no number in its field "answer" ({answer[:40]!r})'
    elif name == "json":
        try:
            _json_value(answer)
        except ValueError:
            problem = f'has no JSON in its field "answer" ({answer[:40]!r})'
    if problem is not None:
        raise DataError(
            f"prompt {prompt.id!r} {problem}, which {flag} {name} compares with; write it there, or choose another "
            "scorer"
        )


def _given(prompt: Prompt) -> str:
    assert prompt.answer is not None, "check_scorer comes first"
    return prompt.answer


def _wanted(answer: str) -> str:
    """The text that exact-match looks for: the given answer, or what follows its last "####"."""
    return _plain(answer.rpartition("####")[2])


def _plain(text: str) -> str:
    words = " ".join(text.lower().split()).rstrip(".,").lstrip("$ :")
    # A comma between thousands is no part of the number; any other separates two things.
    return _THOUSANDS.sub(lambda found: found[0].replace(",", ""), words)


def _last_number(text: str) -> Decimal | None:
    # The minus of typesetting is one too.
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return Decimal(found[-1].replace(",", "")) if found else None


def _json_value(text: str) -> Any:
    """The value that a text writes.

    Raises:
        ValueError: It writes none, or something around it.
    """
    blocks = _FENCED.findall(text)
    try:
        return json.loads(blocks[0] if len(blocks) == 1 else text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _same_value(one: Any, other: Any) -> bool:
    """Equality of JSON values; Python alone takes true for 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_value(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_value, one, other))
    return one == other
