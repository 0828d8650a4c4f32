"""How much of an answer stands in its prompt already.

Source of BLEU: Papineni et al. 2002, over token ids with one reference, the prompt.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from specdistill.data.batch import Example
from specdistill.evaluation.report_baselines import Overlap
from specdistill.evaluation.statistics import ratio

_LONGEST = 4


def overlap(answers: Sequence[Example]) -> Overlap:
    """`overlap` of the report."""
    bleu = [bleu4(answer.answer_ids, answer.prompt_ids) for answer in answers]
    runs = [_runs(answer.answer_ids, _LONGEST) for answer in answers]
    stands = [set(_runs(answer.prompt_ids, _LONGEST)) for answer in answers]
    copied = [
        sum(number for run, number in counts.items() if run in there)
        for counts, there in zip(runs, stands, strict=True)
    ]
    return Overlap(
        prompt_answer_bleu4=ratio(bleu, [1.0] * len(bleu)),
        copied_4grams=ratio(copied, [counts.total() for counts in runs]),
    )


def bleu4(text: Sequence[int], reference: Sequence[int]) -> float:
    """BLEU-4 of a text against one reference, in [0, 1]; texts of fewer than four tokens have 0."""
    logs = []
    for size in range(1, _LONGEST + 1):
        runs = _runs(text, size)
        matched = (runs & _runs(reference, size)).total()
        if not matched:
            return 0.0
        logs.append(math.log(matched / runs.total()))
    brevity = min(0.0, 1 - len(reference) / len(text))
    return math.exp(brevity + sum(logs) / _LONGEST)


def _runs(text: Sequence[int], size: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(text[start : start + size]) for start in range(len(text) - size + 1))
