"""The findings of `advise` so far, and the advice that follows from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from specdistill.data.batch import Example
from specdistill.decoding.costs import Costs
from specdistill.distill.advising.answers import FoundAnswers
from specdistill.distill.advising.commands import Commands
from specdistill.distill.advising.config import TARGET, AdviseConfig
from specdistill.distill.advising.shapes import Shape
from specdistill.distill.advising.speeds import StepSpeeds
from specdistill.distill.sequences.settings import SequenceSettings
from specdistill.evaluation.advice import HEAD, INDEPENDENT, PARALLEL, Advice, CountedAnswers, TimedHere
from specdistill.evaluation.advice_known import Here, Pace, Timed
from specdistill.evaluation.advice_options import make_options
from specdistill.evaluation.advice_unknown import unknowns
from specdistill.evaluation.answer_kind import AnswerKind
from specdistill.evaluation.baseline_settings import BaselineSettings
from specdistill.evaluation.baselines import predict, ways_of
from specdistill.evaluation.known_results import known_results
from specdistill.evaluation.overlap import overlap
from specdistill.evaluation.plan_sizes import KEPT_STATES
from specdistill.evaluation.sections import model_facts, setup_section
from specdistill.evaluation.training_pace import ParallelPace, TrainingPace
from specdistill.models import LanguageModel


@dataclass
class Found:
    """Filled part by part; `advice` can be asked after each."""

    config: AdviseConfig
    target: LanguageModel
    answers: FoundAnswers
    prompts: int
    """Prompts in all, to train on."""
    context: int
    """Tokens before each timed pass."""
    kind: AnswerKind
    left_out: list[str]
    """Why some kinds of drafts are not timed."""
    ids: torch.Tensor | None = None
    """Ids of trimmed heads; None where they are whole."""
    covered: float | None = None
    """Share of the target's probability that those hold."""
    timed: dict[str, Timed] = field(default_factory=dict)
    """Name of an option -> its draft."""
    reads: float | None = None
    """Answer tokens per second that the target reads; None where no training was timed."""

    @property
    def examples(self) -> list[Example]:
        """The answers."""
        return self.answers.examples

    @property
    def tokens(self) -> int:
        """Answer tokens."""
        return sum(len(one.answer_ids) for one in self.examples)

    @property
    def costs(self) -> Costs | None:
        """Costs of the first draft, whose checks were timed; None before."""
        return next((one.costs for one in self.timed.values()), None)

    @property
    def _writes(self) -> float | None:
        return None if self.answers.seconds is None else self.tokens / self.answers.seconds

    @property
    def _mean_tokens(self) -> float:
        return self.tokens / len(self.examples)

    def pace(self, shape: Shape, speeds: StepSpeeds) -> Pace | None:
        """How long training takes; None for a parallel draft whose ordinary training before it was not timed.

        Args:
            shape: The draft.
            speeds: Of a step of it.
        """
        own = self._own_pace(shape.kind, speeds)
        if shape.kind != PARALLEL:
            return own
        asked = INDEPENDENT, shape.layers
        first = next((one.pace for one in self.timed.values() if (one.kind.kind, one.kind.layers) == asked), None)
        if first is None or isinstance(first, ParallelPace):
            return None
        return ParallelPace(ordinary=first, parallel=own)

    def _own_pace(self, kind: str, speeds: StepSpeeds) -> TrainingPace:
        # The target would write as many answers to a prompt as train-draft asks for.
        answers = self.prompts * (SequenceSettings().rollouts_per_prompt if self.config.answers == TARGET else 1)
        text = answers * self._mean_tokens
        read = answers * sum(len(one.prompt_ids) for one in self.examples) / len(self.examples)
        head = self.target.head_weight
        # A head reads three states of each token beside the one that predicts.
        states = 4 * text + 3 * read if kind == HEAD else text
        return TrainingPace(
            trains=speeds.trains,
            reads=speeds.reads,
            writes=self._writes,
            text=text,
            read_once=states * head.shape[1] * head.element_size() <= KEPT_STATES,
        )

    def advice(self) -> Advice:
        """The advice so far."""
        config, bench, known = self.config, self.config.as_bench, known_results()
        counted, times, longest = self._counted(), self._times(), config.served.max_draft_tokens
        here = Here(
            parameters=self.target.num_parameters,
            rule=bench.served_rule,
            max_draft_tokens=longest,
            minutes=config.training_minutes,
            known=known,
            next_of=Commands(config, bench.served_rule, self._mean_tokens, self.target.vocab_size),
        )
        options = make_options(counted, self.timed, here)
        return Advice(
            target=model_facts(self.target),
            setup=setup_section(
                bench,
                engine="specdistill",
                device=str(self.target.device),
                lossy=False,
                num_draft_tokens=longest,
                prompts=len(self.examples),
                latency_prompts=0,
            ),
            training_minutes=config.training_minutes,
            counted=counted,
            timed=times,
            options=options,
            not_known=unknowns(options, counted, times, known, self.left_out, config.answers == TARGET),
        )

    def _counted(self) -> CountedAnswers:
        every = ways_of(BaselineSettings(), self.target.eos_token_ids)
        alone = {name: way for name, way in every.items() if not way.asks_draft}
        lengths = range(1, self.config.served.max_draft_tokens + 1)
        # Stored answers may be longer than the limit.
        limit = max(self.config.max_new_tokens, *(len(answer.answer_ids) for answer in self.examples))
        # No draft is asked.
        nothing = [np.zeros(len(answer.answer_ids)) for answer in self.examples]
        return CountedAnswers(
            source=self.config.answers,
            answers=len(self.examples),
            tokens=self.tokens,
            kind=self.kind,
            overlap=overlap(self.examples),
            ways=predict(alone, self.examples, nothing, lengths, limit, self.costs),
            head_size=None if self.ids is None else len(self.ids),
            head_covers=self.covered,
        )

    def _times(self) -> TimedHere | None:
        costs = self.costs
        if costs is None:
            return None
        return TimedHere(
            target_step_seconds=costs.target_step_seconds,
            verify_cost=dict(costs.verify_cost),
            context=self.context,
            kinds={name: one.kind for name, one in self.timed.items()},
            writing_tokens_per_second=self._writes,
            reading_tokens_per_second=self.reads,
        )
