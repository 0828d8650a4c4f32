"""Which tokens of a text a parallel draft guesses from: every one, or those where its own rounds would begin."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from specdistill.data.batch import Example, collate
from specdistill.data.mask_tokens import drop_masks, every_mask
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.sequences.measurements import Measurements
from specdistill.distill.sequences.sources import Source, Wrapped
from specdistill.distill.training.parallel_rows import guessing_rows
from specdistill.distill.training.parallel_settings import ParallelSettings
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.models import LanguageModel


class Anchored(Wrapped):
    """A source whose examples say how many masks stand behind each of their tokens.

    The choice depends on the step and the example alone, so that a resumed run, or one on more processes, trains on the
    same masks.

    Args:
        source: Gives the examples.
        draft: A parallel draft; it is asked where its rounds begin.
        settings: Anchors, and how many masks are kept.
        seed: Random seed of the run.
        say: Where it is said, once, that text holds the mask token, or that answers are too short.
        ranks: Processes that train together.
    """

    def __init__(
        self,
        source: Source,
        draft: LanguageModel,
        settings: ParallelSettings,
        seed: int,
        say: Callable[[str], None],
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(source)
        self._ranks = ranks
        self._draft, self._settings, self._seed, self._say = draft, settings, seed, say
        self._warned = False
        self._deepest: int | None = 0
        """Guess furthest ahead that a text so far could teach; None once that was looked at."""

    def next_batch(self, step: int) -> list[Example]:
        examples = super().next_batch(step)
        self._warn(examples)
        return [self._with_masks(example, step) for example in examples]

    def measurements(self, *, reset: bool = False) -> Measurements:
        """The other source's; a reset is an evaluation, before the first of which short answers are said."""
        if reset:
            self._warn_of_short_answers()
        return super().measurements(reset=reset)

    def _warn_of_short_answers(self) -> None:
        """Answers may be shorter than the held-out ones, which only measure a guess, and may be written on the way."""
        if self._deepest is None:
            return
        # Each process has seen its share of the answers alone.
        deepest, wanted = max(self._ranks.gather([self._deepest])), self._settings.parallel
        self._deepest = None
        if not 0 < deepest < wanted:
            return
        lower = f"lower --parallel to {deepest}, or " if deepest > 1 else ""
        self._say(
            f"warning: --parallel {wanted}, but the answers trained on so far are too short to teach guesses from "
            f"{deepest + 1} on; {lower}train on longer answers"
        )

    def _warn(self, examples: list[Example]) -> None:
        """Prompts are checked before the mask token is chosen; answers come later."""
        drafting = self._draft.parallel
        assert drafting is not None, "a parallel draft's anchors"
        if self._warned or not any(drafting.mask_id in example.answer_ids for example in examples):
            return
        self._warned = True
        self._say(
            f"warning: answers hold token {drafting.mask_id}, which is this draft's mask token: it learns to guess "
            "behind real text as behind a mask; --mask-token names an id that they never hold"
        )

    def _with_masks(self, example: Example, step: int) -> Example:
        settings, length = self._settings, len(example.answer_ids)
        starts = None if settings.anchors == "all" else round_starts(self._draft, example, settings.parallel)
        seed = f"{self._seed} {step} {example.prompt_id} {example.answer_ids}"
        masks = every_mask(length, settings.parallel, starts)
        if self._deepest is not None:
            self._deepest = max(self._deepest, max(masks) + 1)
        kept = drop_masks(masks, settings.parallel_keep, settings.parallel_keep_least, seed)
        return dataclasses.replace(example, masks=kept)


def round_starts(draft: LanguageModel, example: Example, num_tokens: int) -> list[int]:
    """First tokens of the draft's rounds on a text, as numbers among the answer's tokens.

    A round keeps the draft's likeliest tokens while they are the text's, and the verification adds one token. The first
    token of an answer is the target's, from its pass over the prompt.

    Args:
        draft: A parallel draft.
        example: The text.
        num_tokens: Tokens that the draft guesses per pass.
    """
    length = len(example.answer_ids)
    right = _right_guesses(draft, example, num_tokens)
    starts, start = [], 1
    while start < length:
        starts.append(start)
        kept = next((ahead for ahead in range(num_tokens) if not right.get((start, ahead + 1), False)), num_tokens)
        start += kept + 1
    return starts


def _right_guesses(draft: LanguageModel, example: Example, num_tokens: int) -> dict[tuple[int, int], bool]:
    """(first token of the round, tokens looked ahead) -> whether the draft's likeliest token is the text's."""
    length = len(example.answer_ids)
    if length < 2:
        return {}
    batch = collate([dataclasses.replace(example, masks=every_mask(length, num_tokens))]).to(draft.device)
    with draft.generating():
        rows, guesses = guessing_rows(draft, batch)
        blocks = logit_blocks(rows, draft.vocab_size)
        guessed = torch.cat([draft.to_token_ids(draft.own_logits(rows[block]).argmax(-1)) for block in blocks])
    right = guessed == batch.labels[guesses.predicted]
    rounds = zip(guesses.firsts.tolist(), guesses.depths.tolist(), strict=True)
    return dict(zip(rounds, right.tolist(), strict=True))
