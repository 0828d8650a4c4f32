"""The whole measurement behind `specdistill bench`, from two model names to the report of METRICS."""

from __future__ import annotations

from typing import Any

import torch

from specdistill.data.prompts import encode_all, load_prompts, spread_over_categories
from specdistill.decoding import AutoLength, ConfidenceLength, Sampling, SpeculativeDecoder
from specdistill.decoding.answers import write_answers
from specdistill.decoding.costs import Costs, measure_costs
from specdistill.decoding.draft_length import DraftLength
from specdistill.evaluation import acceptance, economics, latency
from specdistill.evaluation.config import BenchConfig
from specdistill.evaluation.sections import (
    acceptance_section,
    compare_section,
    economics_section,
    latency_section,
    lossless_section,
    model_section,
    setup_section,
)
from specdistill.evaluation.statistics import ratio
from specdistill.models import LanguageModel, load, vocabulary
from specdistill.models.packed import check_packable, pack
from specdistill.models.pair import load_pair, resolve_device
from specdistill.progress import Progress, Quiet


def run_bench(config: BenchConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Measures a draft against its target.

    Order: the target writes answers; draft (and `compare`) are scored on them; the steps' costs are timed; the draft
    length is chosen; then plain and speculative decoding are timed against each other.

    Args:
        config: What to measure.
        progress: Where bars go.

    Returns:
        The report, JSON-ready, in the schema of METRICS (version 1).

    Raises:
        SpecdistillError: Bad input; nothing was measured then.
    """
    progress = progress or Quiet()
    for role, name in (("target", config.target), ("draft", config.draft), ("compare", config.compare)):
        if name is not None:
            load.check_exists(name, role)
    if config.pack != "none":
        check_packable(config.pack, resolve_device(config.device))
    prompts = spread_over_categories(load_prompts(config.prompts), config.num_prompts)
    if config.threads:
        torch.set_num_threads(config.threads)
    pair = load_pair(config.target, config.draft, device=config.device, dtype=config.dtype, say=progress.say)
    target, draft = pair.target, pair.draft
    other = _load_compare(config, pair.target, progress)
    packing = None
    if config.pack != "none":
        packing = sum(pack(model, config.pack) for model in (target, draft, other) if model is not None)
    room = min(target.max_context, draft.max_context) - config.max_new_tokens
    encoded = encode_all(prompts, target.tokenizer, room)
    sampling = Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)

    answers = write_answers(target, prompts, encoded, sampling, config.max_new_tokens, config.seed, progress)
    target_states: acceptance.HiddenCache = {}
    records = _score(target, draft, answers, sampling, progress, target_states)
    rule = config.predicting_rule
    taus = {
        gamma: ratio(*acceptance.predicted_tau(records, rule, gamma)).mean
        for gamma in range(1, config.max_draft_tokens + 1)
    }
    context = sorted(map(len, encoded))[len(encoded) // 2] + config.max_new_tokens // 2
    context = min(context, room + config.max_new_tokens - config.max_draft_tokens - 1)
    with progress.task("timing single steps", 8 * (config.max_draft_tokens + 2), "passes") as task:
        costs = measure_costs(
            target,
            draft,
            batch_size=config.batch_size,
            max_draft_tokens=config.max_draft_tokens,
            context=context,
            on_pass=task.advance,
        )
    gamma = config.num_draft_tokens or max(
        taus,
        key=lambda length: economics.speedup(taus[length], length, costs.cost_ratio, costs.verify_cost[length + 1]),
    )
    decoder = SpeculativeDecoder(
        target,
        draft,
        num_draft_tokens=_draft_length(config, gamma, costs),
        sampling=sampling,
        rule=config.served_rule,
        lenience=config.lenience,
    )
    if config.draft_length == "auto" or (not config.num_draft_tokens and config.draft_length == "confidence"):
        gamma = config.max_draft_tokens
    timed = min(config.latency_prompts or len(prompts), len(prompts))
    runs = _time(config, target, decoder, encoded[:timed], progress)
    latency_report, speedup = latency_section(runs)
    differences = _lossless(config, target, draft, prompts[:timed], encoded, runs, gamma)

    alpha = ratio(*acceptance.alpha_sums(records, rule)).mean
    verdict = economics.judge(costs, taus, gamma, alpha, (speedup.mean, speedup.low, speedup.high))
    report: dict[str, Any] = {
        "schema": 1,
        "target": model_section(target),
        "draft": model_section(draft),
        "setup": setup_section(config, target, gamma, len(prompts), timed, packing),
        "acceptance": acceptance_section(prompts, records, runs, rule, gamma, taus),
        "latency": latency_report,
        "economics": economics_section(verdict, costs),
        "lossless": lossless_section(config.lossy, differences),
    }
    if other is not None:
        other_records = _score(target, other, answers, sampling, progress, target_states)
        report["compare"] = compare_section(other, records, other_records, rule, gamma)
    return report


def _draft_length(config: BenchConfig, gamma: int, costs: Costs) -> int | DraftLength:
    if config.draft_length == "auto":
        return AutoLength(costs, config.max_draft_tokens)
    if config.draft_length == "confidence":
        return ConfidenceLength(config.num_draft_tokens or config.max_draft_tokens, config.confidence)
    return gamma


def _load_compare(config: BenchConfig, target: LanguageModel, progress: Progress) -> LanguageModel | None:
    if config.compare is None:
        return None
    source = load.find(config.compare, "compare", progress.say)
    vocabulary.check_same_vocabulary(target.tokenizer, source.tokenizer, target.name, source.name)
    return load.load_model(source, "compare", device=str(target.device), dtype=target.model.dtype)


def _score(target, draft, answers, sampling, progress: Progress, target_states: acceptance.HiddenCache):
    with progress.task(f"scoring {draft.name}", len(answers), "answers") as task:
        return acceptance.score(target, draft, answers, sampling, target_cache=target_states, on_sequences=task.advance)


def _time(config: BenchConfig, target, decoder, encoded, progress: Progress) -> list[latency.TimedRun]:
    latency.warm_up(target, decoder, encoded[0])
    total = 2 * len(encoded) * config.max_new_tokens
    with progress.task("plain against speculative", total, "tokens") as task:
        return latency.time_both(
            target,
            decoder,
            encoded,
            batch_size=config.batch_size,
            max_new_tokens=config.max_new_tokens,
            seeds=[config.seed * 100_003 + index for index in range(len(encoded))],
            on_tokens=lambda row, ids: task.advance(len(ids)),
        )


def _lossless(config: BenchConfig, target, draft, prompts, encoded, runs, gamma) -> list[dict[str, object] | None]:
    """Greedy runs are compared as they are; when the bench samples, a few greedy ones are made for the check."""
    if config.lossy:
        return []
    if config.temperature == 0:
        pairs = [pair for run in runs for pair in zip(run.plain, run.speculative, strict=True)]
        return [
            latency.first_difference(target, prompt, ids, *pair)
            for prompt, ids, pair in zip(prompts, encoded[: len(prompts)], pairs, strict=True)
        ]
    few = min(4, len(prompts))
    return latency.greedy_check(
        target,
        draft,
        prompts[:few],
        encoded[:few],
        num_draft_tokens=gamma,
        max_new_tokens=min(48, config.max_new_tokens),
    )
