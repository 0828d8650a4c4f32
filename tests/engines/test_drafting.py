"""Our drafts inside real vLLM and real llama.cpp: the same greedy output, and the acceptance that we predict.

`make test-engines` runs this. The target is SmolLM2-135M-Instruct; the draft is cut out of it and trained for some
minutes by our own commands.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="make test-engines runs these in vLLM's environment")
pytest.importorskip("xllamacpp", reason="make test-engines runs these in vLLM's environment")

from specdistill import BenchConfig, ExportConfig, InitDraftConfig, TrainConfig, bench, export, init_draft, train_draft
from specdistill.data.prompts import encode_all, load_prompts
from specdistill.models import LanguageModel
from specdistill.report.wording_warnings import prediction_warning

GAMMA, TOKENS = 3, 40
EXAMPLE = Path(__file__).parents[2] / "examples/verify_in_vllm.py"
BENCH = {"num_draft_tokens": GAMMA, "max_new_tokens": TOKENS, "threads": 1, "num_prompts": 8}
BENCH |= {"engine_baselines": ("none",)}


@pytest.fixture(scope="module")
def target(smollm2) -> LanguageModel:
    return smollm2


@pytest.fixture(scope="module")
def folder(target, tmp_path_factory) -> Path:
    """`draft`, trained; `draft-vllm` and `draft.gguf`, exported."""
    folder = tmp_path_factory.mktemp("drafting")
    name = str(target.directory)
    init_draft(
        InitDraftConfig.flat(
            target=name,
            output=str(folder / "cut"),
            layers=6,
            choose="even",
            calibration_prompts=8,
            calibration_tokens=16,
        )
    )
    train_draft(
        TrainConfig.flat(
            target=name,
            draft=str(folder / "cut"),
            output=str(folder / "draft"),
            rollouts_per_prompt=2,
            max_new_tokens=48,
            steps=60,
            eval_every=30,
            heldout_prompts=8,
            rule="greedy",
        )
    )
    export(
        ExportConfig.flat(target=name, draft=str(folder / "draft"), format="vllm", output=str(folder / "draft-vllm"))
    )
    return folder


@pytest.fixture(scope="module")
def gguf_draft(folder, gguf_path) -> Path:
    out = folder / "draft.gguf"
    export(ExportConfig.flat(target=str(gguf_path), draft=str(folder / "draft"), format="gguf", output=str(out)))
    return out


def agrees(report, within: float) -> None:
    """The engine's own counters are what one pass over its answers had predicted."""
    acceptance, setup = report.acceptance, report.setup
    off = acceptance.prediction.measured_over_predicted_minus_1
    print(
        f"{setup.engine_version}, {setup.rule}: tokens per target call {acceptance.mean_acceptance_length.mean:.3f}, "
        f"predicted {acceptance.prediction.mean_acceptance_length.mean:.3f}, {acceptance.counters}"
    )
    assert acceptance.counters.accepted > 0
    assert abs(off.mean) < within, off


def test_vllm_writes_the_same_and_accepts_as_predicted(target, folder):
    report = bench(
        BenchConfig.flat(
            target=str(target.directory), draft=str(folder / "draft-vllm"), engine="vllm",
            engine_args="--enforce-eager", **BENCH,
        )
    )  # fmt: skip
    assert report.lossless.greedy_identical, report.lossless
    agrees(report, 0.05)
    joint = report.acceptance.by_position
    assert len(joint) == GAMMA and joint == sorted(joint, reverse=True)
    # As vLLM itself puts it, drafts beyond an answer's end included.
    assert report.acceptance.counters.mean_acceptance_length == pytest.approx(
        report.acceptance.mean_acceptance_length.mean, rel=0.05
    )


@pytest.mark.parametrize("rule", ["argmax_draft", "sampled"])
def test_vllm_that_samples_accepts_as_predicted(target, folder, rule, monkeypatch):
    """With the repair of its CPU build, see there; without it, bench says that something is wrong."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "repaired_vllm"))
    report = bench(
        BenchConfig.flat(
            target=str(target.directory), draft=str(folder / "draft-vllm"), engine="vllm", temperature=0.8, rule=rule,
            engine_args="--enforce-eager", **BENCH | {"num_prompts": 16, "batch_size": 4},
        )
    )  # fmt: skip
    # Two independent samples of 16 answers: with and without the draft the texts differ.
    agrees(report, 0.06)


def test_bench_tells_that_vllms_cpu_build_verifies_wrongly(target, folder):
    """vLLM 0.32 for CPUs divides the target's logits by uninitialised memory above temperature 0."""
    report = bench(
        BenchConfig.flat(
            target=str(target.directory), draft=str(folder / "draft-vllm"), engine="vllm", temperature=0.8,
            engine_args="--enforce-eager", **BENCH | {"num_prompts": 32, "batch_size": 4},
        )
    )  # fmt: skip
    warning = prediction_warning(report)
    assert warning is not None and "verifies wrongly" in warning, report.acceptance


def test_our_kernels_in_place_of_vllms_verification(target, folder, monkeypatch):
    """examples/verify_in_vllm.py, as it is."""
    from vllm import LLM, SamplingParams
    from vllm.v1.worker import gpu_model_runner

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setattr(gpu_model_runner, "RejectionSampler", gpu_model_runner.RejectionSampler)
    prompts = encode_all(load_prompts("builtin:heldout")[:6], target.tokenizer, 300)
    settings = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    more = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 2, "enforce_eager": True}

    def written(llm) -> list[list[int]]:
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(answer.outputs[0].token_ids) for answer in llm.generate(asked, settings, use_tqdm=False)]

    spec = importlib.util.spec_from_file_location("verify_in_vllm", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    llm = LLM(model=str(target.directory), **more)
    plain = written(llm)
    # An engine that goes takes its process groups along, so it must go before the next one comes.
    del llm
    gc.collect()
    llm = example.engine(str(target.directory), str(folder / "draft-vllm"), GAMMA, **more)
    assert written(llm) == plain
    assert example.Verifier.calls > 0
    warm = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, max_tokens=8)
    calls = example.Verifier.calls
    assert all(answer.outputs[0].token_ids for answer in llm.generate(["The sea"] * 2, warm, use_tqdm=False))
    assert example.Verifier.calls > calls


def test_transformers_writes_the_same_and_accepts_as_predicted(target, folder):
    report = bench(
        BenchConfig.flat(target=str(target.directory), draft=str(folder / "draft"), engine="transformers", **BENCH)
    )
    assert report.lossless.greedy_identical, report.lossless
    agrees(report, 0.05)


@pytest.mark.parametrize(("temperature", "within"), [(0.0, 0.05), (0.8, 0.15)])
def test_llama_cpp_writes_the_same_and_accepts_as_predicted(gguf_path, gguf_draft, temperature, within):
    report = bench(
        BenchConfig.flat(
            target=str(gguf_path), draft=str(gguf_draft), engine="llama-cpp", temperature=temperature,
            **BENCH | {"num_prompts": 16 if temperature else 8},
        )
    )  # fmt: skip
    if temperature == 0:
        assert report.lossless.greedy_identical, report.lossless
    agrees(report, within)


def serving(gguf: Path) -> list[int]:
    """Processes that serve a file."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().decode(errors="replace")
            if "engines.llama_server" in line and str(gguf) in line:
                pids.append(int(path.parent.name))
    return pids


def test_a_llama_cpp_that_is_killed_in_the_middle(gguf_path, gguf_draft, tmp_path):
    out, log = tmp_path / "report.json", tmp_path / "log"
    command = [sys.executable, "-m", "specdistill", "bench", "--target", str(gguf_path), "--draft", str(gguf_draft)]
    command += ["--engine", "llama-cpp", "--num-draft-tokens", "3", "--max-new-tokens", "60", "--num-prompts", "40"]
    with log.open("w") as file:
        process = subprocess.Popen([*command, "--threads", "1", "--json", str(out)], stdout=file, stderr=file)
    end = time.monotonic() + 240
    # A fifth of the tokens are written when the first line of progress appears.
    while "plain against speculative:" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.1)
    (drafting,) = serving(gguf_draft)
    os.kill(drafting, signal.SIGKILL)
    assert process.wait(240) == 2
    said = log.read_text()
    assert "llama-cpp with the draft ended with code -9" in said and "prompts are kept" in said
    report = json.loads(out.read_text())
    assert 2 <= report["partial"]["prompts_done"] < 40
    assert report["acceptance"]["counters"]["rounds"] > 0
    assert not serving(gguf_path), "both servers are gone"


def complete(gguf: Path, prompt: str, draft: Path | None = None) -> dict:
    """One greedy answer of llama.cpp's server."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(gguf)
    settings.n_ctx, settings.n_parallel, settings.warmup = 1024, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 2) // 2)
    if draft is not None:
        kind = xllamacpp.common_speculative_type
        settings.speculative.types = [kind.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        settings.speculative.draft.mparams.path = str(draft)
        settings.speculative.draft.n_max = GAMMA
    server = xllamacpp.Server(settings)
    return server.handle_completions({"prompt": prompt, "n_predict": TOKENS, "temperature": 0.0, "top_k": 1})


@pytest.mark.parametrize("kind", ["float16", "q8_0"])
def test_llama_cpp_writes_the_same_and_takes_nearly_all_of_the_targets_own_weights(target, folder, gguf_path, kind):
    """The draft is the target itself: what is not accepted was lost while the file was written, or rounded."""
    out = folder / f"whole-{kind}.gguf"
    export(
        ExportConfig.flat(target=str(gguf_path), draft=str(target.directory), format="gguf", output=str(out), type=kind)
    )
    prompt = "The three primary colours are"
    plain, drafted = complete(gguf_path, prompt), complete(gguf_path, prompt, out)
    assert drafted["choices"][0]["text"] == plain["choices"][0]["text"]
    timings = drafted["timings"]
    print(f"llama.cpp, {kind}: {timings['draft_n_accepted']} of {timings['draft_n']} accepted")
    assert timings["draft_n_accepted"] >= 0.8 * timings["draft_n"] > 0
