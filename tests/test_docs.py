"""The documentation builds without a warning, and what it tells people to type works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from docs_folder import docs_folder, run_lines
from pages import broken_links

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
STORIES = sorted((ROOT / "docs/stories").glob("*.md"))

in_docs_folder = pytest.fixture(docs_folder)


def shell_lines(page: Path) -> list[str]:
    text = "\n".join(re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_site_builds_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path / "html")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "commands.html").read_text()
    assert "--num-draft-tokens" in page and "--target-params" in page
    assert "RejectionLog" in (tmp_path / "html" / "api.html").read_text()


def test_the_pages_commands_run_in_reading_order(in_docs_folder, capsys):
    """start.md makes the draft that the other pages go on with, as a reader would."""
    pages = [ROOT / "docs/start.md", *(page for page in PAGES if page.stem != "start")]
    assert run_lines([line for page in pages for line in shell_lines(page)], capsys) > 20
    # The Python of the first page, on what its commands left.
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs/start.md").read_text(), re.DOTALL):
        code = code.replace("TrainConfig.flat(", "TrainConfig.flat(max_new_tokens=8, heldout_prompts=2, steps=2, ")
        exec(compile(code.replace("BenchConfig.flat(", "BenchConfig.flat(max_new_tokens=8, "), "start.md", "exec"), {})
    reasons = [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert len(reasons) == 2 and set(reasons) <= {"length", "eos", "stop"}


@pytest.mark.parametrize("story", STORIES, ids=lambda page: page.stem)
def test_a_storys_commands_run(in_docs_folder, capsys, story):
    """Behind the first page's, which make `cut`."""
    (first,) = [line for line in shell_lines(ROOT / "docs/start.md") if line.endswith("--output cut")]
    assert run_lines([first, *shell_lines(story)], capsys) >= 5


def test_the_readmes_commands_run(in_docs_folder, capsys):
    assert run_lines(shell_lines(ROOT / "README.md"), capsys) == 5


def test_the_benchmarks_that_pages_name_take_what_the_pages_give_them():
    """They take minutes to hours, so no test runs them; `make bench-quick` runs those of the decoder and the loss."""
    named = 0
    for page in (ROOT / "README.md", ROOT / "kernels/README.md", *PAGES, *STORIES):
        for script, rest in re.findall(r"python (benchmarks/[\w/]+\.py)([^`#&\n]*)", page.read_text()):
            source = (ROOT / script).read_text()
            for option in re.findall(r"--[\w-]+", rest):
                assert f'"{option}"' in source, f"{page.name}: {script} {option}"
            named += 1
    assert named > 15


def test_links_lead_somewhere():
    listed = (ROOT / "docs/index.md").read_text()
    for page in (*PAGES, *STORIES, ROOT / "CONTRIBUTING.md", ROOT / "kernels/README.md", ROOT / "benchmarks/README.md"):
        assert broken_links(page) == [], page.name
    for page in (*PAGES, *STORIES):
        name = page.relative_to(ROOT / "docs").with_suffix("")
        assert page.stem == "index" or f"\n{name}\n" in listed, page.name
