"""`specdistill bench` in a real engine: the same prompts with and without the draft, beside what we predict for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from specdistill.data.batch import Example, Provenance
from specdistill.data.prompts import Prompt, encode, encode_all, load_prompts, spread_over_categories
from specdistill.decoding import Sampling
from specdistill.errors import ServerError
from specdistill.evaluation import acceptance, bench
from specdistill.evaluation.config import BenchConfig
from specdistill.evaluation.latency import first_difference
from specdistill.models import LanguageModel, load, vocabulary
from specdistill.models.pair import ModelPair, load_pair
from specdistill.progress import Progress, Quiet
from specdistill.serving import engine_report
from specdistill.serving.engine import Answered, Engine
from specdistill.serving.engine_report import EngineRun
from specdistill.serving.engines import engines

_LENGTH = 4
"""Draft tokens where the user names none: steps inside an engine can't be timed, so no length can be chosen."""
_WARM_UP = "Say hello."


def run_bench(config: BenchConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Measures a draft against its target, in our decoder or in the engine that `config.engine` names.

    Args:
        config: What to measure.
        progress: Where bars go.

    Returns:
        The report, JSON-ready, in the schema of METRICS (version 1). Of an engine that failed in the middle it covers
        the prompts that were done and holds `partial`, which says why.

    Raises:
        SpecdistillError: Bad input, or an engine that failed before two prompts were done; nothing is kept then.
    """
    progress = progress or Quiet()
    if config.engine == "specdistill":
        return bench.run_bench(config, progress)
    for role, name in (("target", config.target), ("draft", config.draft)):
        load.check_exists(name, role)
    _check_installed(config)
    prompts = spread_over_categories(load_prompts(config.prompts), config.num_prompts)
    prompts = prompts[: config.latency_prompts or None]
    if config.threads:
        torch.set_num_threads(config.threads)
    gamma = config.num_draft_tokens or _LENGTH
    sampling = Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)
    # Servers are measured first: our own copies of the models would take their memory.
    pair = _shells(config, progress) if config.engine != "transformers" else _pair(config, progress)
    room = min(pair.target.max_context, pair.draft.max_context) - config.max_new_tokens - gamma - 1
    encoded = encode_all(prompts, pair.target.tokenizer, room)
    context = max(map(len, encoded)) + config.max_new_tokens + gamma + 1
    with engines(config, pair, gamma, context, progress) as (plain, drafting):
        runs, failure = _time(config, plain, drafting, pair.target, encoded, sampling, progress)
    done = sum(len(run.plain) for run in runs)
    if failure is not None and done < 2:
        raise failure
    if config.engine != "transformers":
        pair = _pair(config, progress)
    answers = _answers(prompts[:done], encoded, runs)
    with progress.task(f"scoring {pair.draft.name}", done, "answers") as task:
        if config.target_is_present:
            records = acceptance.score(pair.target, pair.draft, answers, sampling, on_sequences=task.advance)
        else:
            records = acceptance.score_draft(pair.draft, answers, sampling.greedy, on_sequences=task.advance)
    differences = _differences(config, pair, prompts[:done], encoded, runs)
    report = engine_report.build(config, pair, prompts[:done], records, runs, gamma, differences, drafting)
    if failure is not None:
        report["partial"] = {"prompts_done": done, "prompts_asked": len(prompts), "why": str(failure)}
    return report


def _check_installed(config: BenchConfig) -> None:
    if config.engine == "vllm":
        from specdistill.serving.engines import vllm_server

        vllm_server.check_installed()
    elif config.engine == "llama-cpp":
        from specdistill.serving.engines import llama_server

        llama_server.check_installed(config.engine_args)


def _shells(config: BenchConfig, progress: Progress) -> ModelPair:
    """Both without weights: names, tokenizers and lengths."""
    sources = [
        load.find(name, role, progress.say) for role, name in (("target", config.target), ("draft", config.draft))
    ]
    vocabulary.check_same_vocabulary(sources[0].tokenizer, sources[1].tokenizer, config.target, config.draft)
    return ModelPair(load.load_shell(sources[0]), load.load_shell(sources[1], "draft"))


def _pair(config: BenchConfig, progress: Progress) -> ModelPair:
    """Both with weights, the target's where the score needs them; engines use all rows of a trimmed head."""
    pair = load_pair(
        config.target,
        config.draft,
        device=config.device,
        dtype=config.dtype,
        target_weights=config.target_is_present,
        say=progress.say,
    )
    return ModelPair(pair.target, dataclasses.replace(pair.draft, kept_ids=None))


def _time(
    config: BenchConfig,
    plain: Engine,
    drafting: Engine,
    target: LanguageModel,
    encoded: list[list[int]],
    sampling: Sampling,
    progress: Progress,
) -> tuple[list[EngineRun], ServerError | None]:
    """Batches in turn, alternating which engine goes first; what was done, and what ended it early."""
    runs: list[EngineRun] = []
    greeting = [encode(Prompt("warm-up", ({"role": "user", "content": _WARM_UP},)), target.tokenizer)]
    for engine in (plain, drafting):
        engine.answer(greeting, sampling, 8, [0])
    with progress.task("plain against speculative", 2 * len(encoded) * config.max_new_tokens, "tokens") as task:
        for number, start in enumerate(range(0, len(encoded), config.batch_size)):
            chunk = encoded[start : start + config.batch_size]
            seeds = [config.seed * 100_003 + index for index in range(start, start + len(chunk))]
            found: dict[Engine, Answered] = {}
            try:
                for engine in (drafting, plain) if number % 2 else (plain, drafting):
                    found[engine] = engine.answer(chunk, sampling, config.max_new_tokens, seeds, task.advance)
            except ServerError as error:
                return runs, error
            runs.append(EngineRun(found[plain].answers, found[drafting].answers, found[drafting].speculation))
    return runs, None


def _answers(prompts: list[Prompt], encoded: list[list[int]], runs: list[EngineRun]) -> list[Example]:
    """What the plain engine wrote: the text that verification sees."""
    written = [generation.token_ids for run in runs for generation in run.plain]
    return [
        Example(prompt.id, tuple(ids), tuple(answer), (int(Provenance.TARGET),) * len(answer))
        for prompt, ids, answer in zip(prompts, encoded, written, strict=False)
    ]


def _differences(
    config: BenchConfig, pair: ModelPair, prompts: list[Prompt], encoded: list[list[int]], runs: list[EngineRun]
) -> list[dict[str, object] | None] | None:
    """Per prompt where both engines' greedy answers part; None where they sample."""
    if config.temperature:
        return None
    answers = [each for run in runs for each in zip(run.plain, run.speculative, strict=True)]
    judge = pair.target if config.target_is_present else None
    return [
        first_difference(judge, prompt, ids, *both)
        for prompt, ids, both in zip(prompts, encoded, answers, strict=False)
    ]
