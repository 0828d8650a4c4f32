"""Reads --config FILE: settings in YAML, one flat name each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdistill.errors import ConfigError

if TYPE_CHECKING:
    import yaml

_MAPPINGS = ("chat_template_kwargs",)
"""The settings whose value is a mapping; all others are flat."""
_LISTS = (
    "report_to",
    "lenience_sweep",
    "batch_sizes",
    "concurrency",
    "compare",
    "engine_baselines",
    "compare_kv",
    "cut_layers",
    "feature_layers",
)
"""The settings that take several values."""
_PLAIN = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_EXAMPLE = "write a setting per line, such as 'temperature: 0.7'"


def read_config(path: Path) -> dict[str, Any]:
    """Reads the settings of a YAML file.

    Args:
        path: The file.

    Returns:
        Name -> value, as flags take them.

    Raises:
        ConfigError: The file can't be read, or is no flat mapping of settings.
    """
    import yaml

    where = f"--config {path}"
    try:
        # Some editors put a byte order mark first.
        loader = yaml.SafeLoader(path.read_bytes().decode("utf-8-sig"))
        root = loader.get_single_node()
        content = None if root is None else loader.construct_document(root)
    except OSError as error:
        raise ConfigError(f"can't read {where}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{where} is not valid YAML{_cause(error)}") from error
    if content is None:
        raise ConfigError(f"{where} is empty; {_EXAMPLE}")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else f"the single value {content!r}"
        raise ConfigError(f"{where} holds {kind} in place of settings; {_EXAMPLE}")
    _refuse_repeated(root, where)
    _refuse_other_bases(root, where)
    return {name: _flat_value(name, value, where) for name, value in content.items()}


def _cause(error: Exception) -> str:
    """Line and problem of an error, as they follow "is not valid YAML"."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = "" if mark is None else f", line {mark.line + 1}"
    if problem is not None and problem.startswith("but "):
        problem = f"{getattr(error, 'context', '')}, {problem}"
    return f"{place}: {problem or ' '.join(str(error).split())}"


def _refuse_repeated(root: yaml.Node | None, where: str) -> None:
    """Refuses a setting that is written twice, in either spelling: YAML itself would take the last one."""
    lines: dict[str, int] = {}
    for key, _ in root.value if root is not None else ():
        line, name = key.start_mark.line + 1, str(key.value).replace("-", "_")
        if name in lines:
            raise ConfigError(f"{where}, line {line}: {key.value} is set already in line {lines[name]}; keep one")
        lines[name] = line


def _refuse_other_bases(root: yaml.Node | None, where: str) -> None:
    """Refuses 0x10, 010, 1_0 and 1:30, which YAML reads as 16, 8, 10 and 90."""
    for key, value in root.value if root is not None else ():
        if value.tag == "tag:yaml.org,2002:int" and not _PLAIN.fullmatch(value.value):
            flag = f"--{str(key.value).replace('_', '-')}"
            line = value.start_mark.line + 1
            raise ConfigError(
                f"{flag} must be a whole number in plain digits, got {value.value} ({where}, line {line})"
            )


def _flat_value(name: Any, value: Any, where: str) -> Any:
    """A setting's value as cyclopts takes it."""
    import json

    if not isinstance(name, str):
        raise ConfigError(f"{where}: {name!r} is no name of a setting; {_EXAMPLE}")
    plain = name.replace("-", "_")
    if plain in _MAPPINGS and isinstance(value, dict | list):
        # cyclopts would take a mapping for nested flags.
        try:
            return json.dumps(value, default=str)
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{where}: {name} can't be written as JSON: {error}") from error
    if isinstance(value, dict):
        inner = next(iter(value), "setting")
        raise ConfigError(
            f"{where}: settings are flat, but {name} holds a mapping; write '{inner}: ...' at the top level"
        )
    if isinstance(value, list) and (plain not in _LISTS or any(isinstance(each, dict | list) for each in value)):
        raise ConfigError(f"{where}: {name} takes one value, but holds a list: {value!r}")
    if isinstance(value, bytes | set):
        raise ConfigError(f"{where}: {name} must be text, a number or true or false, got {value!r}")
    return value
