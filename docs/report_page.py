"""Writes the page "The report" from the dataclasses of the bench report.

python docs/report_page.py            writes docs/report.md
python docs/report_page.py --check    fails where docs/report.md is not what it would write
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import sys
import types
import typing
from pathlib import Path

from specdistill.evaluation.report import Report
from specdistill.evaluation.statistics import Estimate

PAGE = Path(__file__).parent / "report.md"
INTRODUCTION = """# The report

`specdistill bench --json FILE` writes this report, and `specdistill.bench` returns it as the dataclass
`specdistill.Report`, with the same names as attributes. Rates are fractions in [0, 1], times are seconds. Keys may be
added; they are never renamed.

- An **estimate** is `{"mean": 0.51, "ci95": [0.48, 0.54]}`: a value with its 95 % interval from a bootstrap over
  prompts (for speed, over batches). In Python it has `mean`, `low` and `high`. Below 6 of them there is no interval:
  `"ci95": [null, null]`.
- *Optional* keys are absent where their value was not measured. In Python they are `None`.
- A number that does not exist is `null`; in Python it is `None` or NaN.
- Draft lengths are keys of JSON objects and so strings, as in `"predicted_speedup": {"1": 1.02, "2": 0.97}`. In Python
  they are numbers.

This page is made from the dataclasses by `python docs/report_page.py`.
"""


def page() -> str:
    """The page as Markdown: a table per dataclass, each below the one that leads to it."""
    paths: dict[type, list[str]] = {}
    _collect(Report, "", paths)
    tables = [INTRODUCTION, _table("Top level", Report)]
    for kind, where in paths.items():
        tables.append(_table(", ".join(f"`{path}`" for path in where), kind))
        tables += [_table(f"`{where[0]}` ({sub.__name__})", sub) for sub in kind.__subclasses__()]
    return "\n".join(tables)


def _collect(kind: type, path: str, paths: dict[type, list[str]]) -> None:
    """Adds the dataclasses below `kind`, with the keys under which each stands in the JSON."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        _, leaf = _named(hints[field.name])
        if leaf is not None:
            where = f"{path}.{field.name}".lstrip(".")
            known = leaf in paths
            paths.setdefault(leaf, []).append(where)
            if not known:
                _collect(leaf, where, paths)


def _table(title: str, kind: type) -> str:
    """The keys of one dataclass; of one that extends another, only what it adds."""
    hints, meanings = typing.get_type_hints(kind), _meanings(kind)
    (base, *others) = kind.__bases__
    shown = {field.name for field in dataclasses.fields(base)} if not others and dataclasses.is_dataclass(base) else ()
    rows = ""
    for field in dataclasses.fields(kind):
        if field.name in shown:
            continue
        text, _ = _named(hints[field.name])
        if field.default is None:
            text = text.replace(" or null", ", optional")
        rows += f"| `{field.name}` | {text} | {meanings[field.name]} |\n"
    return f"## {title}\n\n{inspect.getdoc(kind)}\n\n| key | type | meaning |\n|---|---|---|\n{rows}"


def _meanings(kind: type) -> dict[str, str]:
    """Field -> its docstring, inherited ones too."""
    meanings: dict[str, str] = {}
    for owner in reversed(kind.__mro__[:-1]):
        (definition,) = ast.parse(inspect.getsource(owner)).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant), (
                    statement.target.id
                )
                meanings[statement.target.id] = inspect.cleandoc(str(following.value.value)).replace("\n", " ")
    return meanings


def _plural(text: str) -> str:
    return text.replace("list of", "lists of", 1) if text.startswith("list of") else f"{text}s"


def _named(hint: object) -> tuple[str, type | None]:
    """A type in words, and the dataclass in it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        text, leaf = _named(next(argument for argument in arguments if argument is not type(None)))
        return f"{text} or null", leaf
    if origin is dict:
        text, leaf = _named(arguments[1])
        return f"object of {_plural(text)}", leaf
    if origin is list:
        text, leaf = _named(arguments[0])
        return f"list of {_plural(text)}", leaf
    if origin is tuple:
        return "[low, high]" if len(arguments) == 2 else "[first batch, last batch, draft tokens]", None
    assert isinstance(hint, type)
    if hint is Estimate:
        return "estimate", None
    if dataclasses.is_dataclass(hint):
        return "object", hint
    return {str: "string", int: "integer", float: "number", bool: "boolean"}[hint], None


def main() -> None:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PAGE.write_text(page())
    elif PAGE.read_text() != page():
        sys.exit(f"{PAGE} is not what the dataclasses say; run python docs/report_page.py")


if __name__ == "__main__":
    main()
