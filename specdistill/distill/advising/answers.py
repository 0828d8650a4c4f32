"""Answers that the advice is counted on: written by the target now, given with the prompts, or stored before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompt import Prompt, lacking_answers
from specdistill.data.prompts import check_ids
from specdistill.decoding.answers import write_answers
from specdistill.distill.advising.config import GIVEN, TARGET, AdviseConfig
from specdistill.distill.answers.given import check_some_text, given_answers, without_empty
from specdistill.distill.answers.shards import find_shards, load_rollouts
from specdistill.errors import ConfigError, DataError
from specdistill.evaluation.interruption import Interruption
from specdistill.models import LanguageModel
from specdistill.models.answer_end import answer_end
from specdistill.progress import Progress


@dataclass(frozen=True)
class FoundAnswers:
    """The answers."""

    examples: list[Example]
    seconds: float | None
    """Time in which the target wrote them; None where it did not."""


def check_directory(config: AdviseConfig) -> None:
    """Refuses a directory of answers that is not there.

    Raises:
        ConfigError: --answers names nothing.
        DataError: The directory holds no answers.
    """
    if config.answers in (TARGET, GIVEN):
        return
    if not Path(config.answers).is_dir():
        raise ConfigError(
            f"--answers {config.answers} is no directory; it takes target, given, or a directory that 'specdistill "
            "generate' wrote"
        )
    find_shards(Path(config.answers))


def check_given(config: AdviseConfig, prompts: Sequence[Prompt]) -> None:
    """Refuses prompts without the answers that --answers given asks for; needs no model.

    Raises:
        DataError: A prompt has none, or all are empty.
    """
    if config.answers != GIVEN:
        return
    if (lacking := lacking_answers(prompts)) is not None:
        raise DataError(f"{lacking}, which --answers given needs; --answers target lets the target answer")
    check_some_text(prompts)


def find_answers(
    config: AdviseConfig,
    target: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    progress: Progress,
    stop: Interruption,
) -> FoundAnswers:
    """Writes or reads one answer to each prompt.

    Args:
        config: The settings.
        target: Writes them; its tokenizer reads given ones.
        prompts, encoded: What is answered.
        progress: Where a bar and remarks go.
        stop: Takes a Ctrl-C; the answers that are done are then returned.

    Raises:
        DataError: Stored answers are broken, or of other prompts; all given answers are empty.
    """
    if config.answers == TARGET:
        start = time.perf_counter()
        limit, seed = config.max_new_tokens, config.timing.seed
        written = write_answers(target, prompts, encoded, config.sampling, limit, seed, progress, on_interrupt=stop)
        return FoundAnswers(written, time.perf_counter() - start)
    if config.answers == GIVEN:
        end = answer_end(target, prompts[0].chat_template_kwargs)
        examples, counts = given_answers(prompts, encoded, target.tokenizer, end, config.max_new_tokens)
        for example in examples:
            check_ids(example.answer_ids, target.tokenizer, target.vocab_size, f"the answer to {example.prompt_id!r}")
        counts.say(progress.say, len(prompts), config.max_new_tokens)
    else:
        examples = load_rollouts(Path(config.answers), prompts, encoded, target.vocab_size, copies=1)
        examples, _ = without_empty(examples, progress.say)
    return FoundAnswers(examples, None)
