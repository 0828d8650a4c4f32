"""The commands that `check` and `export` print, run as they are printed: each server must draft.

`make test-engines` runs this. Where llama.cpp's program is not installed, a stand-in of its name takes the same
flags and serves by xllamacpp; like the program it drafts only where --spec-type says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="make test-engines runs these in vLLM's environment")
pytest.importorskip("xllamacpp", reason="make test-engines runs these in vLLM's environment")

from specdistill import ExportConfig, InitDraftConfig, export, init_draft
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.gates import check
from specdistill.serving.server_process import free_port

STAND_IN = """#!{python}
import argparse, threading
import xllamacpp

parser = argparse.ArgumentParser()
parser.add_argument("-m", required=True)
parser.add_argument("-md")
parser.add_argument("--spec-type", default="none")
parser.add_argument("--spec-draft-n-max", type=int, default=3)
parser.add_argument("--host", default="127.0.0.1")
parser.add_argument("--port", type=int, required=True)
given = parser.parse_args()
params = xllamacpp.CommonParams()
params.model.path = given.m
params.hostnames, params.port = [given.host], given.port
params.n_ctx, params.n_parallel, params.warmup = 512, 1, False
if given.md:
    params.speculative.draft.mparams.path, params.speculative.draft.n_max = given.md, given.spec_draft_n_max
kinds = {{"draft-simple": xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE}}
if given.spec_type != "none":
    params.speculative.types = [kinds[given.spec_type]]
server = xllamacpp.Server(params)
threading.Event().wait()
"""


@pytest.fixture(scope="module")
def folder(smollm2, gguf_path, tmp_path_factory) -> Path:
    """`draft` for vLLM and `draft.gguf`, both cut from the target."""
    folder = tmp_path_factory.mktemp("printed")
    target, cut = str(smollm2.directory), str(folder / "cut")
    init_draft(
        InitDraftConfig.flat(
            target=target, output=cut, layers=6, choose="even", calibration_prompts=8, calibration_tokens=16
        )
    )
    for name, format in (("draft", "vllm"), ("draft.gguf", "gguf")):
        served = str(gguf_path) if format == "gguf" else target
        export(ExportConfig.flat(target=served, draft=cut, format=format, output=str(folder / name)))
    return folder


def printed(engine: str, target: Path, draft: Path) -> list[str]:
    """The words that `check` prints for one engine."""
    verdicts = check(CheckConfig.flat(target=str(target), draft=str(draft), num_draft_tokens=3))
    verdict = next(verdict for verdict in verdicts if verdict.engine == engine)
    assert verdict.loads, verdict.refusals
    return shlex.split(verdict.command, comments=True)


@contextlib.contextmanager
def serving(words: list[str], log: Path, path: str):
    """Runs a printed command with a port of its own, until it answers; yields the address."""
    port = free_port()
    environment = os.environ | {"PATH": path, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen([*words, "--port", str(port)], stdout=output, stderr=output, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 300
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def post(address: str, path: str, **body) -> dict:
    request = urllib.request.Request(
        address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def test_the_llama_cpp_command_drafts(folder, gguf_path, tmp_path):
    path = os.environ["PATH"]
    if shutil.which("llama-server") is None:
        program = tmp_path / "llama-server"
        program.write_text(STAND_IN.format(python=sys.executable))
        program.chmod(0o755)
        path = f"{tmp_path}{os.pathsep}{path}"
    words = printed("llama.cpp", gguf_path, folder / "draft.gguf")
    with serving(words, tmp_path / "log", path) as address:
        answer = post(address, "/completion", prompt="The three primary colours are", n_predict=24, temperature=0)
    assert answer["timings"]["draft_n"] > 0, answer["timings"]


def test_the_vllm_command_drafts(folder, smollm2, tmp_path):
    words = printed("vllm", Path(smollm2.directory), folder / "draft")
    if shutil.which("vllm") is None:
        # Builds for CPUs are packaged without the program; what follows `vllm serve TARGET` is taken as it is.
        words = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", *words[2:]]
    more = ["--max-model-len", "512", "--enforce-eager", "--dtype", "float32"]
    with serving([*words, *more], tmp_path / "log", os.environ["PATH"]) as address:
        model = json.loads(urllib.request.urlopen(f"{address}/v1/models", timeout=30).read())["data"][0]["id"]
        post(address, "/v1/completions", model=model, prompt="The three primary colours are", max_tokens=24)
        page = urllib.request.urlopen(f"{address}/metrics", timeout=30).read().decode()
    drafted = [line for line in page.splitlines() if line.startswith("vllm:spec_decode_num_draft_tokens_total")]
    assert sum(float(line.split()[-1]) for line in drafted) > 0, drafted
