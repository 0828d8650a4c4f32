"""The timed run of a bench in a real engine: every engine answers the same batches, each going first in turn."""

from __future__ import annotations

from collections.abc import Callable

from specdistill.data.prompts import Prompt, encode, in_chat
from specdistill.errors import ServerError
from specdistill.evaluation.interruption import Interruption
from specdistill.evaluation.latency import too_few_batches
from specdistill.models import LanguageModel
from specdistill.progress import Progress
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.engine import Answered, Engine
from specdistill.serving.engine_models import EngineModels
from specdistill.serving.engine_report import EngineRun
from specdistill.serving.engine_table import DEFAULT_LENGTH
from specdistill.serving.engines import Opened, engines
from specdistill.serving.speculation import Speculation, another_length

_WARM_UP = "Say hello."
"""Repeated in one prompt until that is as long as the usual one: some engines prepare themselves when they first meet a
long prompt. A prompt of the user's own would not do, since engines keep what they have read."""


def time_engines(
    config: BenchConfig,
    opened: Opened,
    target: LanguageModel,
    encoded: list[list[int]],
    progress: Progress,
    stop: Interruption,
    keep: Callable[[list[EngineRun]], None] | None = None,
) -> tuple[list[EngineRun], ServerError | None]:
    """Asks all engines batch by batch, each going first in turn; calls `keep` with what is done after each batch.

    Returns:
        The batches that were done before a Ctrl-C, and the failure that ended the run early or None.
    """
    runs: list[EngineRun] = []
    sampling, tokens, size = config.sampling, config.max_new_tokens, config.timing.batch_size
    remark = too_few_batches(len(encoded), size)
    if remark is not None:
        progress.say(remark)
    greeting = [_greeting(config, target, encoded)]
    every: list[Engine] = [opened.plain, opened.drafting, *opened.baselines.values()]
    for engine in every:
        counts = engine.answer(greeting, sampling, 8, [0]).speculation
        wrong = wrong_length(config, counts, answers=1) if engine is opened.drafting else None
        if wrong is not None:
            raise ServerError(wrong)
    with progress.task("plain against speculative", len(every) * len(encoded) * tokens, "tokens") as task:
        for number, start in enumerate(range(0, len(encoded), size)):
            chunk = encoded[start : start + size]
            seeds = config.timing.prompt_seeds(range(start, start + len(chunk)))
            answered: dict[Engine, Answered] = {}
            try:
                first = number % len(every)
                for engine in (*every[first:], *every[:first]):
                    answered[engine] = engine.answer(chunk, sampling, tokens, seeds, task.advance)
                speculative = answered[opened.drafting]
                others = {method: answered[engine] for method, engine in opened.baselines.items()}
                plain = answered[opened.plain].answers
                runs.append(EngineRun(plain, speculative.answers, speculative.speculation, others))
                if keep is not None:
                    keep(runs)
            except ServerError as error:
                return runs, error
            except (KeyboardInterrupt, Exception) as error:
                stop(error)
                return runs, None
    return runs, None


def _greeting(config: BenchConfig, target: LanguageModel, encoded: list[list[int]]) -> list[int]:
    """Token ids of the warm-up: about as many as the median prompt has, and no more unless that is shorter than one
    greeting."""

    def ids(times: int) -> list[int]:
        content = " ".join([_WARM_UP] * times)
        return encode(
            in_chat(Prompt("warm-up", ({"role": "user", "content": content},)), config.chat, "warm-up"),
            target.tokenizer,
        )

    once, twice = len(ids(1)), len(ids(2))
    usual = sorted(map(len, encoded))[len(encoded) // 2]
    return ids(1 + max(0, usual - once) // max(1, twice - once))


def time_again(
    models: EngineModels,
    context: int,
    encoded: list[list[int]],
    progress: Progress,
    stop: Interruption,
    config: BenchConfig,
) -> list[EngineRun]:
    """The batches of another configuration, with servers of its own.

    Raises:
        ServerError: A server failed.
    """
    with engines(config, models, config.num_draft_tokens or DEFAULT_LENGTH, context, progress) as opened:
        runs, failure = time_engines(config, opened, models.target, encoded, progress, stop)
    if failure is not None:
        raise failure
    return runs


def wrong_length(config: BenchConfig, counts: Speculation | None, answers: int) -> str | None:
    """Says that a server drafts another number of tokens than --num-draft-tokens; None where its counters agree."""
    length = config.num_draft_tokens or DEFAULT_LENGTH
    # transformers drafts in this process, as it is told to; a draft of another tokenizer counts in other tokens.
    if counts is None or config.engine_kind.place == "process" or config.method_kind.copies:
        return None
    found = another_length(counts, length, answers)
    if found is None:
        return None
    return (
        f"the server drafts {found:.3g} tokens at a time by its own counters, but --num-draft-tokens is {length}; set "
        "it to the number that the server was started with"
    )
