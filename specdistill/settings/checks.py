"""Checks of single settings; each error names the flag."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from specdistill.errors import ConfigError

LARGEST_SEED = 2**32 - 1
"""Largest random seed that every engine takes."""
LARGEST_FLOAT = 1e30
"""Largest number that float32 multiplies without an overflow, with room to spare."""
COLDEST = 0.001
"""Lowest temperature above 0: logits that are divided by less lose their differences in float32."""
LONGEST_DRAFT = 256
"""Most draft tokens between two checks by the target; more are a slip of the pen."""
MAY_BE_EMPTY = ("negative_prompt",)
"""Settings for which empty text is a value."""


def flag(name: str) -> str:
    """A setting's name as its flag."""
    return f"--{name.replace('_', '-')}"


def typed(name: str, value: object) -> list[str]:
    """A setting with its value, in the words that a command line has for it."""
    if isinstance(value, bool):
        return [flag(name)] if value else [f"{flag(name)}=false"]
    if isinstance(value, (list, tuple)):
        return [flag(name), *map(str, value)]
    return [flag(name), str(value)]


def at_least(config: object, least: float, *names: str) -> None:
    """Raises ConfigError for the first named setting that is not at least `least`, spelled as its flag."""
    for name in names:
        if not getattr(config, name) >= least:
            raise ConfigError(f"{flag(name)} must be at least {least}, got {getattr(config, name)}")


def within_one(config: object, *names: str) -> None:
    """Raises ConfigError for the first named setting outside [0, 1]; None passes."""
    for name in names:
        if not 0 <= (getattr(config, name) or 0) <= 1:
            raise ConfigError(f"{flag(name)} must be in [0, 1], got {getattr(config, name)}")


def a_share(config: object, *names: str) -> None:
    """Raises ConfigError for the first named setting outside (0, 1]; None passes."""
    for name in names:
        if getattr(config, name) is not None and not 0 < getattr(config, name) <= 1:
            raise ConfigError(f"{flag(name)} must be in (0, 1], got {getattr(config, name)}")


def check_parallel(config: Any) -> None:
    """Raises ConfigError for tokens or shares of masks that no parallel draft can be trained with."""
    at_least(config, 0, "parallel")
    a_share(config, "parallel_keep")
    within_one(config, "parallel_keep_least")
    if config.parallel == 1:
        raise ConfigError("--parallel 1 is an ordinary draft; name 2 or more tokens, or leave it away")
    if config.parallel > LONGEST_DRAFT:
        raise ConfigError(f"--parallel must be at most {LONGEST_DRAFT}, got {config.parallel}")


def within_answers(parallel: int, longest: int | None, limit: str) -> None:
    """Refuses guesses of a parallel draft further ahead than any answer is long.

    Args:
        parallel: Tokens that it guesses in one pass.
        longest: Most tokens of an answer; None where that is not known.
        limit: The flag that sets it.

    Raises:
        ConfigError: There are such guesses.
    """
    if longest is not None and parallel > longest:
        raise ConfigError(
            f"--parallel {parallel} exceeds {limit} {longest}: guesses from {longest + 1} on would never be trained; "
            f"lower --parallel, or raise {limit}"
        )


def check_seed(seed: int) -> None:
    """Raises ConfigError for a --seed that some generator of random numbers would refuse."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(f"--seed must be in [0, {LARGEST_SEED}], got {seed}")


def check_temperature(config: object, *names: str) -> None:
    """Raises ConfigError for the first named temperature that is neither 0 nor at least `COLDEST`."""
    for name in names:
        if not (getattr(config, name) == 0 or getattr(config, name) >= COLDEST):
            raise ConfigError(f"{flag(name)} must be 0 or at least {COLDEST}, got {getattr(config, name)}")


def usable(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses values that no setting takes: NaN, infinity, numbers beyond 64 bits, empty text, zero bytes.

    Args:
        settings: Every setting by its flat name.
        defaults: Their defaults, which pass.

    Raises:
        ConfigError: Names the first such setting.
    """
    for name, value in settings.items():
        if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:
            raise ConfigError(f"{flag(name)} must be a finite number, at most {LARGEST_FLOAT:g}, got {value}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(f"{flag(name)} must fit 64 bits, got {value}")
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str) or text == defaults.get(name):
                continue
            if not text.strip() and name not in MAY_BE_EMPTY:
                raise ConfigError(f"{flag(name)} is empty; give it a value, or leave it out")
            if "\0" in text:
                raise ConfigError(f"{flag(name)} holds a zero byte, got {text!r}")


def chosen(settings: Mapping[str, Any], choices: Mapping[str, Sequence[Any]]) -> None:
    """Refuses values that are not among a setting's own. The command line does so before; Python code comes here.

    Args:
        settings: Every setting by its flat name.
        choices: The values of each setting that has a fixed list of them.

    Raises:
        ConfigError: Names the first such setting.
    """
    for name, known in choices.items():
        for value in settings[name] if isinstance(settings[name], list) else [settings[name]]:
            if value not in known:
                listed = ", ".join(str(one) for one in known if one is not None)
                raise ConfigError(f"{flag(name)} must be one of {listed}, got {value!r}")


def needs(part: Any, condition: bool, what: str, *names: str) -> None:
    """Refuses settings that have no effect here.

    Args:
        part: A dataclass of settings.
        condition: Whether they have an effect.
        what: What they go with, as it follows "goes with".
        names: Settings of the part; at its default a setting was not asked for.

    Raises:
        ConfigError: One of them was changed, and would be ignored.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(part)}
    for name in names:
        if not condition and getattr(part, name) != defaults[name]:
            given = " ".join(typed(name, getattr(part, name)))
            raise ConfigError(f"{given} has no effect here: it goes with {what}")
