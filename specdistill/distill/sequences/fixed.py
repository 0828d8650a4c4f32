"""The fixed set of a method: given answers, or the target's, sampled now or earlier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt, check_ids
from specdistill.distill.answers import matching, shards
from specdistill.distill.answers.given import AnswerCounts, given_answers, without_empty
from specdistill.distill.answers.selection import select_answers
from specdistill.distill.methods import Method
from specdistill.distill.sequences.inputs import ROLLOUTS_DIRECTORY, SequenceInputs
from specdistill.distill.sequences.retokenise import retokenise
from specdistill.distill.sequences.settings import SequenceSettings
from specdistill.evaluation.summaries import RightAnswers
from specdistill.models.answer_end import answer_end


class FixedSet(NamedTuple):
    """Examples that come again every epoch, and what was counted on the way to them."""

    examples: list[Example]
    answers: AnswerCounts
    right: RightAnswers | None


def takes_given_answers(method: Method, settings: SequenceSettings, prompts: Sequence[Prompt]) -> bool:
    """Whether the fixed set is the prompts' own answers, rather than the target's or raw text."""
    if method.given_answers:
        return settings.text is None
    mixed = method.name == "gkd" and settings.lmbda < 1 and settings.rollouts is None
    return mixed and all(prompt.answer is not None for prompt in prompts)


def fixed_sequences(inputs: SequenceInputs) -> FixedSet:
    """Everything that does not change while the draft learns, in the draft's ids.

    Raises:
        DataError: A text holds a token that its model has no weights for.
    """
    found = _fixed_set(inputs)
    draft = inputs.pair.draft
    for example in found.examples:
        check_ids(
            [*example.prompt_ids, *example.answer_ids],
            draft.tokenizer,
            draft.vocab_size,
            f"the text of {example.prompt_id!r}",
        )
    return found


def _fixed_set(inputs: SequenceInputs) -> FixedSet:
    settings, target, say = inputs.settings, inputs.pair.target, inputs.progress.say
    if takes_given_answers(inputs.method, settings, inputs.prompts):
        # Read by the target's tokenizer and template, and below by the draft's own where that is another.
        end = answer_end(target, inputs.prompts[0].chat_template_kwargs)
        examples, counts = given_answers(inputs.prompts, inputs.encoded, target.tokenizer, end, settings.max_new_tokens)
        counts.say(say, len(inputs.prompts), settings.max_new_tokens)
    else:
        examples, counts = without_empty(_target_answers(inputs), say)
    right = None
    if inputs.judge is not None:
        examples, right = select_answers(
            inputs.target.view.examples(examples),
            inputs.prompts,
            target,
            inputs.judge,
            keep_correct=settings.keep_correct,
            stored=inputs.output / ROLLOUTS_DIRECTORY if settings.rollouts is None else None,
        )
        if right is not None:
            _say_right(right, len(examples), say)
    if not inputs.pair.same_tokenizer:
        examples, _ = retokenise(examples, inputs.prompts, inputs.pair)
    return FixedSet(examples, counts, right)


def _say_right(right: RightAnswers, kept: int, say: Callable[[str], None]) -> None:
    """Says in one line how many answers are right, and how many are trained on."""
    doubt = (
        "" if right.false_positives is None else f"; --strict-scorer rejects {right.false_positives} of the right ones"
    )
    say(
        f"{right.right} of {right.answers} sampled answers are right, {right.distinct_right} of them different, to "
        f"{right.covered} of {right.prompts} prompts (coverage {right.coverage:.1%}); the other prompts are left out, "
        f"{kept} answers are trained on{doubt}"
    )


def _target_answers(inputs: SequenceInputs) -> list[Example]:
    settings, target = inputs.settings, inputs.pair.target
    if settings.rollouts is not None:
        return _stored_answers(inputs, Path(settings.rollouts))
    directory = inputs.output / ROLLOUTS_DIRECTORY
    view = inputs.target.view
    sampled = shards.RolloutSettings(
        inputs.sampling, settings.max_new_tokens, inputs.seed, guidance=inputs.guidance, view=view
    )
    shards.sample_rollouts(
        target,
        inputs.prompts,
        inputs.encoded,
        sampled,
        copies=inputs.sampling.distinct_copies(settings.rollouts_per_prompt),
        directory=directory,
        progress=inputs.progress,
        ranks=inputs.ranks,
        write=inputs.target.write,
    )
    return shards.load_rollouts(directory, inputs.prompts, inputs.encoded, target.vocab_size, view=view)


def _stored_answers(inputs: SequenceInputs, directory: Path) -> list[Example]:
    target, rows = inputs.pair.target, shards.read_rollouts(directory)
    selected = matching.select_rows(
        rows,
        directory,
        inputs.prompts,
        inputs.encoded,
        target.vocab_size,
        view=inputs.target.view,
        tokenizer=target.tokenizer,
    )
    examples = [example for _, example in selected]
    remedy = "; 'specdistill generate' adds them where --output is that directory"
    for line in matching.remarks(f"--rollouts {directory}", rows, examples, inputs.prompts, target.label, remedy):
        inputs.progress.say(line)
    return examples
