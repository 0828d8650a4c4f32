"""The bench report of a real engine, in the same schema as our decoder's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from specdistill.data.prompts import Prompt
from specdistill.evaluation import economics
from specdistill.evaluation.acceptance import PromptAcceptance, alpha_sums, predicted_tau
from specdistill.evaluation.config import BenchConfig
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.sections import (
    economics_section,
    latency_section,
    lengths_section,
    lossless_section,
    model_section,
    scored_section,
)
from specdistill.evaluation.statistics import Estimate, of_sums, ratio
from specdistill.models.pair import ModelPair
from specdistill.serving.engine import Engine
from specdistill.serving.speculation import Speculation, total_of


@dataclass(frozen=True)
class EngineRun(TimedRun):
    """One batch of prompts through both engines."""

    speculation: Speculation | None
    """The drafting engine's own counts over the batch; None where it tells none."""


def build(
    config: BenchConfig,
    pair: ModelPair,
    prompts: Sequence[Prompt],
    records: Sequence[PromptAcceptance],
    runs: Sequence[EngineRun],
    num_draft_tokens: int,
    differences: list[dict[str, object] | None] | None,
    engine: Engine,
) -> dict[str, Any]:
    """Puts the report together.

    Args:
        config: What was asked for.
        pair: As scored.
        prompts: Those that were done.
        records: Scores of the plain engine's answers.
        runs: Both engines' answers, in batches.
        num_draft_tokens: gamma.
        differences: Per prompt, where greedy answers part; None where the engines sampled.
        engine: The one that drafted.
    """
    rule = config.served_rule
    columns = predicted_tau(records, rule, num_draft_tokens, first_drafted=engine.first_drafted)
    predicted = ratio(*columns)
    latency, speedup = latency_section(runs)
    cost = _round_cost(runs, engine.first_drafted)
    alpha = ratio(*alpha_sums(records, rule)).mean
    facts = f"a round of {num_draft_tokens} draft tokens and their check takes {cost.mean:.2f} target steps"
    verdict = economics.judge_rounds(
        {num_draft_tokens: cost.mean},
        {num_draft_tokens: predicted.mean},
        num_draft_tokens,
        alpha,
        (speedup.mean, speedup.low, speedup.high),
        facts,
    )
    taus = {
        gamma: ratio(*predicted_tau(records, rule, gamma, first_drafted=engine.first_drafted)).mean
        for gamma in range(1, max(config.max_draft_tokens, num_draft_tokens) + 1)
    }
    scored = scored_section(prompts, records, rule, num_draft_tokens, taus)
    return {
        "schema": 1,
        "target": model_section(pair.target),
        "draft": model_section(pair.draft),
        "setup": _setup(config, pair, num_draft_tokens, len(prompts), engine.version),
        "acceptance": _counted(runs, engine, columns, predicted) | scored,
        "latency": latency,
        "economics": economics_section(verdict) | {"round_cost_ci95": [cost.low, cost.high]},
        "lossless": _lossless(differences),
    }


def _counted(
    runs: Sequence[EngineRun], engine: Engine, predicted_columns: tuple[np.ndarray, np.ndarray], predicted: Estimate
) -> dict[str, Any]:
    """What the engine counted, and how far that is from what one pass over the answers had predicted."""
    told = [run for run in runs if run.speculation is not None]
    counts = [run.speculation for run in told]
    total = total_of(counts)
    if total is None:
        nothing = Estimate(float("nan"), float("nan"), float("nan")).to_json()
        return {
            "by_position": [],
            "by_position_conditional": [],
            "mean_acceptance_length": nothing,
            "mean_acceptance_length_macro": float("nan"),
            "acceptance_rate": nothing,
            "counters": {"source": engine.counters},
        }
    emitted = np.array([_tokens(run, engine.first_drafted) for run in told], dtype=float)
    rounds, proposed, accepted = (
        np.array([getattr(each, name) for each in counts], dtype=float) for name in ("rounds", "proposed", "accepted")
    )
    lengths = lengths_section(emitted, rounds, accepted, proposed)
    measured = lengths["mean_acceptance_length"]["mean"]
    joint = [kept / total.rounds for kept in total.accepted_by_position or () if total.rounds]
    # Predicted and measured sums of the same batches: prompts of one batch share a counter.
    sizes = np.cumsum([len(run.plain) for run in told])[:-1]
    tokens, expected = ([part.sum() for part in np.split(column, sizes)] for column in predicted_columns)
    off = of_sums(lambda a, b, c, d: (a / b) / (c / d) - 1, emitted, rounds, tokens, expected)
    return {
        "by_position": joint,
        "by_position_conditional": [
            now / then if then else 0.0 for now, then in zip(joint, [1.0, *joint], strict=False)
        ],
        **lengths,
        "counters": {
            "source": engine.counters,
            "rounds": total.rounds,
            "proposed": total.proposed,
            "accepted": total.accepted,
            # As the engine itself would put it; an answer's last draft may reach beyond its end.
            "mean_acceptance_length": 1 + total.accepted / total.rounds if total.rounds else float("nan"),
        },
        "prediction": {
            "mean_acceptance_length": predicted.to_json(),
            "measured": measured,
            "measured_over_predicted_minus_1": off.to_json(),
        },
    }


def _lossless(differences: list[dict[str, object] | None] | None) -> dict[str, Any]:
    if differences is None:
        return {"checked": False, "lossy": False, "greedy_identical": False, "prompts_compared": 0, "differences": []}
    return lossless_section(False, differences)


def _round_cost(runs: Sequence[EngineRun], first_drafted: bool) -> Estimate:
    """Seconds of a round over seconds of a plain step, both without the prompt's own pass where that is no round.

    An engine that does not count rounds has none: NaN.
    """
    told = [run for run in runs if run.speculation is not None and run.speculation.rounds]
    if not told:
        return Estimate(float("nan"), float("nan"), float("nan"))
    round_seconds, rounds, step_seconds, steps = [], [], [], []
    for run in told:
        assert run.speculation is not None
        # Rows of a batch step together: a row's share of the rounds is what they all waited for.
        rows = len(run.speculative)
        round_seconds.append(run.speculative[0].seconds - max(each.first_token_seconds for each in run.speculative))
        rounds.append(run.speculation.rounds / rows - first_drafted)
        step_seconds.append(run.plain[0].seconds - max(each.first_token_seconds for each in run.plain))
        steps.append(sum(len(each.token_ids) - 1 for each in run.plain) / rows)
    return of_sums(lambda a, b, c, d: (a / b) / (c / d), round_seconds, rounds, step_seconds, steps)


def _tokens(run: EngineRun, first_drafted: bool) -> int:
    return sum(len(each.token_ids) - (not first_drafted) for each in run.speculative)


def _setup(config: BenchConfig, pair: ModelPair, gamma: int, prompts: int, version: str) -> dict[str, Any]:
    copied = ("temperature", "top_k", "top_p", "min_p", "batch_size", "max_new_tokens", "seed", "engine", "engine_args")
    return {
        "device": "server" if config.engine == "openai-server" else str(pair.draft.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "engine_version": version,
        **{name: getattr(config, name) for name in copied},
        "rule": config.served_rule,
        "predicting_rule": config.served_rule,
        "lossy": False,
        "num_draft_tokens": gamma,
        "prompts": prompts,
        "latency_prompts": prompts,
        "prompt_source": config.prompts,
    }
