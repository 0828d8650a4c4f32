"""Which of a model's answers are right, how many there are, and which of them best-of-n trains on.

Source: Bansal et al. 2024 (arXiv 2408.16737) for coverage, diversity and false positives, and for training on every
right answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.data.scorers import Scorer, check_scorer
from specdistill.distill.answers.scorers import best_of_n
from specdistill.distill.answers.settings import JudgeSettings
from specdistill.errors import ConfigError, DataError
from specdistill.evaluation.summaries import RightAnswers
from specdistill.models import LanguageModel

RIGHT = 1.0
"""Score of a right answer where --score-threshold is left out."""


@dataclass(frozen=True)
class Judge:
    """Tells right answers from wrong ones."""

    name: str
    """The scorer's name, for messages."""
    scorer: Scorer | None
    """None scores by the target's likelihood, which knows no right and wrong."""
    threshold: float | None
    """Score from which on an answer is right; None where no answer is wrong."""
    strict: Scorer | None = None
    """A stricter scorer of right answers; the same threshold holds."""

    def scores(self, examples: Sequence[Example], prompts: Sequence[Prompt], model: LanguageModel) -> list[float]:
        """Score of each example, whose ids `model` decodes."""
        assert self.scorer is not None, "the target's likelihood is no score of a text"
        known = {prompt.id: prompt for prompt in prompts}
        return [self.scorer(known[row.prompt_id], model.decode(row.answer_ids)) for row in examples]

    def right(self, examples: Sequence[Example], scores: Sequence[float]) -> list[Example]:
        """Examples that score enough, in order."""
        assert self.threshold is not None, "without a threshold no answer is wrong"
        return [row for row, score in zip(examples, scores, strict=True) if score >= self.threshold]

    def example(
        self, examples: Sequence[Example], scores: Sequence[float], prompts: Sequence[Prompt], model: LanguageModel
    ) -> str:
        """The first wrong answer, or the first one where all are right: prompt, answer, what was wanted, and the score.

        Args:
            examples: At least one sampled answer.
            scores: From `scores`.
            prompts: All that were asked.
            model: Its tokenizer decodes the answers.
        """
        least = -math.inf if self.threshold is None else self.threshold
        place = next((place for place, score in enumerate(scores) if score < least), 0)
        prompt = next(prompt for prompt in prompts if prompt.id == examples[place].prompt_id)
        wanted = "" if prompt.answer is None else f", wanted {_shortened(prompt.answer)}"
        asked = prompt.messages[-1].get("content") if prompt.messages else prompt.id
        answer = _shortened(model.decode(examples[place].answer_ids))
        return f"prompt {_shortened(str(asked), 80)}, answer {answer}{wanted}, score {scores[place]:g}"

    def count(
        self,
        examples: Sequence[Example],
        scores: Sequence[float],
        prompts: Sequence[Prompt],
        model: LanguageModel,
    ) -> RightAnswers:
        """Counts right answers, the prompts that they cover, their different texts, and false positives.

        Args:
            examples: All sampled answers.
            scores: From `scores`.
            prompts: All that were asked.
            model: Its tokenizer decodes the answers.
        """
        right = self.right(examples, scores)
        false_positives = None
        if self.strict is not None:
            strict = Judge(self.name, self.strict, self.threshold)
            false_positives = len(right) - len(strict.right(right, strict.scores(right, prompts, model)))
        return RightAnswers(
            prompts=len(prompts),
            answers=len(examples),
            right=len(right),
            covered=len({row.prompt_id for row in right}),
            distinct_right=len(distinct(right, model)),
            false_positives=false_positives,
        )


def _shortened(text: str, most: int = 200) -> str:
    """The text in quotes, on one line; of a longer one its beginning and its end, which scorers look at."""
    half = (most - 5) // 2
    return repr(text if len(text) <= most else f"{text[:half]} ... {text[-half:]}")


def build_judge(settings: JudgeSettings, prompts: Sequence[Prompt], *, threshold_needed: bool) -> Judge:
    """Finds the scorers before any model is loaded.

    Args:
        settings: Their names, and the threshold.
        prompts: All that will be answered.
        threshold_needed: Whether a function's answers are right or wrong even where no threshold is set.

    Raises:
        ConfigError: No such scorer, or a stricter one where no answer is wrong.
        DataError: It compares with the field answer, and a prompt has none.
    """
    scorer = check_scorer(settings.scorer, prompts)
    threshold = settings.score_threshold
    # A function may be any measure, and the best answer is kept then; a named scorer gives 1 for right and 0 for wrong.
    if threshold is None and scorer is not None and (threshold_needed or ":" not in settings.scorer):
        threshold = RIGHT
    if settings.strict_scorer is None:
        return Judge(settings.scorer, scorer, threshold)
    if threshold is None:
        raise ConfigError("--strict-scorer judges right answers: say with --score-threshold from which score on one is")
    return Judge(
        settings.scorer,
        scorer,
        threshold,
        check_scorer(settings.strict_scorer, prompts, likelihood=False, flag="--strict-scorer"),
    )


def distinct(examples: Sequence[Example], model: LanguageModel) -> list[Example]:
    """Each text to a prompt once, the first one, in order; white space around it does not count."""
    first: dict[tuple[str, str], Example] = {}
    for row in examples:
        first.setdefault((row.prompt_id, model.decode(row.answer_ids).strip()), row)
    return list(first.values())


def select_answers(
    examples: Sequence[Example],
    prompts: Sequence[Prompt],
    target: LanguageModel,
    judge: Judge,
    *,
    keep_correct: bool,
    stored: Path | None = None,
) -> tuple[list[Example], RightAnswers | None]:
    """Chooses the answers that best-of-n trains on.

    Args:
        examples: Several answers per prompt, as the target reads them.
        prompts: All that were asked.
        target: Decodes the answers; its likelihood is the score or decides ties.
        judge: Decides which answers are right.
        keep_correct: Keep every right answer, each text once, instead of one answer per prompt.
        stored: Where this run has written the answers, for the message that none is right.

    Returns:
        The chosen answers, and what was counted; None where no answer is right or wrong.

    Raises:
        DataError: No answer is right.
    """
    if judge.scorer is None or judge.threshold is None:
        return best_of_n(examples, prompts, target, judge.scorer), None
    scores = judge.scores(examples, prompts, target)
    counts, right = judge.count(examples, scores, prompts, target), judge.right(examples, scores)
    if not right:
        # A named scorer gives 0 or 1: every threshold up to 1 says the same.
        lower = ":" in judge.name or judge.threshold > RIGHT
        other = "lower --score-threshold" if lower else "choose another --scorer"
        again = (
            f"; the answers are in {stored}: to judge them again, run the same command with --rollouts {stored} and "
            "another --output"
            if stored is not None
            else ""
        )
        raise DataError(
            f"none of {counts.answers} answers to {counts.prompts} prompts scores {judge.threshold:g} or more by "
            f"--scorer {judge.name}; the first: {judge.example(examples, scores, prompts, target)}; "
            f"sample more (--rollouts-per-prompt), {other}, or let a better model answer{again}"
        )
    if keep_correct:
        return distinct(right, target), counts
    score_of = {
        (row.prompt_id, target.decode(row.answer_ids)): score for row, score in zip(examples, scores, strict=True)
    }
    return best_of_n(right, prompts, target, lambda prompt, text: score_of[prompt.id, text]), counts
