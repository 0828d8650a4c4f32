"""The prompts' own answers as rows, as `generate` writes those of a model."""

from __future__ import annotations

from specdistill.data.answer_rows import AnswerRow, asked_columns
from specdistill.data.batch import Provenance
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import check_ids
from specdistill.distill.answers.asked import Asked
from specdistill.distill.answers.given import AnswerCounts, given_answers
from specdistill.models import LanguageModel
from specdistill.models.answer_end import answer_end
from specdistill.progress import Progress


def given_rows(
    asked: Asked, target: LanguageModel, max_new_tokens: int, progress: Progress
) -> tuple[list[AnswerRow], AnswerCounts]:
    """Writes given answers as rows.

    Args:
        asked: Prompts with answers.
        target: Its tokenizer reads them; a shell will do.
        max_new_tokens: Most tokens of an answer.
        progress: Where remarks on the prompts go.

    Returns:
        A row for each answer with text, and how many were cut or left out.

    Raises:
        DataError: An answer holds a token that the target has no weights for.
    """
    prompts, encoded = asked.prompts, asked.encoded
    warn_about_prompts(prompts, encoded, target, progress.say)
    end, known = answer_end(target, prompts[0].chat_template_kwargs), {prompt.id: prompt for prompt in prompts}
    sequences, counts = given_answers(prompts, encoded, target.tokenizer, end, max_new_tokens)
    for sequence in sequences:
        check_ids(sequence.answer_ids, target.tokenizer, target.vocab_size, f"the answer to {sequence.prompt_id!r}")
    columns_of = {prompt.id: columns for prompt, columns in zip(prompts, asked_columns(prompts), strict=True)}
    rows: list[AnswerRow] = [
        {
            "prompt_id": sequence.prompt_id,
            **columns_of[sequence.prompt_id],
            "answer": known[sequence.prompt_id].answer or "",
            "category": known[sequence.prompt_id].category,
            "copy": 0,
            "prompt_ids": list(sequence.prompt_ids),
            "answer_ids": list(sequence.answer_ids),
            "provenance": [int(Provenance.GIVEN)] * len(sequence.answer_ids),
        }
        for sequence in sequences
    ]
    return rows, counts
