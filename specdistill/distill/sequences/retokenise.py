"""The target's answers in the ids of a draft with another tokenizer, for methods that learn from text."""

from __future__ import annotations

from collections.abc import Sequence

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt, encode
from specdistill.models import ModelPair
from specdistill.models.language_model import end_of


def retokenise(
    sequences: Sequence[Example], prompts: Sequence[Prompt], pair: ModelPair
) -> tuple[list[Example], list[int]]:
    """Each answer as text, read by the draft's tokenizer in the draft's chat template.

    Args:
        sequences: In the target's ids.
        prompts: All that they answer.
        pair: Both tokenizers.

    Returns:
        Sequences in the draft's ids, in order, and the UTF-8 bytes of each one's text (its end counts as one).
    """
    known = {prompt.id: prompt for prompt in prompts}
    examples, num_bytes = [], []
    for sequence in sequences:
        text = pair.target.decode(sequence.answer_ids)
        ended = bool(sequence.answer_ids) and sequence.answer_ids[-1] in pair.target.eos_token_ids
        ids = [
            *pair.draft.tokenizer(text, add_special_tokens=False)["input_ids"],
            *([end_of(pair.draft)] if ended else []),
        ]
        if not ids:
            continue
        prompt_ids = tuple(encode(known[sequence.prompt_id], pair.draft.tokenizer))
        examples.append(Example(sequence.prompt_id, prompt_ids, tuple(ids), (sequence.provenance[0],) * len(ids)))
        num_bytes.append(len(text.encode()) + ended)
    return examples, num_bytes
