"""The lossy trade-off: what the rule `lenient` gains in speed, and what it changes, for several values of lenience.

DistillSpec's last figure (Zhou et al. 2023, arXiv 2310.08461): a smaller lenience keeps more draft tokens and moves the
output further from the target's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdistill.data.batch import Example
from specdistill.decoding import Sampling, SpeculativeDecoder
from specdistill.decoding.sampling import process
from specdistill.errors import ConfigError
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.evaluation.answer_scores import AnswerJudge, mean
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.guided_states import guided_hidden_states
from specdistill.evaluation.latency import TimedRun, time_ways, warm_up
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.evaluation.measured import Models
from specdistill.evaluation.report import LenienceRow
from specdistill.evaluation.sections import counted_section, latency_section
from specdistill.evaluation.statistics import Estimate, ratio
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import LanguageModel
from specdistill.models.eagle3 import is_head
from specdistill.models.load import ModelSource
from specdistill.progress import Progress

EXACT = 1.0
"""The lenience that keeps the target's distribution; every sweep starts with it."""


def refuse_lenience_sweep(config: MeasureConfig, draft: ModelSource) -> None:
    """Refuses the sweep for a parallel draft or a head: which tokens change depends on where its rounds start.

    Raises:
        ConfigError: Names what to leave out.
    """
    if config.acceptance.lenience_sweep and is_head(draft.config):
        raise ConfigError(
            f"--lenience-sweep counts changed tokens of draft models, and {draft.name} is a head; leave it out"
        )
    drafting = ParallelDrafting.of_config(draft.config, f"--draft {draft.name}")
    if config.acceptance.lenience_sweep and drafting is not None and not config.acceptance.one_by_one:
        raise ConfigError(
            f"--lenience-sweep counts changed tokens of drafts that guess one token per pass, and {draft.name} guesses "
            "several; leave it out, or add --one-by-one"
        )


def lenience_rows(
    models: Models,
    config: MeasureConfig,
    encoded: Sequence[list[int]],
    answers: Sequence[Example],
    num_draft_tokens: int,
    progress: Progress,
    judge: AnswerJudge | None = None,
) -> list[LenienceRow]:
    """Measures the exact rule and every lenience of the settings: speed, acceptance, changed tokens and scores.

    Args:
        models: Target and draft.
        config: Sampling, lenience values, batch size and seed.
        encoded: Prompts to decode, the first ones of the judge's.
        answers: The target's answers, on which changed tokens are counted.
        num_draft_tokens: Draft length.
        progress: Where bars go.
        judge: Scores the answers of each lenience; None leaves scores out.

    Returns:
        One row per lenience, the exact one first, then from the mildest on.
    """
    values = [EXACT, *sorted(config.acceptance.lenience_sweep, reverse=True)]
    runs = _decode(models, config, encoded, values, num_draft_tokens, progress)
    changed = {value: [] for value in values}
    with progress.task("counting changed tokens", len(answers), "answers") as task:
        for answer in answers:
            for value, share in _changed(models, answer, config.sampling, values).items():
                changed[value].append(share)
            task.advance(1)
    tokens = [len(answer.answer_ids) for answer in answers]
    return [
        _row(value, runs[value], ratio(changed[value], tokens), num_draft_tokens, models.target, judge)
        for value in values
    ]


def _row(
    lenience: float,
    runs: Sequence[TimedRun],
    changed: Estimate,
    num_draft_tokens: int,
    target: LanguageModel,
    judge: AnswerJudge | None,
) -> LenienceRow:
    counted = counted_section(runs, num_draft_tokens)
    return LenienceRow(
        lenience=lenience,
        mean_acceptance_length=counted.mean_acceptance_length,
        acceptance_rate=counted.acceptance_rate,
        speedup=latency_section(runs).speedup,
        changed_tokens=changed,
        score=None if judge is None else mean(judge.timed(runs, target)[1]),
    )


def _decode(
    models: Models,
    config: MeasureConfig,
    encoded: Sequence[list[int]],
    values: Sequence[float],
    num_draft_tokens: int,
    progress: Progress,
) -> dict[float, list[TimedRun]]:
    """Decodes every prompt plainly and under each lenience, batch by batch; who begins takes turns."""
    decoders = {str(value): _decoder(models, config.sampling, value, num_draft_tokens) for value in values}
    warm_up(models.target, decoders[str(EXACT)], encoded[0])
    whole = (len(values) + 1) * len(encoded) * config.max_new_tokens
    with progress.task("lenience sweep", whole, "tokens") as task:
        runs = time_ways(
            models.target,
            decoders,
            encoded,
            batch_size=config.timing.batch_size,
            max_new_tokens=config.max_new_tokens,
            seeds=config.timing.prompt_seeds(range(len(encoded))),
            on_tokens=lambda row, ids: task.advance(len(ids)),
        )
    return {value: runs[str(value)] for value in values}


def _decoder(models: Models, sampling: Sampling, lenience: float, num_draft_tokens: int) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        models.target,
        models.draft,
        num_draft_tokens=num_draft_tokens,
        sampling=sampling,
        rule="sampled" if lenience == EXACT else "lenient",
        lenience=lenience,
        guidance=models.guidance,
    )


@torch.no_grad()
def _changed(models: Models, answer: Example, sampling: Sampling, values: Sequence[float]) -> dict[float, float]:
    """Lenience -> sum over an answer's tokens of the total variation between the rule's law and the target's."""
    target_rows = guided_hidden_states(models.target, [answer], models.guidance)[0]
    draft_rows = answer_hidden_states(models.draft, [answer])[0]
    sums = dict.fromkeys(values, 0.0)
    for block in logit_blocks(target_rows, models.target.vocab_size):
        p = process(models.target.logits(target_rows[block]), sampling).double().softmax(-1)
        q = process(models.draft.logits(draft_rows[block]), sampling).double().softmax(-1)
        for value in values:
            sums[value] += float((emitted_law(p, q, value) - p).abs().sum() / 2)
    return sums


def emitted_law(p: torch.Tensor, q: torch.Tensor, lenience: float) -> torch.Tensor:
    """Distribution of the token that the rule `lenient` emits where the draft proposed one.

    A draft token x is kept with probability min(1, p(x) / (l q(x))); what is rejected is drawn from (p - l q)+.

    Args:
        p, q: The target's and the draft's distribution, [tokens, vocab].
        lenience: l; 1 gives p itself.
    """
    kept = torch.minimum(q, p / lenience)
    residual = (p - lenience * q).clamp(min=0)
    mass = residual.sum(-1, keepdim=True)
    # Without a residual the target's own distribution is drawn from; it is then hardly ever needed.
    residual = torch.where(mass > 0, residual / mass, p)
    return kept + (1 - kept.sum(-1, keepdim=True)).clamp(min=0) * residual
