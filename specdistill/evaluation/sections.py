"""The parts of the bench report, computed from records and timed runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from specdistill.data.prompts import Prompt
from specdistill.decoding import Generation
from specdistill.decoding.costs import Costs
from specdistill.evaluation.acceptance import ALPHA_RULES, PromptAcceptance, alpha_sums, predicted_tau
from specdistill.evaluation.config import BenchConfig
from specdistill.evaluation.economics import Economics
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.statistics import Estimate, of_sums, paired_difference, ratio
from specdistill.models import LanguageModel


def model_section(model: LanguageModel) -> dict[str, Any]:
    """`target` and `draft` of the report."""
    section: dict[str, Any] = {
        "name": model.name,
        "parameters": model.num_parameters,
        "vocab_size": model.vocab_size,
        "dtype": str(model.model.dtype).removeprefix("torch."),
    }
    if model.kept_ids is not None:
        section["head_size"] = len(model.kept_ids)
    return section


def setup_section(
    config: BenchConfig,
    target: LanguageModel,
    num_draft_tokens: int,
    prompts: int,
    latency_prompts: int,
    packing_seconds: float | None,
) -> dict[str, Any]:
    """`setup` of the report; packing_seconds is None where weights were not packed."""
    copied = (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "lenience",
        "draft_length",
        "batch_size",
        "max_new_tokens",
        "seed",
    )
    return {
        "device": str(target.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "engine": "specdistill",
        **{name: getattr(config, name) for name in copied},
        "rule": config.served_rule,
        "predicting_rule": config.predicting_rule,
        # Packed to int8, tokens that share a pass share a scale: checking several decides otherwise than one by one.
        "lossy": config.lossy or config.pack == "int8",
        "pack": config.pack,
        "packing_seconds": packing_seconds,
        "num_draft_tokens": num_draft_tokens,
        "prompts": prompts,
        "latency_prompts": latency_prompts,
        "prompt_source": config.prompts,
    }


def acceptance_section(
    prompts: Sequence[Prompt],
    records: Sequence[PromptAcceptance],
    runs: Sequence[TimedRun],
    rule: str,
    num_draft_tokens: int,
    taus: dict[int, float],
) -> dict[str, Any]:
    """`acceptance` of the report: alphas are teacher-forced, the rest comes from the real speculative runs."""
    generations = [generation for run in runs for generation in run.speculative]
    joint, conditional = by_position(generations, num_draft_tokens)
    emitted, calls = _rounds(generations)
    proposed = np.array([sum(r.proposed for r in g.rounds) for g in generations], dtype=float)
    accepted = np.array([sum(r.accepted for r in g.rounds) for g in generations], dtype=float)
    return {
        "by_position": joint,
        "by_position_conditional": conditional,
        **lengths_section(emitted, calls, accepted, proposed),
        **scored_section(prompts, records, rule, num_draft_tokens, taus),
    }


def lengths_section(
    emitted: np.ndarray, calls: np.ndarray, accepted: np.ndarray, proposed: np.ndarray
) -> dict[str, Any]:
    """What decoding counted, one value per prompt (or per batch that shares a counter), as the report's rates.

    Args:
        emitted: Tokens that verifications put out.
        calls: Verifications.
        accepted, proposed: Draft tokens.
    """
    per_prompt = emitted[calls > 0] / calls[calls > 0]
    return {
        "mean_acceptance_length": ratio(emitted, calls).to_json(),
        "mean_acceptance_length_macro": float(per_prompt.mean()) if len(per_prompt) else float("nan"),
        "acceptance_rate": ratio(accepted, proposed).to_json(),
    }


def scored_section(
    prompts: Sequence[Prompt],
    records: Sequence[PromptAcceptance],
    rule: str,
    num_draft_tokens: int,
    taus: dict[int, float],
) -> dict[str, Any]:
    """What one pass over the target's answers says: alphas, predictions, categories."""
    categories: dict[str, Any] = {}
    for name in dict.fromkeys(prompt.category for prompt in prompts):
        chosen = [index for index, prompt in enumerate(prompts) if prompt.category == name]
        subset = [records[index] for index in chosen]
        categories[name] = {
            **{f"alpha_{each}": ratio(*alpha_sums(subset, each)).mean for each in subset[0].alpha},
            # Predicted from one pass over each answer, so that categories outside the timed prompts have it too.
            "mean_acceptance_length": ratio(*predicted_tau(subset, rule, num_draft_tokens)).mean,
            "prompts": len(chosen),
        }
    return {
        "tokens_scored": int(sum(record.num_tokens for record in records)),
        **alphas(records),
        "predicted_mean_acceptance_length": {str(gamma): tau for gamma, tau in taus.items()},
        "by_category": categories,
    }


def alphas(records: Sequence[PromptAcceptance]) -> dict[str, Any]:
    """`alpha` of every rule and, where it says something else, `alpha_at_temperature_1` of the rules that sample."""
    known = records[0].alpha
    found: dict[str, Any] = {"alpha": {each: ratio(*alpha_sums(records, each)).to_json() for each in known}}
    if records[0].alpha_at_1:
        found["alpha_at_temperature_1"] = {
            each: ratio(*alpha_sums(records, each, at_1=True)).to_json() for each in records[0].alpha_at_1
        }
    return found


def by_position(generations: Sequence[Generation], num_draft_tokens: int) -> tuple[list[float], list[float]]:
    """Joint survival S_i and P(accept i | 1..i-1 accepted), over the rounds in which position i was proposed."""
    rounds = [entry for generation in generations for entry in generation.rounds]
    joint, conditional = [], []
    for position in range(1, num_draft_tokens + 1):
        proposed = [entry for entry in rounds if entry.proposed >= position]
        reached = [entry for entry in proposed if entry.accepted >= position - 1]
        kept = sum(entry.accepted >= position for entry in proposed)
        joint.append(kept / len(proposed) if proposed else 0.0)
        conditional.append(kept / len(reached) if reached else 0.0)
    return joint, conditional


def latency_section(runs: Sequence[TimedRun]) -> tuple[dict[str, Any], Estimate]:
    """`latency` of the report and the speed-up in tokens/s, paired by prompt (by batch where prompts share one)."""
    columns = [_time_and_tokens([run.plain for run in runs]), _time_and_tokens([run.speculative for run in runs])]
    speedup = of_sums(lambda a, b, c, d: (a / b) / (c / d), *columns[0], *columns[1])
    # Of an engine that is watched from outside nothing is known.
    inside = sum(run.speculative[0].model_seconds for run in runs) or float("nan")
    return {
        "baseline": _speed([run.plain for run in runs]),
        "speculative": _speed([run.speculative for run in runs]),
        "speedup": speedup.to_json(),
        "engine_efficiency": inside / columns[1][0].sum(),
    }, speedup


def economics_section(found: Economics, costs: Costs | None = None) -> dict[str, Any]:
    """`economics` of the report, with the two steps' times that METRICS leaves out, where single steps were timed."""
    section = dataclasses.asdict(found)
    for name in ("verify_cost", "round_cost", "predicted_speedup"):
        section[name] = {str(key): value for key, value in section[name].items()}
    if costs is None:
        return section
    steps = {"target_step_seconds": costs.target_step_seconds, "draft_step_seconds": costs.draft_step_seconds}
    return section | steps


def lossless_section(lossy: bool, differences: Sequence[dict[str, object] | None]) -> dict[str, Any]:
    """`lossless` of the report: one entry per compared prompt, None where the outputs are equal."""
    return {
        "checked": not lossy,
        "lossy": lossy,
        "greedy_identical": not lossy and not any(differences),
        "prompts_compared": len(differences),
        "differences": [difference for difference in differences if difference],
    }


def compare_section(
    other: LanguageModel,
    records: Sequence[PromptAcceptance],
    other_records: Sequence[PromptAcceptance],
    rule: str,
    num_draft_tokens: int,
) -> dict[str, Any]:
    """`compare` of the report: the other draft's alphas, and draft minus other, paired by prompt."""
    difference: dict[str, Any] = {
        each: paired_difference(alpha_sums(records, each), alpha_sums(other_records, each)).to_json()
        for each in ALPHA_RULES
    }
    at_1 = {
        each: paired_difference(
            alpha_sums(records, each, at_1=True), alpha_sums(other_records, each, at_1=True)
        ).to_json()
        for each in records[0].alpha_at_1
    }
    ours, theirs = predicted_tau(records, rule, num_draft_tokens), predicted_tau(other_records, rule, num_draft_tokens)
    return {
        "draft": model_section(other),
        **alphas(other_records),
        "predicted_mean_acceptance_length": ratio(*theirs).to_json(),
        "difference": {
            **difference,
            **({"at_temperature_1": at_1} if at_1 else {}),
            "predicted_mean_acceptance_length": paired_difference(ours, theirs).to_json(),
        },
    }


def _rounds(generations: Sequence[Generation]) -> tuple[np.ndarray, np.ndarray]:
    emitted = np.array([sum(entry.emitted for entry in g.rounds) for g in generations], dtype=float)
    return emitted, np.array([len(g.rounds) for g in generations], dtype=float)


def _time_and_tokens(batches: Sequence[list[Generation]]) -> tuple[np.ndarray, np.ndarray]:
    seconds = np.array([batch[0].seconds for batch in batches])
    return seconds, np.array([sum(len(g.token_ids) for g in batch) for batch in batches], dtype=float)


def _speed(batches: Sequence[list[Generation]]) -> dict[str, float]:
    seconds, tokens = _time_and_tokens(batches)
    first = np.array([g.first_token_seconds for batch in batches for g in batch])
    # Per row: what one user waits between two tokens after the first.
    following = sum(max(len(g.token_ids) for g in batch) - 1 for batch in batches)
    after = sum(batch[0].seconds - batch[0].first_token_seconds for batch in batches)
    return {
        "tokens_per_second": float(tokens.sum() / seconds.sum()),
        "time_to_first_token": float(first.mean()),
        "time_per_output_token": float(after / following) if following else float("nan"),
    }
