"""The report of `generate`: counts, costs and scores of the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.distill.answers import scorers
from specdistill.distill.answers.budget import num_tokens, token_cost
from specdistill.distill.answers.generate_config import GenerateConfig
from specdistill.distill.answers.selection import Judge
from specdistill.evaluation.cut_answers import is_cut
from specdistill.evaluation.summaries import GenerateSummary, GeneratorSummary
from specdistill.models import LanguageModel


def generate_summary(
    config: GenerateConfig,
    models: Mapping[str, LanguageModel],
    answers: Mapping[str, Sequence[Example]],
    prompts: Sequence[Prompt],
    judge: Judge,
) -> GenerateSummary:
    """Counts and judges the answers.

    Args:
        config: Who answered what, how often.
        models: By role.
        answers: By role.
        prompts: All that were asked.
        judge: Scores the answers.
    """
    generators = {
        role: _generator(config, role, models, examples, prompts, judge) for role, examples in answers.items()
    }
    match = config.comparison.match if config.comparison.other else None
    return GenerateSummary(
        output=str(Path(config.output)),
        match=match,
        temperature=config.sampling.temperature,
        max_new_tokens=config.max_new_tokens,
        generators=generators,
    )


def _generator(
    config: GenerateConfig,
    role: str,
    models: Mapping[str, LanguageModel],
    examples: Sequence[Example],
    prompts: Sequence[Prompt],
    judge: Judge,
) -> GeneratorSummary:
    model, tokens = models[role], num_tokens(examples)
    summary = GeneratorSummary(
        name=model.name,
        parameters=model.num_parameters,
        prompts=len(prompts),
        rollouts=len(examples),
        tokens=tokens,
        budget=tokens * token_cost(config.comparison, model, role),
        cut=sum(is_cut(row.answer_ids, config.max_new_tokens, model.eos_token_ids) for row in examples),
    )
    if config.comparison.other is not None:
        target = models["target"]
        likelihoods = scorers.mean_log_likelihoods(target, [row.as_target_reads for row in examples])
        summary = dataclasses.replace(
            summary,
            distinct_per_prompt=len({(row.prompt_id, row.answer_ids) for row in examples}) / len(prompts),
            target_log_likelihood=sum(likelihoods) / len(likelihoods),
        )
    if judge.scorer is None:
        return summary
    scores = judge.scores(examples, prompts, model)
    return dataclasses.replace(
        summary,
        mean_score=sum(scores) / len(scores),
        right_answers=judge.count(examples, scores, prompts, model),
        example=judge.example(examples, scores, prompts, model),
    )
