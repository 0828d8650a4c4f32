"""Builds the measures of a run from its settings and its held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompt import lacking_answers
from specdistill.data.prompts import encode_all
from specdistill.distill.answers.given import given_answers
from specdistill.distill.answers.shards import RolloutSettings
from specdistill.distill.methods import Method
from specdistill.distill.processes.ranks import Ranks
from specdistill.distill.sequences.fixed import takes_given_answers
from specdistill.distill.sequences.retokenise import retokenise
from specdistill.distill.sequences.run_prompts import RunPrompts
from specdistill.distill.sequences.settings import SequenceSettings
from specdistill.distill.target import itself
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.target.place import OpenTarget
from specdistill.distill.training.guard_rails import worsening_remedy
from specdistill.distill.training.heldout_answers import heldout_answers, heldout_scorer
from specdistill.distill.training.heldout_head import head_scorers
from specdistill.distill.training.heldout_parallel import ParallelHeldOut, labels_say, target_says
from specdistill.distill.training.loss_settings import Objective
from specdistill.distill.training.measures import HeldOutLoss, HeldOutMeasures, Measure
from specdistill.distill.training.own_answers import OwnAnswers
from specdistill.models import ModelPair
from specdistill.models.answer_end import answer_end
from specdistill.models.head_draft import HeadModel
from specdistill.progress import Progress
from specdistill.settings.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class MeasureInputs:
    """Everything that a run's measures are made of."""

    pair: ModelPair
    target: OpenTarget
    """The target as the run uses it."""
    prompts: RunPrompts
    encoded: Sequence[list[int]]
    """The held-out prompts in the target's ids."""
    method: Method
    settings: SequenceSettings
    rollouts: RolloutSettings
    """How answers are sampled, by whomever."""
    objective: Objective
    rule: str
    """Acceptance rule whose alpha may be watched."""
    watch: str
    """Number that is watched, not `auto`."""
    output: Path
    """Directory of the run, which keeps the target's answers to the held-out prompts."""
    progress: Progress
    ranks: Ranks
    shares_target: bool
    """Whether the ranks share the target's weights."""
    uses_engine: bool
    """Whether an engine writes the draft's own answers."""


def build_measures(inputs: MeasureInputs) -> HeldOutMeasures:
    """Alpha, and the score, reward and loss where the run has them.

    Score and reward are measured wherever there is a scorer or a reward: each costs the writing of one answer to every
    held-out prompt. The loss is measured where it is watched.

    Raises:
        DataError: A prompt is too long for a draft of another tokenizer.
    """
    pair, prompts, rollouts = inputs.pair, inputs.prompts, inputs.rollouts
    own_answers = inputs.uses_engine or prompts.reward is not None
    remedy = worsening_remedy(inputs.method.name, inputs.settings, own_answers)
    answers = heldout_answers(
        inputs.target,
        prompts.heldout,
        inputs.encoded,
        rollouts,
        inputs.output,
        inputs.progress,
        inputs.ranks,
        sharded=inputs.shares_target,
    )
    if isinstance(pair.draft, HeadModel):
        settings = rollouts.sampling, inputs.rule, inputs.objective, inputs.target.states
        base, guesses = head_scorers(pair.target, pair.draft, answers, *settings)
        guesses.announce(inputs.progress.say)
        # Alone it writes nothing that could be judged.
        return HeldOutMeasures(base, (), inputs.watch, guesses, remedy)
    base = heldout_scorer(
        pair,
        inputs.target,
        prompts.heldout,
        answers,
        rollouts.sampling,
        inputs.objective.temperature,
        inputs.rule,
        rollouts.guidance,
    )
    measures: list[Measure] = []
    judges = (
        ("score", prompts.scorer, Sampling(temperature=0.0)),
        # The objective is the reward of the answers that are sampled in training.
        ("reward", prompts.reward, rollouts.sampling),
    )
    for name, judge, sampling in judges:
        if judge is not None:
            ids, length = _own_ids(inputs), rollouts.max_new_tokens
            answered = sampling, length, rollouts.seed, inputs.ranks, inputs.progress.say
            measures.append(OwnAnswers(name, judge, prompts.heldout, ids, *answered))
    if inputs.watch == "loss":
        measures.append(_loss(inputs, answers))
    own, lacking = _is_its_own_target(inputs), lacking_answers([*prompts.training, *prompts.heldout])
    guesses = _guesses(inputs, answers)
    return HeldOutMeasures(base, measures, inputs.watch, guesses, remedy, own_target=own, lacking=lacking)


def _is_its_own_target(inputs: MeasureInputs) -> bool:
    """Whether the draft's start is the target, whose alpha nothing can exceed; not where the target sees more."""
    if inputs.target.view.ids or inputs.rollouts.guidance is not None:
        return False
    pair = inputs.pair
    return itself.same_place(pair.target.name, pair.draft.name) or itself.same_weights(pair)


def _guesses(inputs: MeasureInputs, answers: Sequence[Example]) -> ParallelHeldOut | None:
    """The numbers of a parallel draft; None for any other."""
    parallel = inputs.objective.parallel
    if parallel is None:
        return None
    sampling, labeller = inputs.rollouts.sampling, inputs.target.labeller
    if labeller is not None:
        says = labels_say(labeller, answers)
    else:
        states = TargetStates(inputs.pair.target, guidance=inputs.rollouts.guidance, lockstep=inputs.shares_target)
        says = target_says(inputs.pair.target, answers, sampling, states)
    guesses = ParallelHeldOut(answers, says, sampling, inputs.rule, parallel.tokens)
    guesses.announce(inputs.progress.say)
    return guesses


def _own_ids(inputs: MeasureInputs) -> Sequence[list[int]]:
    """The held-out prompts in the draft's ids."""
    if inputs.pair.same_tokenizer:
        return inputs.encoded
    draft = inputs.pair.draft
    room = draft.max_context - inputs.settings.max_new_tokens
    return encode_all(inputs.prompts.heldout, draft.tokenizer, room, draft.vocab_size)


def _loss(inputs: MeasureInputs, answers: Sequence[Example]) -> HeldOutLoss:
    """The loss on answers like those that the method trains on: given ones, or the target's."""
    pair, prompts, labeller = inputs.pair, inputs.prompts, inputs.target.labeller
    heldout = prompts.heldout
    examples = list(answers)
    if inputs.target.stored is None and takes_given_answers(inputs.method, inputs.settings, prompts.training):
        end = answer_end(pair.target, heldout[0].chat_template_kwargs)
        length = inputs.settings.max_new_tokens
        given, _ = given_answers(heldout, inputs.encoded, pair.target.tokenizer, end, length)
        examples = inputs.target.view.examples(given)
    if not pair.same_tokenizer:
        examples, _ = retokenise(examples, heldout, pair)
    labels = labeller.soft_labels(examples) if labeller is not None and inputs.objective.needs_target else None
    states = TargetStates(pair.target, guidance=inputs.rollouts.guidance, lockstep=inputs.shares_target)
    return HeldOutLoss(pair, inputs.objective, examples, states, labels)
