"""What `pip install` gives: both packages, their data and types, from a wheel and from an sdist."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # A clean copy: build/ and egg-info of the working tree must neither help nor be littered.
    copy = folder / "source"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(copy)], check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", str(folder), str(copy)], check=True, capture_output=True, text=True
    )
    return folder


def test_wheel_and_sdist_hold_both_packages_with_data_and_types(built):
    wheel = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    for name in (
        "specdistill/py.typed",
        "specdistill/data/builtin/prompts.jsonl",
        "specdistill/report/bench.html.jinja",
        "specdistill_kernels/py.typed",
        "specdistill_kernels/fused_divergence/chunked.py",
    ):
        assert name in wheel
    assert not [name for name in wheel if name.startswith(("tests", "benchmarks", "kernels/"))]
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        sdist = archive.getnames()
    assert any(name.endswith("kernels/specdistill_kernels/__init__.py") for name in sdist)
    assert any(name.endswith("LICENSE") for name in sdist)


def test_wheel_works_from_elsewhere(built, tmp_path):
    wheel = next(built.glob("*.whl"))
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import specdistill, specdistill_kernels, sys; from specdistill.data import load_prompts\n"
        "assert specdistill.__file__.startswith(sys.argv[1]), specdistill.__file__\n"
        "assert len(load_prompts('builtin')) >= 160"
    )
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, sys.argv[1])\n{code}", str(tmp_path / "site")],
        check=True,
        cwd=tmp_path,
    )


def test_kernels_alone_need_torch_only():
    code = (
        "import sys, specdistill_kernels\n"
        "assert not {'transformers', 'specdistill', 'triton', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
