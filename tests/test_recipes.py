"""Every recipe runs, in the order of recipes/README.md, and a study's recipe says what the study ran."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from docs_folder import docs_folder, run_line

from benchmarks.studies.drifted_rows import DRIFTED_ROWS
from benchmarks.studies.drifted_rows import SHARED as DRIFTED_BUDGET
from benchmarks.studies.method_rows import BUDGET, METHOD_ROWS

ROOT = Path(__file__).parents[1]

RECIPES = ROOT / "recipes"
ROWS = re.findall(r"^\| \[(\w+)\]\(\1\.yaml\) \| `([\w-]+)` \|", (RECIPES / "README.md").read_text(), re.MULTILINE)
SMALLER = {
    "init-draft": "--layers 2 --vocab-keep 40",
    "generate": "--max-new-tokens 8",
    "annotate": "--draws 4",
    "train-draft": "--eval-every 2 --batch-size 2 --rollouts-per-prompt 1",
}
NAMES = {"target", "draft", "prompts", "rollouts", "output"}
"""Settings that say where things are."""

in_docs_folder = pytest.fixture(docs_folder)


def read(name: str) -> dict:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())


def test_the_table_lists_every_recipe_with_its_command():
    assert {name for name, _ in ROWS} == {path.stem for path in RECIPES.glob("*.yaml")}
    for name, command in ROWS:
        line = (RECIPES / f"{name}.yaml").read_text().splitlines()[1]
        assert line == f"# specdistill {command} --config recipes/{name}.yaml"


def test_the_recipes_run_in_the_tables_order(in_docs_folder, capsys):
    for name, command in ROWS:
        smaller = SMALLER.get(command, "")
        if name in ("lora_train", "lora_adapt") or command != "train-draft" or "soft_labels" in read(name):
            smaller = smaller.replace(" --rollouts-per-prompt 1", "")
        target = " target.gguf" if name == "gguf_export" else ""
        run_line(f"specdistill {command} --config {RECIPES / name}.yaml {smaller} #{target}", capsys)
        written = read(name).get("output") or read(name).get("json")
        assert written is None or target or (in_docs_folder / written).exists(), name


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("one_job", DRIFTED_BUDGET | DRIFTED_ROWS["long-4"].settings),
        ("distillspec", BUDGET | METHOD_ROWS["distillspec-rkl"].settings),
        ("gkd", BUDGET | METHOD_ROWS["gkd"].settings),
        ("skd", BUDGET | METHOD_ROWS["skd-25"].settings),
    ],
)
def test_a_studys_recipe_says_what_the_study_ran(name, settings):
    recipe = read(name)
    assert {key: value for key, value in recipe.items() if key not in NAMES | {"keep"}} == settings
    assert recipe["keep"] == "last"
