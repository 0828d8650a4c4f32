"""Both distributions, specdistill and specdistill-kernels: wheels and sdists, and the kernels installed alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist of both distributions."""
    folder = tmp_path_factory.mktemp("dist")
    # A clean copy: build/ and egg-info of the working tree must neither help nor be littered.
    copy = folder / "source"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(copy)], check=True)
    for source in (copy, copy / "kernels"):
        subprocess.run(
            [sys.executable, "-m", "build", "--outdir", str(folder), str(source)],
            check=True,
            capture_output=True,
            text=True,
        )
    return folder


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


@pytest.fixture(scope="module")
def wheels(built) -> dict[str, Path]:
    return {
        "specdistill": only(built, "specdistill-*.whl"),
        "specdistill_kernels": only(built, "specdistill_kernels-*.whl"),
    }


def requirements(distribution: Distribution) -> dict[str, Requirement]:
    """The requirements of a distribution on this platform, without extras, by name."""
    parsed = [Requirement(line) for line in distribution.requires or ()]
    return {
        canonicalize_name(requirement.name): requirement
        for requirement in parsed
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }


def test_wheels_and_sdists_hold_their_package_with_data_and_types(built, wheels):
    wanted = {
        "specdistill": (
            "py.typed",
            "data/builtin/prompts.jsonl",
            "report/bench.html.jinja",
            "report/samples.html.jinja",
        ),
        "specdistill_kernels": ("py.typed", "fused_divergence/chunked.py"),
    }
    for package, files in wanted.items():
        names = zipfile.ZipFile(wheels[package]).namelist()
        for file in files:
            assert f"{package}/{file}" in names
        assert {name.split("/")[0] for name in names} == {package, f"{package}-0.1.0.dist-info"}
        with tarfile.open(only(built, f"{package}-*.tar.gz")) as archive:
            sdist = archive.getnames()
        assert f"{package}-0.1.0/{package}/__init__.py" in sdist
        assert f"{package}-0.1.0/LICENSE" in sdist
        others = {"specdistill", "specdistill_kernels", "kernels", "benchmarks"} - {package}
        assert not others & {name.split("/")[1] for name in sdist if "/" in name}
    assert (ROOT / "kernels/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_wheels_require_what_the_projects_declare(wheels, tmp_path):
    unpacked = {}
    for package, wheel in wheels.items():
        zipfile.ZipFile(wheel).extractall(tmp_path)
        unpacked[package] = PathDistribution(only(tmp_path, f"{package}-*.dist-info"))
    main, kernels = unpacked["specdistill"], unpacked["specdistill_kernels"]
    assert set(requirements(kernels)) == {"torch", "numpy", "triton"}
    # One range for both: a torch that one of them takes and the other refuses can't be installed.
    for name in ("torch", "numpy"):
        assert requirements(kernels)[name].specifier == requirements(main)[name].specifier
    assert requirements(main)["specdistill-kernels"].specifier.contains(kernels.version)
    for metadata in (main.metadata, kernels.metadata):
        assert metadata["License-Expression"] == "Apache-2.0"
    assert kernels.metadata.get_payload() == (ROOT / "kernels/README.md").read_text(), "a readme of its own"


def test_wheels_work_from_elsewhere(wheels, tmp_path):
    for wheel in wheels.values():
        zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import specdistill, specdistill_kernels, sys; from specdistill.data import load_prompts\n"
        "assert specdistill.__file__.startswith(sys.argv[1]), specdistill.__file__\n"
        "assert specdistill_kernels.__file__.startswith(sys.argv[1]), specdistill_kernels.__file__\n"
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


def with_what_they_need(names: list[str]) -> list[Distribution]:
    """The installed distributions of these names, and everything that they require, directly or not."""
    distributions: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in distributions:
            continue
        try:
            distributions[name] = distribution(name)
        except PackageNotFoundError:
            assert name not in names, f"{name} is not installed"
            continue
        waiting += requirements(distributions[name])
    return list(distributions.values())


def link_into(site: Path, distributions: list[Distribution]) -> None:
    """Makes distributions importable from `site` by symbolic links to their folders and files."""
    for source in distributions:
        for top in {Path(file).parts[0] for file in source.files or ()} - {"..", "__pycache__"}:
            link, original = site / top, Path(str(source.locate_file(top)))
            if not link.exists() and original.exists():
                link.symlink_to(original)


@pytest.fixture(scope="module")
def alone(wheels, tmp_path_factory) -> Path:
    """Python of a new environment: the kernels' wheel, torch, numpy, triton, and what those three require."""
    folder = tmp_path_factory.mktemp("alone")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    site = only(folder, "lib/python*/site-packages")
    link_into(site, with_what_they_need(["torch", "numpy", "triton"]))
    wheel = str(wheels["specdistill_kernels"])
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        str(site),
        wheel,
    ]
    subprocess.run(install, check=True)
    return folder / "bin/python"


# Target and draft laws over four ids. Whatever the coins show, the draft ids 0 and 1 are kept (p / q is 1 and 2) and
# id 2 is rejected (p is 0). (p - q)+ is then 0.25 at id 1 alone, so id 1 follows.
ALONE = """
import importlib, importlib.util, math, sys
import torch
from specdistill_kernels import expected_acceptance, fused_divergence, verify
import specdistill_kernels

assert specdistill_kernels.__file__.startswith(sys.prefix), specdistill_kernels.__file__
for absent in ("specdistill", "transformers", "datasets", "accelerate"):
    assert importlib.util.find_spec(absent) is None, absent
for module in sys.argv[1:]:
    importlib.import_module(module)

p, q = (torch.tensor(law).log() for law in ([0.5, 0.5, 0.0, 0.0], [0.5, 0.25, 0.25, 0.0]))
zeros = torch.zeros(2, dtype=torch.int64)
for backend in ("torch", "fused"):
    for rule in ("sampled", "block"):
        for seed in range(10):
            # The first request drafts 0 and 2; the second drafts 0 and 1, and all that follows is certain: id 3.
            certain = torch.tensor([0.0, 0.0, 0.0, 1.0]).log()
            got = verify(
                torch.stack([p, p, p, p, p, certain]), torch.tensor([0, 2, 0, 1]), torch.tensor([2, 4]),
                torch.stack([q, q, q, q]), rule=rule, seeds=zeros + seed, positions=zeros, backend=backend,
            )
            assert got.num_accepted.tolist() == [1, 2] and got.next_token.tolist() == [1, 3], (backend, rule, got)
    best = torch.nn.functional.one_hot(torch.tensor([3, 1, 2, 0, 2]), 4).float()
    got = verify(best, torch.tensor([3, 1, 1]), torch.tensor([2, 3]), rule="greedy", backend=backend)
    assert got.num_accepted.tolist() == [2, 0] and got.next_token.tolist() == [2, 0], (backend, got)

    got = expected_acceptance(p[None], q[None], backend=backend)
    assert abs(float(got.sampled) - 0.75) < 1e-6 and abs(float(got.argmax_draft) - 0.5) < 1e-6, (backend, got)
    got = fused_divergence(q[None].exp(), torch.eye(4), p[None].exp(), torch.eye(4), torch.ones(1), backend=backend)
    # The laws are used as logits here: exp(0.5), exp(0.25) and 1 are the only weights that occur.
    a, b = math.exp(0.5), math.exp(0.25)
    log_p, log_q = -math.log(2 * a + 2), -math.log(a + 2 * b + 1)
    kl = (a * (log_p - log_q) + a * (0.25 + log_p - log_q) + (log_p - 0.25 - log_q) + (log_p - log_q)) / (2 * a + 2)
    assert abs(float(got.loss) - kl) < 1e-6, (backend, got.loss, kl)
assert "transformers" not in sys.modules
"""


def test_the_kernels_wheel_alone_verifies_as_worked_out_by_hand(alone, tmp_path):
    folder = ROOT / "kernels/specdistill_kernels"
    modules = [
        ".".join(path.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(folder.rglob("*.py"))
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["TRITON_INTERPRET"] = "1"
    done = subprocess.run(
        [str(alone), "-I", "-c", ALONE, *modules], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_make_setup_installs_the_kernels_before_what_needs_them():
    """Nothing of that name is on PyPI: in the other order a fresh clone can't be set up."""
    setup = (ROOT / "Makefile").read_text()
    order = [setup.index(install) for install in ("constraints.txt torch", "--editable kernels", "--editable '.[dev]'")]
    assert order == sorted(order)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(line.startswith("specdistill-kernels") for line in project["dependencies"])
