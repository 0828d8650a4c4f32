"""Our drafts inside real vLLM and real llama.cpp: the same greedy output, and the acceptance that we predict.

`make test-engines` runs this. The target is SmolLM2-135M-Instruct, the draft its first and last layers.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="make test-engines runs these in vLLM's environment")
pytest.importorskip("xllamacpp", reason="make test-engines runs these in vLLM's environment")

from specdistill import load_model
from specdistill.data.prompts import encode_all, load_prompts
from specdistill.decoding import Sampling, SpeculativeDecoder
from specdistill.models import LanguageModel
from specdistill.models.checkpoint import save_draft
from specdistill.models.cut import cut_draft
from specdistill.serving.export import export
from specdistill.serving.export_config import ExportConfig

GAMMA, TOKENS = 3, 40
EXAMPLE = Path(__file__).parents[2] / "examples/verify_in_vllm.py"
LAYERS = [*range(22), *range(26, 30)]
"""Without the four layers in front of the last: nothing is trained here, and a shorter cut would hardly be accepted."""


@pytest.fixture(scope="module")
def target(smollm2) -> LanguageModel:
    return smollm2


@pytest.fixture(scope="module")
def folder(target, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("drafting")
    (made / "cut").mkdir()
    save_draft(cut_draft(target, LAYERS), target, made / "cut")
    return made


@pytest.fixture(scope="module")
def prompts(target) -> list[list[int]]:
    return encode_all(load_prompts("builtin:heldout")[:6], target.tokenizer, 300)


def test_vllm_writes_the_same_and_accepts_as_predicted(target, folder, prompts, monkeypatch):
    from vllm import LLM, SamplingParams

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    out = folder / "vllm"
    export(ExportConfig(target=str(target.directory), draft=str(folder / "cut"), format="vllm", output=str(out)))
    settings = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    speculative = {"method": "draft_model", "model": str(out), "num_speculative_tokens": GAMMA}

    def engine(**more):
        return LLM(
            model=str(target.directory), dtype="float32", max_model_len=512, max_num_seqs=2, enforce_eager=True,
            disable_log_stats=False, **more,
        )  # fmt: skip

    def written(llm) -> list[list[int]]:
        asked = [{"prompt_token_ids": each} for each in prompts]
        return [list(each.outputs[0].token_ids) for each in llm.generate(asked, settings, use_tqdm=False)]

    plain = written(engine())
    llm = engine(speculative_config=speculative)
    drafted = written(llm)
    assert drafted == plain
    counters = {each.name: each for each in llm.get_metrics() if "spec_decode" in each.name}
    drafts = counters["vllm:spec_decode_num_drafts"].value
    accepted = counters["vllm:spec_decode_num_accepted_tokens"].value
    by_position = counters["vllm:spec_decode_num_accepted_tokens_per_pos"].values
    assert sum(by_position) == accepted > 0
    decoder = SpeculativeDecoder(
        target, load_model(str(out), "draft"), num_draft_tokens=GAMMA, sampling=Sampling(temperature=0)
    )
    ours = [decoder.generate([each], max_new_tokens=TOKENS, seeds=[0])[0] for each in prompts]
    rounds = [each for answer in ours for each in answer.rounds]
    predicted = 1 + sum(each.accepted for each in rounds) / len(rounds)
    measured = 1 + accepted / drafts
    print(f"vLLM: mean acceptance length {measured:.3f}, ours {predicted:.3f}, {drafts} drafts, {by_position}")
    assert measured == pytest.approx(predicted, rel=0.05)
    # Our kernels in place of vLLM's verification: examples/verify_in_vllm.py, as it is.
    spec = importlib.util.spec_from_file_location("verify_in_vllm", EXAMPLE)
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    from vllm.v1.worker import gpu_model_runner

    monkeypatch.setattr(gpu_model_runner, "RejectionSampler", gpu_model_runner.RejectionSampler)
    more = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 2, "enforce_eager": True}
    # An engine that goes takes its process groups along, so it must go before the next one comes.
    del llm
    gc.collect()
    llm = example.engine(str(target.directory), str(out), GAMMA, **more)
    assert written(llm) == plain
    assert example.Verifier.calls > 0
    warm = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, max_tokens=8)
    calls = example.Verifier.calls
    assert all(each.outputs[0].token_ids for each in llm.generate(["The sea"] * 2, warm, use_tqdm=False))
    assert example.Verifier.calls > calls


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
    export(ExportConfig(target=str(gguf_path), draft=str(target.directory), format="gguf", output=str(out), type=kind))
    prompt = "The three primary colours are"
    plain, drafted = complete(gguf_path, prompt), complete(gguf_path, prompt, out)
    assert drafted["choices"][0]["text"] == plain["choices"][0]["text"]
    timings = drafted["timings"]
    print(f"llama.cpp, {kind}: {timings['draft_n_accepted']} of {timings['draft_n']} accepted")
    assert timings["draft_n_accepted"] >= 0.8 * timings["draft_n"] > 0


def test_llama_cpp_drafts_with_a_cut(target, folder, gguf_path):
    out = folder / "cut.gguf"
    export(ExportConfig(target=str(gguf_path), draft=str(folder / "cut"), format="gguf", output=str(out)))
    prompt = "The three primary colours are"
    plain, drafted = complete(gguf_path, prompt), complete(gguf_path, prompt, out)
    assert drafted["choices"][0]["text"] == plain["choices"][0]["text"]
    assert 0 < drafted["timings"]["draft_n_accepted"] < drafted["timings"]["draft_n"]
