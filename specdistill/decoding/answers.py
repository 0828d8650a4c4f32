"""A model's answers to a set of prompts, as examples."""

from __future__ import annotations

from collections.abc import Sequence

from specdistill.data.batch import Example, Provenance
from specdistill.data.prompts import Prompt
from specdistill.decoding.autoregressive import generate_plain
from specdistill.decoding.sampling import Sampling
from specdistill.models import LanguageModel
from specdistill.progress import Progress

_SCORING_BATCH = 8


def write_answers(
    target: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    progress: Progress,
    name: str = "target writes answers",
) -> list[Example]:
    """Lets the target answer every prompt, several at a time; shorter prompts share a batch to waste less padding."""
    order = sorted(range(len(prompts)), key=lambda index: len(encoded[index]))
    answers: dict[int, Example] = {}
    with progress.task(name, len(prompts) * max_new_tokens, "tokens") as task:
        for start in range(0, len(order), _SCORING_BATCH):
            chosen = order[start : start + _SCORING_BATCH]
            written = generate_plain(
                target,
                [encoded[index] for index in chosen],
                sampling=sampling,
                max_new_tokens=max_new_tokens,
                seeds=[seed * 100_003 + index for index in chosen],
                on_tokens=lambda row, ids: task.advance(len(ids)),
            )
            for index, generation in zip(chosen, written, strict=True):
                ids = tuple(generation.token_ids)
                # Answers that ended early leave their share of the bar.
                task.advance(max_new_tokens - len(ids))
                answers[index] = Example(
                    prompts[index].id, tuple(encoded[index]), ids, (int(Provenance.TARGET),) * len(ids)
                )
    return [answers[index] for index in range(len(prompts))]
