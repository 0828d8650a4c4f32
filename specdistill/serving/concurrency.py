"""Several requests at a time in a real engine: the same servers, asked by more and more clients."""

from __future__ import annotations

from collections.abc import Sequence

from specdistill.errors import ServerError
from specdistill.evaluation.acceptance import PromptAcceptance, predicted_tau
from specdistill.evaluation.interruption import Interruption
from specdistill.evaluation.load import batched
from specdistill.evaluation.load_section import load_row, load_section
from specdistill.evaluation.report_load import Load
from specdistill.evaluation.statistics import ratio
from specdistill.progress import Progress
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.engine import Engine
from specdistill.serving.engine_report import EngineRun, round_cost

LoadRuns = dict[int, list[EngineRun]]
"""Requests at a time -> the batches."""


def at_most(config: BenchConfig) -> BenchConfig:
    """The settings to start servers with: they must take as many requests at a time as will ever be sent."""
    return config.replace(batch_size=max(config.timing.batch_size, *config.load.concurrency, 1))


def ask_under_load(
    config: BenchConfig,
    plain: Engine,
    drafting: Engine,
    encoded: list[list[int]],
    progress: Progress,
    stop: Interruption,
) -> LoadRuns:
    """Asks both engines with every number of requests of the settings; which engine goes first takes turns.

    Args:
        config: The settings.
        plain, drafting: The engines, warm.
        encoded: Prompts.
        progress: Where bars and failures go.
        stop: Ctrl-C; what was done until then is kept, and so it is where a server fails.
    """
    done: LoadRuns = {}
    for size in sorted(config.load.concurrency) if not stop else ():
        chosen = batched(len(encoded), size)
        title = f"plain against speculative, {size} at a time"
        try:
            with progress.task(title, 2 * len(chosen) * config.max_new_tokens, "tokens") as task:
                runs = []
                for number, start in enumerate(range(0, len(chosen), size)):
                    prompts = [encoded[prompt] for prompt in chosen[start : start + size]]
                    seeds = config.timing.prompt_seeds(range(start, start + size))
                    order = (drafting, plain) if number % 2 else (plain, drafting)
                    said = {
                        engine: engine.answer(prompts, config.sampling, config.max_new_tokens, seeds, task.advance)
                        for engine in order
                    }
                    runs.append(EngineRun(said[plain].answers, said[drafting].answers, said[drafting].speculation))
            done[size] = runs
        except ServerError as error:
            progress.say(f"--concurrency from {size} on is missing: {error}")
            break
        except KeyboardInterrupt as error:
            stop(error)
            break
    return done


def concurrency_section(
    config: BenchConfig,
    runs: LoadRuns,
    records: Sequence[PromptAcceptance] | None,
    num_draft_tokens: int,
    prompts: int,
    first_drafted: bool,
) -> Load | None:
    """`load` of the report; None where nothing was measured.

    Args:
        config: Its rule.
        runs: Result of `ask_under_load`.
        records: Scores of the plain engine's answers; None where the draft's tokens are not the target's.
        num_draft_tokens: Draft tokens per verification.
        prompts: Number of different prompts.
        first_drafted: Whether the prompt's own pass verifies a draft too.
    """
    tau = float("nan")
    if records is not None:
        columns = predicted_tau(records, config.served_rule, num_draft_tokens, first_drafted=first_drafted)
        tau = ratio(*columns).mean
    rows = {}
    for size, batches in runs.items():
        cost = round_cost(batches, first_drafted).mean
        rows[size] = load_row(
            batches, num_draft_tokens, prompts, verify_cost=None, round_cost=cost, predicted_speedup=tau / cost
        )
    return load_section(rows) if rows else None
