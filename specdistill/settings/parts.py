"""Configurations made of parts: nested in Python, flat on the command line and in YAML.

A part is a frozen dataclass beside the code that reads it. A command's configuration holds its essential settings and
its parts as fields. `box` marks a part's field: the part gets a titled box in `--help`, and its settings keep their
flat names. No two settings of a configuration may share a name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from typing import Any, Self

from cyclopts import Group, Parameter

from specdistill.errors import ConfigError
from specdistill.settings import checks

ESSENTIALS = Group.create_ordered("Essentials", sort_key=0)
"""The first box of every command's help."""


MACHINE = Group.create_ordered("Machine", sort_key=2)
"""The last box of every command's help."""


def box(title: str | Group) -> Parameter:
    """Marks a part's field: its settings are flat, in a box of this title, below the boxes of the fields before it."""
    return Parameter(name="*", group=title if isinstance(title, Group) else Group.create_ordered(title, sort_key=1))


class Unasked(int):
    """A default number that the models may raise: the same number from a user is an `int`, and stays."""


class Config:
    """Base of the commands' configurations: a frozen dataclass whose fields are settings and parts."""

    def __post_init__(self) -> None:
        checks.usable(self.to_flat(), defaults(type(self)))
        checks.chosen(self.to_flat(), _choices(type(self)))

    @classmethod
    def flat(cls, **settings: Any) -> Self:
        """Builds the configuration from flat names, as flags and YAML files spell them.

        Args:
            **settings: A value for each setting that is not left at its default.

        Raises:
            ConfigError: No setting has that name, or a value is refused.
            TypeError: A setting without a default is missing.
        """
        unknown = [name for name in settings if name not in _owners(cls)]
        if unknown:
            close = difflib.get_close_matches(unknown[0], _owners(cls), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"{cls.__name__} has no setting {unknown[0]!r}{hint}")
        own = {name: value for name, value in settings.items() if _owners(cls)[name] is None}
        parts: dict[str, dict[str, Any]] = {}
        for name, value in settings.items():
            part = _owners(cls)[name]
            if part is not None:
                parts.setdefault(part, {})[name] = value
        return cls(**own, **{part: _parts(cls)[part](**values) for part, values in parts.items()})

    def to_flat(self) -> dict[str, Any]:
        """Every setting by its flat name, ready for YAML: tuples become lists."""
        return {name: _plain(value) for name, value in self._values().items()}

    def _values(self) -> dict[str, Any]:
        """Every setting by its flat name, as it is."""
        owners = _owners(type(self)).items()
        return {name: getattr(self if part is None else getattr(self, part), name) for name, part in owners}

    def replace(self, **settings: Any) -> Self:
        """A copy with other values for some settings, by their flat names."""
        return type(self).flat(**(self._values() | settings))


def _plain(value: Any) -> Any:
    """A setting as YAML holds it."""
    if isinstance(value, tuple):
        return list(value)
    return int(value) if isinstance(value, Unasked) else value


def pick(part: type, settings: dict[str, Any]) -> Any:
    """Builds one part from flat settings, such as a run's specdistill.yaml; names of other parts are passed over."""
    return part(**{field.name: settings[field.name] for field in dataclasses.fields(part) if field.name in settings})


@functools.cache
def _parts(config: type) -> dict[str, type]:
    """Field name -> class of each part."""
    hints = typing.get_type_hints(config)
    kinds = {field.name: hints[field.name] for field in dataclasses.fields(config)}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}


@functools.cache
def _owners(config: type) -> dict[str, str | None]:
    """Flat name of each setting -> the field of its part; None where the configuration holds it itself."""
    owners: dict[str, str | None] = {}
    for field in dataclasses.fields(config):
        part = _parts(config).get(field.name)
        names = [field.name] if part is None else [inner.name for inner in dataclasses.fields(part)]
        for name in names:
            assert name not in owners, f"{config.__name__} has two settings {name}"
            owners[name] = None if part is None else field.name
    return owners


@functools.cache
def _choices(config: type) -> dict[str, tuple[Any, ...]]:
    """Flat name of each setting with a fixed list of values -> those values."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, part in _owners(config).items():
        values = _literals(typing.get_type_hints(config if part is None else _parts(config)[part])[name])
        if values:
            found[name] = values
    return found


def _literals(hint: Any) -> tuple[Any, ...]:
    """Every value of a type that is made of literals; empty for a type that takes other values too."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    if hint is type(None):
        return (None,)
    parts = [_literals(inner) for inner in typing.get_args(hint) if inner is not Ellipsis]
    return tuple(value for values in parts for value in values) if all(parts) else ()


def defaults(config: type[Config]) -> dict[str, Any]:
    """Default of every setting by its flat name; settings without one are left out."""
    values: dict[str, Any] = {}
    for name, part in _owners(config).items():
        holder: Any = config if part is None else _parts(config)[part]
        (field,) = (field for field in dataclasses.fields(holder) if field.name == name)
        if field.default is not dataclasses.MISSING:
            values[name] = field.default
    return values
