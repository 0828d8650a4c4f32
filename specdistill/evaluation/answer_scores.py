"""Scores of finished answers: how right draft, target and speculative decoding are on prompts with known answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.data.scorers import Scorer, check_scorer
from specdistill.decoding.answers import write_answers
from specdistill.errors import ConfigError
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.cut_answers import is_cut
from specdistill.evaluation.interruption import UNKNOWN, Interruption
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.measured import Models
from specdistill.evaluation.report_scores import AnswerScores
from specdistill.evaluation.statistics import Estimate, paired_difference, share
from specdistill.models import LanguageModel
from specdistill.models.eagle3 import is_head
from specdistill.models.load import ModelSource
from specdistill.progress import Progress


class PromptScores(dict[str, float]):
    """Prompt's id -> score of an answer to it."""

    cut: int = 0
    """Answers among them that --max-new-tokens cut."""


@dataclass(frozen=True)
class AnswerJudge:
    """A scorer with the prompts whose answers it judges.

    Args:
        name: Value of --scorer.
        scorer: Judges an answer's text.
        prompts: The prompts.
        max_new_tokens: Limit of an answer, at which it is cut.
    """

    name: str
    scorer: Scorer
    prompts: Sequence[Prompt]
    max_new_tokens: int

    @staticmethod
    def find(name: str | None, prompts: Sequence[Prompt], max_new_tokens: int) -> AnswerJudge | None:
        """Finds the scorer before any model is loaded; None without --scorer.

        Raises:
            ConfigError: No such scorer.
            DataError: It compares with the field answer, and a prompt has none that it can read.
        """
        if name is None:
            return None
        scorer = check_scorer(name, prompts, likelihood=False)
        assert scorer is not None, "only the likelihood has none"
        return AnswerJudge(name, scorer, prompts, max_new_tokens)

    def examples(self, answers: Sequence[Example], model: LanguageModel) -> PromptScores:
        """Scores of answers that a model wrote."""
        return self._scores(((answer.prompt_id, answer.answer_ids) for answer in answers), model)

    def timed(self, runs: Sequence[TimedRun], target: LanguageModel) -> tuple[PromptScores, PromptScores]:
        """Scores of the plain and of the speculative answers to the first prompts, in their order."""

        def scores(way: str) -> PromptScores:
            answers = [answer for run in runs for answer in getattr(run, way)]
            pairs = zip(self.prompts, answers, strict=False)
            return self._scores(((prompt.id, answer.token_ids) for prompt, answer in pairs), target)

        return scores("plain"), scores("speculative")

    def _scores(self, answers: Iterable[tuple[str, Sequence[int]]], model: LanguageModel) -> PromptScores:
        known, scores = {prompt.id: prompt for prompt in self.prompts}, PromptScores()
        for name, ids in answers:
            scores[name] = self.scorer(known[name], model.decode(ids))
            scores.cut += is_cut(ids, self.max_new_tokens, model.eos_token_ids)
        return scores

    def section(
        self,
        target: PromptScores,
        draft: PromptScores,
        timed: tuple[PromptScores, PromptScores],
        compared: Mapping[str, float] | None = None,
    ) -> AnswerScores:
        """`score` of the report.

        Args:
            target, draft: Answers of each alone.
            timed: Answers of the timed run: the plain target's, and those of speculative decoding.
            compared: Answers of the draft of --compare; None without one.
        """
        plain, speculative = timed
        return AnswerScores(
            scorer=self.name,
            prompts=len(draft),
            target=mean(target),
            draft=mean(draft),
            target_cut=target.cut,
            draft_cut=draft.cut,
            draft_minus_target=difference(draft, target),
            speculative_prompts=len(speculative),
            speculative=mean(speculative),
            speculative_minus_target=difference(speculative, plain),
            compared=None if compared is None else mean(compared),
            draft_minus_compared=None if compared is None else difference(draft, compared),
        )


def refuse_own_answers(config: MeasureConfig, draft: ModelSource) -> None:
    """Refuses a scorer of the draft's own answers where the draft writes none.

    Raises:
        ConfigError: The draft is a head.
    """
    if config.score.scorer is not None and is_head(draft.config):
        raise ConfigError(
            f"--scorer scores the draft's own answers too, and a head writes no answers alone ({draft.name}); leave "
            "--scorer away"
        )


def own_scores(
    judge: AnswerJudge,
    models: Models,
    encoded: Sequence[list[int]],
    config: MeasureConfig,
    progress: Progress,
    stop: Interruption,
) -> PromptScores:
    """Lets the draft answer the prompts alone, sampled like the target; those that were done before a Ctrl-C."""
    sampling, length, seed = config.sampling, config.max_new_tokens, config.timing.seed
    title = "draft writes answers"
    answers = write_answers(
        models.draft, judge.prompts, encoded, sampling, length, seed, progress, title, stop.only_interrupts
    )
    return judge.examples(answers, models.draft)


def mean(scores: Mapping[str, float]) -> Estimate:
    """Mean score with its interval over prompts; NaN without any."""
    return share(list(scores.values())) if scores else UNKNOWN


def difference(after: Mapping[str, float], before: Mapping[str, float]) -> Estimate:
    """Mean difference over the prompts that both answered, paired."""
    names = [name for name in after if name in before]
    if not names:
        return UNKNOWN
    ones = np.ones(len(names))
    return paired_difference(([after[name] for name in names], ones), ([before[name] for name in names], ones))
