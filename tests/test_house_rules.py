"""The checks of the house plan find a planted error, and nothing else."""

from __future__ import annotations

import house_rules
import pytest


def test_imports_are_found_wherever_they_stand():
    text = "import a.b\nif TYPE_CHECKING:\n    from c import d\ndef f():\n    from c.d import e as g\n"
    assert house_rules.imported_names(text) == {("a.b", None), ("c", "d"), ("c.d", "e")}
    assert house_rules.imported_modules(text, ["c", "c.d", "x"]) == {"c.d"}
    with pytest.raises(AssertionError, match="relative import"):
        house_rules.imported_names("from . import a")


def test_circles_are_found_through_lazy_imports_and_over_several_modules():
    sources = {
        "p.a": "from p import b",
        "p.b": "def f():\n    import p.c",
        "p.c": "from p.a import x",
        "p.d": "import p.a\nimport p.d",
    }
    assert house_rules.circles(house_rules.import_graph(sources)) == [["p.a", "p.b", "p.c"]]
    assert not house_rules.circles(house_rules.import_graph(sources | {"p.c": "import os"}))


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("import os\nfrom specdistill.distill.config import TrainConfig as C", [2]),
        ("from specdistill.distill import config\n\nconfig.TrainConfig()", [3]),
        ("def f(config: TrainConfig): ...", []),
        ("from specdistill.distill.config import METHODS", []),
    ],
)
def test_readers_of_a_name_are_found(text, lines):
    assert house_rules.lines_that_use(text, "TrainConfig") == lines


def test_long_functions_are_counted_with_their_decorators():
    text = "@d\ndef f():\n    a = 1\n    return a\n\nclass C:\n    async def g(self):\n        pass\n"
    assert house_rules.long_functions(text, 3) == [("f", 4)]
    assert house_rules.long_functions(text, 1) == [("f", 4), ("g", 2)]


def test_fragments_are_found_in_every_kind_of_docstring():
    text = '''"""What this is."""
class C:
    """Of a class."""
    a: int = 0
    """Of an attribute."""
    b = 1
    """Share of b."""
    def f(self):
        """
        What f does.
        """
        x = 1
        "Of no docstring"
LIMIT = 3
"""What a constant is."""
"Of nothing: two strings in a row"
'''
    assert [line for line, _ in house_rules.fragments(text)] == [1, 3, 5, 9, 15]
    assert house_rules.fragments('"""Whatever."""\ndef f():\n    """Often called."""') == []


@pytest.mark.parametrize(
    ("annotation", "untyped"),
    [
        ("dict[str, Any]", True),
        ("dict[str, object]", True),
        ("typing.Dict[str, typing.Any]", True),
        ("Mapping[str, Any]", True),
        ("dict", True),
        ("list[dict[str, Any]] | None", True),
        ("Callable[[dict[str, Any]], None]", True),
        ("dict[str, dict[str, Any]]", True),
        ("'dict[str, Any]'", True),
        ("Json", True),
        ("dict[str, float]", False),
        ("dict[str, Estimate | None]", False),
        ("Any", False),
        ("list[object]", False),
    ],
)
def test_untyped_dictionaries_are_found_in_any_spelling(annotation, untyped):
    aliases = house_rules.untyped_aliases("Json = dict[str, Any]\nNames = dict[str, str]\nTABLE = {'a': 1}\n")
    assert aliases == {"Json"}
    for text in (
        f"def f(a: {annotation}): ...",
        f"def f(*, a: int = 0) -> {annotation}: ...",
        f"def f(*a: {annotation}): ...",
    ):
        assert bool(house_rules.untyped_signatures(text, aliases)) == untyped


def test_untyped_dictionaries_are_found_where_they_cross_packages():
    home = """
def given(a: dict): ...
def inside(a: dict): ...
class Kind:
    def to(self) -> dict[str, Any]: ...
    def _private(self) -> dict: ...
"""
    sources = {
        "p.one": "from p.one.home import given as handed",
        "p.one.home": home,
        "p.one.beside": "from p.one.home import inside",
        "p.two": "from p.one import given\nfrom p.one.home import Kind",
        "p.three": "from p.one import home\n\nhome.given({})",
    }
    packages = {module: ".".join(module.split(".")[:2]) for module in sources}
    assert house_rules.untyped_crossings(sources, packages) == {"p.one.home.given", "p.one.home.Kind.to"}
    alone = sources | {"p.two": "", "p.three": "from p.one import home\n\nhome.other"}
    assert house_rules.untyped_crossings(alone, packages) == set()
