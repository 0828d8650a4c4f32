"""The house plan as a test: who may import whom, how long a file may be, what no folder may be called.

The checks themselves are in tests/support/house_rules.py; tests/test_house_rules.py plants the error of each.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import house_rules
import pytest

ROOT = Path(__file__).parents[1]
# DESIGN, "Who may know whom": a place imports those further down. Those in one line don't know each other. Files in the
# root of specdistill/ have a place too: __main__ starts the command line; errors, progress and remarks may be used
# everywhere.
CHAIN = (
    ("__main__",),
    ("cli",),
    ("report", "serving", "distill"),
    ("evaluation",),
    ("decoding",),
    ("models", "data"),
    ("servers", "files"),
    # A request to a server holds a part of the settings: Sampling.
    ("settings",),
    ("progress",),
    ("errors", "remarks"),
)
# The root's __init__ hands out the API: it imports all places but the command line, and they take its version only.
API, API_NAMES = "__init__", {"__version__"}
MAY_IMPORT = {
    place: {other for group in CHAIN[position + 1 :] for other in group}
    for position, places in enumerate(CHAIN)
    for place in places
}
MAY_IMPORT[API] = set(MAY_IMPORT) - {"__main__", "cli"}
KERNEL_USERS = {"distill", "evaluation", "decoding", "models", "data"}
# The rooms of specdistill/distill/, in the same way: the command with its model card and the replay of a failed step,
# then the parts of a run, then the table of methods. init-draft's room is beside those that train.
ROOMS = ("train_draft", "reproduce", "before_loading", "ending", "model_card", "model_card_texts", "config")
ROOMS += ("training", "sequences", "target", "answers", "processes", "presets", "methods")
ROOM_MAY_IMPORT = {room: set(ROOMS[position + 1 :]) for position, room in enumerate(ROOMS)}
ROOM_MAY_IMPORT["cutting"] = {"sequences", "target", "answers", "processes"}
# What `advise` times is a draft that would be made, and a step of its training, on as many sequences as it would have.
ROOM_MAY_IMPORT["advising"] = {"cutting", "training", "sequences", "target", "answers", "processes", "methods"}
SOURCES = sorted([*ROOT.glob("specdistill/**/*.py"), *ROOT.glob("kernels/**/*.py")])
BENCHMARKS = sorted(ROOT.glob("benchmarks/**/*.py"))
TESTS = sorted(ROOT.glob("tests/**/*.py"))
TRAIN_CONFIG_READERS = {
    "specdistill/distill/before_loading.py",
    "specdistill/distill/config.py",
    "specdistill/distill/train_draft.py",
    "specdistill/__init__.py",
}
# Modules whose untyped dictionaries may cross packages, each with its reason.
UNTYPED = {
    "specdistill.settings.parts": "settings as a YAML file holds them",
    "specdistill.files.run_settings": "settings as a YAML file holds them",
    "specdistill.files.parquet": "rows as a parquet file holds them",
    "specdistill.servers.client": "JSON as a server takes and gives it",
    "specdistill.distill.sequences.sources": "random streams as a checkpoint's JSON holds them",
    "specdistill.distill.sequences.skd": "random streams and counts as a checkpoint's JSON holds them",
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def listing(found: dict[str, list]) -> str:
    """One line for each file with something to show."""
    return "".join(f"\n{name}: {', '.join(map(str, items))}" for name, items in sorted(found.items()) if items)


def texts(paths: list[Path]) -> dict[str, str]:
    """Text by file name, relative to the repository."""
    return {relative(path): path.read_text() for path in paths}


def package_texts() -> dict[str, str]:
    """Text by module name, of specdistill and its kernels."""
    roots = {"specdistill": ROOT, "kernels": ROOT / "kernels"}
    named = {house_rules.module_name(path, roots[path.relative_to(ROOT).parts[0]]): path for path in SOURCES}
    return {name: path.read_text() for name, path in named.items()}


def place_of(path: Path) -> str:
    """The package in specdistill/, or the name of a file in its root."""
    inside = path.relative_to(ROOT / "specdistill")
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def wrong_arrows(place: str, text: str) -> list[str]:
    """Imports that the chain forbids to a place."""
    wrong = []
    for module, name in sorted(house_rules.imported_names(text), key=str):
        inner = [*module.split("."), *([name] if name else [])]
        if inner[0] != "specdistill":
            continue
        other = inner[1] if len(inner) > 1 and (inner[1] in MAY_IMPORT or len(inner) > 2) else API
        allowed = name in API_NAMES if other == API else other == place or other in MAY_IMPORT[place]
        if not allowed:
            wrong.append(f"{place} -> {'.'.join(inner)}")
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path):
    text = path.read_text()
    tops = {module.split(".")[0] for module, _ in house_rules.imported_names(text)}
    if path.is_relative_to(ROOT / "kernels"):
        assert not tops & {"specdistill", "transformers"}
        return
    place = place_of(path)
    assert not wrong_arrows(place, text)
    if "specdistill_kernels" in tops:
        assert place in KERNEL_USERS, f"{place} -> specdistill_kernels"
    if tops & {"vllm", "xllamacpp", "sglang"}:
        assert relative(path).startswith("specdistill/serving/engines"), f"{relative(path)} imports an engine"


@pytest.mark.parametrize(
    ("place", "line", "wrong"),
    [
        ("evaluation", "from specdistill.distill.config import TrainConfig", True),
        ("servers", "from specdistill.decoding import Sampling", True),
        ("servers", "from specdistill.files import atomic", True),
        ("errors", "from specdistill.progress import Quiet", True),
        ("progress", "import specdistill.models.load", True),
        ("data", "from specdistill import models", True),
        ("cli", "from specdistill import train_draft", True),
        ("cli", "from specdistill import __version__", False),
        ("cli", "from specdistill import report", False),
        ("__main__", "from specdistill.cli import main", False),
        ("__init__", "from specdistill.cli import main", True),
        ("__init__", "from specdistill.distill.config import TrainConfig", False),
        ("report", "from specdistill.serving.gates import check", True),
    ],
)
def test_a_planted_arrow_is_found(place, line, wrong):
    assert bool(wrong_arrows(place, f"def lazily():\n    {line}\n")) == wrong


def test_every_package_is_in_the_plan():
    packages = {path.name for path in (ROOT / "specdistill").iterdir() if (path / "__init__.py").exists()}
    files = {path.stem for path in (ROOT / "specdistill").glob("*.py")}
    assert packages | files == set(MAY_IMPORT)


def wrong_room_arrows(room: str, text: str) -> list[str]:
    """Imports that the order of the rooms in distill/ forbids to one of them."""
    wrong = []
    for module, name in sorted(house_rules.imported_names(text), key=str):
        parts = [*module.split("."), name]
        if parts[:2] == ["specdistill", "distill"] and parts[2] != room and parts[2] not in ROOM_MAY_IMPORT[room]:
            wrong.append(f"{room} -> {parts[2]}")
    return wrong


def room_of(path: Path) -> str | None:
    inside = path.relative_to(ROOT / "specdistill" / "distill")
    return inside.parts[0] if len(inside.parts) > 1 else None if inside.stem == "__init__" else inside.stem


def test_the_rooms_of_distill_know_those_to_their_right():
    paths = [path for path in (ROOT / "specdistill" / "distill").rglob("*.py") if room_of(path)]
    assert {room_of(path) for path in paths} == set(ROOM_MAY_IMPORT)
    wrong = {relative(path): wrong_room_arrows(str(room_of(path)), path.read_text()) for path in paths}
    assert not listing(wrong), listing(wrong)


def test_a_planted_arrow_between_rooms_is_found():
    assert wrong_room_arrows("answers", "from specdistill.distill.training import loss")
    assert wrong_room_arrows("training", "def f():\n    from specdistill.distill import config")
    assert wrong_room_arrows("sequences", "from specdistill.distill.cutting.config import InitDraftConfig")
    assert not wrong_room_arrows("training", "from specdistill.distill.target.served import TargetServer")
    assert not wrong_room_arrows("target", "from specdistill.distill.target import served")


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count; the API, which imports on first use, does not."""
    graph = house_rules.import_graph(package_texts())
    graph.pop("specdistill")
    assert not house_rules.circles({module: others - {"specdistill"} for module, others in graph.items()})


def test_only_the_command_and_the_api_know_the_whole_training_configuration():
    allowed = ("specdistill/cli/", *TRAIN_CONFIG_READERS)
    readers = {
        name: house_rules.lines_that_use(text, "TrainConfig")
        for name, text in texts(SOURCES).items()
        if not name.startswith(allowed)
    }
    assert not listing(readers), listing(readers)


def test_no_untyped_dictionary_crosses_packages():
    """Packages hand values of a type to each other; a dataclass's own `to_json` is where it becomes a dictionary."""
    sources, scripts = package_texts(), texts(BENCHMARKS)
    packages = {module: ".".join(module.split(".")[:2]) for module in sources} | dict.fromkeys(scripts, "benchmarks")
    crossings = house_rules.untyped_crossings(sources | scripts, packages)
    reasons = tuple(f"{module}." for module in UNTYPED)
    wrong = sorted(name for name in crossings if not name.startswith(reasons) and not name.endswith(".to_json"))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_one_idea_long_and_say_what_it_is(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(ast.parse(text)), "a module docstring says what the file is for"


def test_benchmarks_are_no_longer_than_modules():
    sizes = {name: len(text.splitlines()) for name, text in texts(BENCHMARKS).items()}
    long = {name: [size] for name, size in sizes.items() if size > 300}
    assert not long, listing(long)


def test_functions_fit_on_a_screen():
    named = texts([path for path in SOURCES + BENCHMARKS if not path.is_relative_to(ROOT / "kernels")])
    long: dict[str, list] = {name: house_rules.long_functions(text, 60) for name, text in named.items()}
    assert not listing(long), listing(long)


def test_docstrings_begin_with_their_subject():
    begun = {name: house_rules.fragments(text) for name, text in texts(SOURCES + BENCHMARKS + TESTS).items()}
    assert not listing(begun), listing(begun)


def test_public_functions_are_documented():
    missing = []
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert not missing


def test_nothing_that_can_land_on_the_path_is_called_kernels():
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow the package that transformers imports"
    taken = [path for folder in ("tests", "benchmarks", "specdistill") for path in (ROOT / folder).rglob("kernels*")]
    assert not [path for path in taken if path.stem == "kernels"]
    subprocess.run([sys.executable, "-c", "import transformers.modeling_utils"], cwd=ROOT, check=True)


def test_only_reports_and_the_command_line_print():
    allowed = {"report", "cli"}
    for path in SOURCES:
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        assert not calls or path.relative_to(ROOT).parts[1] in allowed, path
