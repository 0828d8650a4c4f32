"""The engines' own ways of drafting, inside real vLLM and real llama.cpp: `bench --engine --method` and baselines.

`make test-engines` runs this. The target is SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="make test-engines runs these in vLLM's environment")
pytest.importorskip("xllamacpp", reason="make test-engines runs these in vLLM's environment")

from fake_vllm import copied_run

from specdistill import BenchConfig, bench
from specdistill.data.prompts import encode_all, load_prompts
from specdistill.evaluation.report import Report
from specdistill.serving import bench as bench_module
from specdistill.settings.chat import ChatSettings

GAMMA, TOKENS, MAX, MIN = 3, 48, 4, 2
BENCH = {"num_draft_tokens": GAMMA, "max_new_tokens": TOKENS, "threads": 1, "num_prompts": 0, "lookup_max": MAX}
LISTS = (
    "one two three four five six seven eight nine ten",
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August",
    "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune",
    "red orange yellow green blue indigo violet",
    "name: Ada; age: 36; city: London; job: engineer",
)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """Texts that go on as they began, so that there is something to copy."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = [f"{text}. {text}. {text[: len(text) // 2]}" for text in LISTS]
    rows = [{"id": str(place), "prompt": text} for place, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def answers(monkeypatch) -> list[list[int]]:
    """Token ids of the plain engine's answers, filled while a bench runs."""
    kept: list[list[int]] = []
    real = bench_module._time

    def timed(*arguments):
        runs, failure = real(*arguments)
        kept.extend(generation.token_ids for run in runs for generation in run.plain)
        return runs, failure

    monkeypatch.setattr(bench_module, "_time", timed)
    return kept


def by_hand(target, path: Path, answers: list[list[int]], shortest: int) -> tuple[float, float]:
    """(tokens per target call, share of calls with a proposal) of copying over finished answers."""
    prompts = encode_all(load_prompts(str(path), ChatSettings(raw_prompts=True)), target.tokenizer, 400)
    tokens = calls = proposing = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        done = 1
        while done < len(answer):
            proposed = copied_run([*prompt, *answer[:done]], MAX, shortest, GAMMA)
            kept = 0
            while kept < len(proposed) and answer[done + kept : done + kept + 1] == [proposed[kept]]:
                kept += 1
            done, calls, proposing = done + kept + 1, calls + 1, proposing + bool(proposed)
        tokens += len(answer) - 1
    return tokens / calls, proposing / calls


def show(report: Report) -> None:
    counted = report.acceptance
    print(
        f"{report.setup.engine_version} {report.draft.kind or 'draft'}: {counted.counters}, tokens per target call "
        f"{counted.mean_acceptance_length.mean:.3f}, speed-up {report.latency.speedup}; {report.economics.why}"
    )
    for name, baseline in (report.baselines or {}).items():
        print(f"baseline {name}: {baseline}")


def test_vllms_ngram_counts_what_its_rule_gives(smollm2, prompts, answers):
    report = bench(
        BenchConfig.flat(
            target=str(smollm2.directory), method="ngram", engine="vllm", lookup_min=MIN,
            engine_args="--enforce-eager", prompts=str(prompts), raw_prompts=True, **BENCH,
        )
    )  # fmt: skip
    show(report)
    assert report.lossless.greedy_identical and report.draft.kind == "ngram"
    expected, share = by_hand(smollm2, prompts, answers, MIN)
    print(f"by hand: {expected:.3f} tokens per target call, a proposal in {share:.3f}")
    assert report.acceptance.mean_acceptance_length.mean == pytest.approx(expected, rel=0.02)
    assert report.acceptance.counters.accepted > 0


def test_vllms_ngram_as_the_baseline_of_a_draft(smollm2, prompts, answers):
    """Three servers at a time; the draft is the target itself, so that nearly all of it is accepted."""
    report = bench(
        BenchConfig.flat(
            target=str(smollm2.directory), draft=str(smollm2.directory), engine="vllm", lookup_min=MIN,
            engine_args="--enforce-eager", prompts=str(prompts), raw_prompts=True, **BENCH,
        )
    )  # fmt: skip
    show(report)
    assert report.lossless.greedy_identical and report.acceptance.acceptance_rate.mean > 0.9
    baseline = report.baselines["ngram"]
    expected, share = by_hand(smollm2, prompts, answers, MIN)
    assert baseline.mean_acceptance_length.mean == pytest.approx(expected, rel=0.02)
    assert baseline.proposed_share == pytest.approx(share, abs=0.03)
    assert baseline.speedup is not None and baseline.speedup.mean > 0


def test_llama_cpps_ngram_drafts_and_writes_the_same(gguf_path, prompts):
    report = bench(
        BenchConfig.flat(
            target=str(gguf_path),
            method="ngram-simple",
            engine="llama-cpp",
            prompts=str(prompts),
            raw_prompts=True,
            **BENCH,
        )
    )
    show(report)
    assert report.lossless.greedy_identical and report.draft.kind == "ngram-simple"
    assert report.acceptance.counters.proposed > 0 and report.acceptance.mean_acceptance_length.mean > 1


def test_llama_cpps_other_methods_beside_a_draft(gguf_path, prompts):
    """N-grams, and n-grams before the draft, which is the target itself."""
    report = bench(
        BenchConfig.flat(
            target=str(gguf_path), draft=str(gguf_path), engine="llama-cpp", engine_baselines=("ngram", "ngram+draft"),
            prompts=str(prompts), raw_prompts=True, **BENCH | {"max_new_tokens": 24},
        )
    )  # fmt: skip
    show(report)
    alone, both = (report.baselines[name].mean_acceptance_length.mean for name in ("ngram", "ngram+draft"))
    assert 1 <= alone < both and report.lossless.greedy_identical
