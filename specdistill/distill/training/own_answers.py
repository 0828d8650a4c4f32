"""A measure on the held-out prompts: the score of answers that the draft itself writes to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from specdistill.data.prompts import Prompt
from specdistill.data.scorers import Scorer
from specdistill.decoding import Sampling
from specdistill.decoding.answers import write_answers
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.training.measures import Sums
from specdistill.evaluation.cut_answers import cut_line, is_cut
from specdistill.models import LanguageModel
from specdistill.progress import Quiet


class OwnAnswers:
    """Judges answers that the draft itself writes to the held-out prompts, from the same seeds every time.

    Args:
        name: `score` or `reward`.
        judge: Judges an answer's text.
        prompts: Held-out prompts.
        encoded: Their ids, in the draft's vocabulary.
        sampling: How the draft answers.
        max_new_tokens: Most tokens of an answer.
        seed: Random seed of the answers.
        ranks: The processes that train together. The main one's scores count for all: a judge that draws, as a language
            model does, would let them decide differently, and wait for each other for ever.
        say: Told how many answers were cut at the limit, where the number changes.
    """

    def __init__(
        self,
        name: str,
        judge: Scorer,
        prompts: Sequence[Prompt],
        encoded: Sequence[list[int]],
        sampling: Sampling,
        max_new_tokens: int,
        seed: int,
        ranks: Ranks = ALONE,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.name, self._ranks = name, ranks
        self._say, self._cut = say, 0
        self._judge, self._prompts, self._encoded = judge, prompts, encoded
        self._sampling, self._max_new_tokens, self._seed = sampling, max_new_tokens, seed

    def sums(self, draft: LanguageModel) -> Sums:
        draft.model.eval()
        draft.weights_changed()
        answers = write_answers(
            draft, self._prompts, self._encoded, self._sampling, self._max_new_tokens, self._seed, Quiet()
        )
        self._say_cut([answer.answer_ids for answer in answers], draft)
        scores = [
            self._judge(prompt, draft.decode(answer.answer_ids))
            for prompt, answer in zip(self._prompts, answers, strict=True)
        ]
        return np.array(self._ranks.gather([scores])[0]), np.ones(len(scores))

    def _say_cut(self, answers: Sequence[Sequence[int]], draft: LanguageModel) -> None:
        cut = sum(is_cut(ids, self._max_new_tokens, draft.eos_token_ids) for ids in answers)
        line = cut_line(f"the draft (held-out {self.name})", cut, len(answers), self._max_new_tokens)
        if line and cut != self._cut:
            self._say(line)
        self._cut = cut
