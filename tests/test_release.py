"""A release in a copy: right versions everywhere, wheels, a tag; the working tree stays as it is."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from specdistill import __version__

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("release", ROOT / "tools/release.py")
assert SPEC is not None and SPEC.loader is not None
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_dry_run_builds_and_tags_in_a_copy(monkeypatch):
    before = git("status", "--porcelain"), git("tag"), git("rev-parse", "HEAD")
    for name in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{name}", "tester")
    command = [sys.executable, "tools/release.py", "9.8.7", "--dry-run", "--skip-docs"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Release 9.8.7" in done.stdout and "specdistill-9.8.7-py3-none-any.whl" in done.stdout
    assert "specdistill_kernels-9.8.7-py3-none-any.whl" in done.stdout and "### Added" in done.stdout
    assert (git("status", "--porcelain"), git("tag"), git("rev-parse", "HEAD")) == before


def test_every_version_is_changed_and_the_section_is_dated():
    texts = release.new_texts(ROOT, "9.8.7", "2030-01-02")
    assert set(texts) == {"CHANGELOG.md", *release.VERSIONED}
    assert "## 9.8.7 (2030-01-02)" in texts["CHANGELOG.md"] and "unreleased)" not in texts["CHANGELOG.md"]
    for name in release.VERSIONED:
        before, after = (ROOT / name).read_text().splitlines(), texts[name].splitlines()
        changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
        assert changed[0][1] == changed[0][0].replace(__version__, "9.8.7")
        kernels = ['    "specdistill-kernels>=9.8,<9.9",'] if name == "pyproject.toml" else []
        assert [new for _, new in changed[1:]] == kernels, name


@pytest.mark.parametrize(
    ("text", "words"),
    [("# Changelog\n\n## 0.1.0 (2026-01-01)\n", "no section"), ("## 1 (unreleased)\n\n- a\n", "needs headings")],
)
def test_a_changelog_without_sections_is_refused(text, words):
    with pytest.raises(SystemExit, match=words):
        release.release_notes(text)


def test_a_version_that_is_none_is_refused():
    with pytest.raises(SystemExit, match="no version"):
        release.check_version(ROOT, "2.0")


def test_all_places_hold_one_version():
    for name, line in release.VERSIONED.items():
        (version,) = re.findall(line, (ROOT / name).read_text(), re.MULTILINE)
        assert version == __version__, name


def test_workflows_call_make_and_forms_ask_for_the_report():
    folder = ROOT / ".github"
    steps = []
    for path in (folder / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"].values()
        steps += [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert sorted(steps) == [".ci/run", "make check", "make docs", "make test-fast"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{step.split()[1]}:" in makefile for step in steps if step.startswith("make "))
    assert "exec make test" in (ROOT / ".ci/run").read_text()
    for name in ("bug", "does_not_pay"):
        fields = yaml.safe_load((folder / f"ISSUE_TEMPLATE/{name}.yml").read_text())["body"]
        assert "report" in [field.get("id") for field in fields]
