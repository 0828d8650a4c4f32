"""Makes a release: versions, the changelog's date, wheels of both packages, the documentation, a commit and a tag.

python tools/release.py 0.2.0 --dry-run   does it in a copy, prints what changes and the notes, changes nothing here
python tools/release.py 0.2.0             does it here; pushing is yours
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONED = {
    "pyproject.toml": r'^version = "(.+)"$',
    "kernels/pyproject.toml": r'^version = "(.+)"$',
    "specdistill/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
}
"""File -> the line that holds the version. The documentation takes it from the package."""
SECTIONS = ("Added", "Changed", "Fixed", "Removed")


def check_version(root: Path, version: str) -> None:
    """Refuses what is no version, or not above the last tag."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"{version!r} is no version; write three numbers, as in 0.2.0")
    tags = run(root, "git", "tag", "--list", "v*").split()
    released = [tuple(map(int, tag[1:].split("."))) for tag in tags if re.fullmatch(r"v\d+\.\d+\.\d+", tag)]
    if released and tuple(map(int, version.split("."))) <= max(released):
        sys.exit(f"{version} is not above the last release, {'.'.join(map(str, max(released)))}")


def release_notes(changelog: str) -> str:
    """The unreleased section of the changelog, without its heading."""
    found = re.search(r"^## \S+ \(unreleased\)\n(.*?)(?=^## |\Z)", changelog, re.DOTALL | re.MULTILINE)
    if found is None:
        sys.exit("CHANGELOG.md has no section '## VERSION (unreleased)'; add one with what changed")
    headings = re.findall(r"^### (.+)$", found[1], re.MULTILINE)
    if not headings or set(headings) - set(SECTIONS):
        sys.exit(f"the unreleased section needs headings among {', '.join(SECTIONS)}; it has {headings or 'none'}")
    return found[1].strip() + "\n"


def new_texts(root: Path, version: str, day: str) -> dict[str, str]:
    """File -> its text in the release."""
    changelog = (root / "CHANGELOG.md").read_text()
    release_notes(changelog)
    texts = {"CHANGELOG.md": re.sub(r"^## \S+ \(unreleased\)$", f"## {version} ({day})", changelog, flags=re.MULTILINE)}
    for name, line in VERSIONED.items():
        text = (root / name).read_text()
        found = re.search(line, text, re.MULTILINE)
        if found is None:
            sys.exit(f"{name} has no line like {line}")
        texts[name] = text[: found.start(1)] + version + text[found.end(1) :]
    # The kernels are released with the same number, and a new minor version of theirs may change a signature.
    major, minor, _ = map(int, version.split("."))
    wanted = f'"specdistill-kernels>={major}.{minor},<{major}.{minor + 1}"'
    texts["pyproject.toml"] = re.sub(r'"specdistill-kernels[^"]*"', wanted, texts["pyproject.toml"], count=1)
    return texts


def release(root: Path, version: str, day: str, build_docs: bool) -> list[Path]:
    """Writes, builds, commits and tags in a clone; the wheels that were built."""
    for name, text in new_texts(root, version, day).items():
        (root / name).write_text(text)
    wheels = root / "dist"
    for source in (root / "kernels", root):
        run(root, sys.executable, "-m", "build", "--wheel", "--outdir", str(wheels), str(source))
    if build_docs:
        run(root, sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")
    run(root, "git", "commit", "--quiet", "--all", "--message", f"Release {version}")
    run(root, "git", "tag", "--annotate", f"v{version}", "--message", f"specdistill {version}")
    return sorted(wheels.glob(f"*-{version}-*.whl"))


def run(root: Path, *command: str) -> str:
    """A command's output; its error ends the release."""
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    parser.add_argument("--dry-run", action="store_true", help="work in a copy and change nothing here")
    parser.add_argument("--skip-docs", action="store_true", help="do not build the documentation")
    options = parser.parse_args()
    check_version(ROOT, options.version)
    if run(ROOT, "git", "status", "--porcelain", "--untracked-files=no") and not options.dry_run:
        sys.exit("the working tree has changes; commit or stash them first")
    notes, day = release_notes((ROOT / "CHANGELOG.md").read_text()), datetime.date.today().isoformat()
    with tempfile.TemporaryDirectory() as folder:
        root = ROOT
        if options.dry_run:
            root = Path(folder) / "copy"
            run(ROOT, "git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(root))
        wheels = release(root, options.version, day, not options.skip_docs)
        print(run(root, "git", "show", "--stat", "--format=%s", f"v{options.version}^{{commit}}"))
        print(*(wheel.name for wheel in wheels), sep="\n")
    print(f"\nnotes of {options.version}\n\n{notes}")
    if options.dry_run:
        print("dry run: nothing was changed")
    else:
        print(f"next: git push origin HEAD v{options.version}, then upload dist/")


if __name__ == "__main__":
    main()
