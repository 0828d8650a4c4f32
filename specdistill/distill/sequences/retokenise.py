"""The target's answers in the ids of a draft with another tokenizer, for methods that learn from text."""

from __future__ import annotations

from collections.abc import Sequence

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt, encode
from specdistill.models import ModelPair
from specdistill.models.answer_end import answer_end


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
    # A template may end turns with an id that the model's files don't name as a stop id.
    arguments = prompts[0].chat_template_kwargs if prompts else {}
    ends = pair.target.eos_token_ids | {answer_end(pair.target, arguments)}
    own_end = answer_end(pair.draft, arguments)
    examples, num_bytes = [], []
    for sequence in sequences:
        ended = bool(sequence.answer_ids) and sequence.answer_ids[-1] in ends
        text = pair.target.decode(sequence.answer_ids[:-1] if ended else sequence.answer_ids)
        ids = [*pair.draft.tokenizer(text, add_special_tokens=False)["input_ids"], *([own_end] if ended else [])]
        if not ids:
            continue
        prompt_ids = tuple(encode(known[sequence.prompt_id], pair.draft.tokenizer))
        examples.append(Example(sequence.prompt_id, prompt_ids, tuple(ids), (sequence.provenance[0],) * len(ids)))
        num_bytes.append(len(text.encode()) + ended)
    return examples, num_bytes
