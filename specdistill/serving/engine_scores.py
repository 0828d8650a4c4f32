"""Scores of the answers that an engine gave: acceptance by our own copies of the models, and the task's scorer."""

from __future__ import annotations

from specdistill.data.batch import Example, Provenance
from specdistill.data.prompts import Prompt, encode_all
from specdistill.decoding.answers import write_answers
from specdistill.evaluation import acceptance
from specdistill.evaluation.acceptance import PromptAcceptance
from specdistill.evaluation.answer_scores import AnswerJudge
from specdistill.evaluation.experts import ExpertCosts
from specdistill.evaluation.interruption import Interruption
from specdistill.evaluation.latency import run_differences
from specdistill.evaluation.report import GreedyDifference
from specdistill.evaluation.report_scores import AnswerScores
from specdistill.evaluation.target_pass import target_pass
from specdistill.models import LanguageModel
from specdistill.models.pair import ModelPair
from specdistill.progress import Progress
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.engine_report import EngineRun
from specdistill.serving.engine_timing import DEFAULT_LENGTH


def plain_answers(prompts: list[Prompt], encoded: list[list[int]], runs: list[EngineRun]) -> list[Example]:
    """The plain engine's answers: the text that verification sees."""
    written = [generation.token_ids for run in runs for generation in run.plain]
    return [
        Example(prompt.id, tuple(ids), tuple(answer), (int(Provenance.TARGET),) * len(answer))
        for prompt, ids, answer in zip(prompts, encoded, written, strict=False)
    ]


def score_answers(
    config: BenchConfig, pair: ModelPair, answers: list[Example], progress: Progress, stop: Interruption
) -> tuple[list[PromptAcceptance], ExpertCosts | None]:
    """Scores of the answers, and the predicted verify costs where the target is a mixture of experts."""
    sampling, read = config.sampling, None
    if config.target_is_present:
        longest = max(config.acceptance.max_draft_tokens, config.num_draft_tokens) + 1
        read = target_pass(pair.target, answers, None, longest, progress, stop)
    states, routing = ({}, None) if read is None else read
    costs = None if routing is None else routing.costs(config.timing.batch_size)
    # As many as the report predicts.
    depths = max(config.acceptance.max_draft_tokens, config.num_draft_tokens or DEFAULT_LENGTH)
    with progress.task(f"scoring {pair.draft.name}", len(answers), "answers") as task:
        if not config.target_is_present:
            records = acceptance.score_draft(
                pair.draft, answers, sampling.greedy, depths=depths, on_sequences=task.advance
            )
            return records, None
        records = acceptance.score(
            pair.target, pair.draft, answers, sampling, depths=depths, target_cache=states, on_sequences=task.advance
        )
    return records, costs


def answer_scores(
    config: BenchConfig,
    judge: AnswerJudge,
    pair: ModelPair,
    encoded: list[list[int]],
    runs: list[EngineRun],
    progress: Progress,
) -> AnswerScores:
    """Scores of the engine's answers, and of those that the draft writes alone in our decoder."""
    timed = judge.timed(runs, pair.target)
    prompts, draft, length = judge.prompts, pair.draft, config.max_new_tokens
    if not pair.same_tokenizer:
        encoded = encode_all(prompts, draft.tokenizer, draft.max_context - length, draft.vocab_size)
    name = "draft writes answers"
    answers = write_answers(draft, prompts, encoded, config.sampling, length, config.timing.seed, progress, name)
    return judge.section(timed[0], judge.examples(answers, draft), timed)


def greedy_differences(
    config: BenchConfig, target: LanguageModel, prompts: list[Prompt], encoded: list[list[int]], runs: list[EngineRun]
) -> list[GreedyDifference | None] | None:
    """First differences of greedy answers; None where the engines sampled."""
    if not config.sampling.greedy:
        return None
    # Weights that are not here can't tell how close a call a difference was.
    judge = target if config.target_is_present and target.device.type != "meta" else None
    return run_differences(judge, prompts, encoded[: len(prompts)], runs)


def answers_differ(config: BenchConfig, runs: list[EngineRun]) -> bool:
    """Whether greedy answers with and without drafts differ, so that the target must tell how close a call it was."""
    pairs = ((run.plain, run.speculative) for run in runs)
    different = any(one.token_ids != other.token_ids for pair in pairs for one, other in zip(*pair, strict=True))
    return config.sampling.greedy and config.target_is_present and different
