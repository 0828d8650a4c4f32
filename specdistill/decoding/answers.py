"""Lets a model answer a set of prompts; the answers are examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specdistill.data.batch import Example, Provenance, split_by_tokens
from specdistill.data.prompts import Prompt
from specdistill.decoding.autoregressive import generate_plain
from specdistill.decoding.generation import as_example
from specdistill.decoding.guidance import Guidance
from specdistill.decoding.sampling import Sampling
from specdistill.models import LanguageModel
from specdistill.progress import Progress

_BATCH_SIZE = 8


def write_answers(
    target: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    progress: Progress,
    name: str = "target writes answers",
    on_interrupt: Callable[[BaseException], None] | None = None,
    guidance: Guidance | None = None,
) -> list[Example]:
    """Lets the target answer every prompt, several at a time. Prompts of similar length share a batch.

    Args:
        target: Writes the answers.
        prompts: The prompts, whose ids the examples carry.
        encoded: Token ids of each prompt.
        sampling: Temperature and filters.
        max_new_tokens: Limit per answer.
        seed: Each answer's seed is made from this one and the prompt's position.
        progress: Shows the bar.
        name: Title of the bar.
        on_interrupt: Called with a Ctrl-C or a failure; the answers that are done are then returned. None passes it on.
        guidance: Classifier-free guidance of the target.

    Returns:
        One example per prompt, in order; only the finished ones after a Ctrl-C or failure.

    Raises:
        DataError: A prompt is empty or does not fit the context.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    answers: dict[int, Example] = {}
    try:
        with progress.task(name, len(prompts) * max_new_tokens, "tokens") as task:
            lengths = [len(encoded[index]) + max_new_tokens for index in order]
            for batch in split_by_tokens(lengths, _BATCH_SIZE):
                chosen = [order[place] for place in batch]
                written = generate_plain(
                    target,
                    [encoded[index] for index in chosen],
                    sampling=sampling,
                    max_new_tokens=max_new_tokens,
                    seeds=[seed * 100_003 + index for index in chosen],
                    on_tokens=lambda row, ids: task.advance(len(ids)),
                    guidance=guidance,
                )
                for index, generation in zip(chosen, written, strict=True):
                    # The bar counts max_new_tokens for every answer, also for those that ended early.
                    task.advance(max_new_tokens - len(generation.token_ids))
                    answers[index] = as_example(prompts[index].id, encoded[index], generation, Provenance.TARGET)
    except (KeyboardInterrupt, Exception) as error:
        if on_interrupt is None:
            raise
        on_interrupt(error)
    return [answers[index] for index in range(len(prompts)) if index in answers]
