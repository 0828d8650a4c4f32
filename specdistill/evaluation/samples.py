"""Sample answers of the timed run, token by token: who wrote each token, and what was rejected in its place."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdistill.data.batch import Example, Provenance
from specdistill.data.prompts import Prompt
from specdistill.decoding import Generation, Guidance, Sampling
from specdistill.decoding.generation import as_example
from specdistill.decoding.sampling import process
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.evaluation.guessed_states import guessed_states
from specdistill.evaluation.guided_states import guided_hidden_states
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.evaluation.report_samples import Sample, SampleToken
from specdistill.models import LanguageModel

FEWEST_SAMPLES = 3
"""Samples of every report."""
_LONGEST = 256
"""Tokens of a sample at most."""
_LONGEST_PROMPT = 400
"""Characters of a prompt at most."""
_CONTEXT = 4
"""Tokens of the prompt that are decoded with the answer: the first token's text may depend on what stands before it."""
_BROKEN = "\ufffd"


def make_samples(
    target: LanguageModel,
    draft: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    runs: Sequence[TimedRun],
    sampling: Sampling,
    count: int,
    guidance: Guidance | None = None,
) -> list[Sample] | None:
    """Reads a few answers of the timed run again with both models; None where there are none.

    Args:
        target, draft: The models that wrote the answers.
        prompts, encoded: The prompts of the run, and their token ids.
        runs: The timed runs, which may cover the first prompts only.
        sampling: Temperature and filters of the run.
        count: Answers at most.
        guidance: Guidance of the target.
    """
    written = [generation for run in runs for generation in run.speculative]
    chosen = spread_samples(prompts[: len(written)], count)
    samples = [
        make_sample(target, draft, prompts[place], encoded[place], written[place], sampling, guidance)
        for place in chosen
    ]
    return samples or None


def spread_samples(prompts: Sequence[Prompt], count: int) -> list[int]:
    """Chooses prompts of different categories, as far as there are any; their positions, in order."""
    seen: set[str] = set()
    first, others = [], []
    for position, prompt in enumerate(prompts):
        (others if prompt.category in seen else first).append(position)
        seen.add(prompt.category)
    return sorted((first + others)[:count])


def make_sample(
    target: LanguageModel,
    draft: LanguageModel,
    prompt: Prompt,
    encoded: list[int],
    generation: Generation,
    sampling: Sampling,
    guidance: Guidance | None = None,
) -> Sample:
    """Reads one answer again with both models.

    Args:
        target, draft: The models that wrote it.
        prompt: The prompt.
        encoded: Its token ids.
        generation: The answer, of speculative decoding.
        sampling: Temperature and filters of the run.
        guidance: Guidance of the target.
    """
    rejected = rejected_tokens(generation)[:_LONGEST]
    example = as_example(prompt.id, encoded, generation, Provenance.TARGET)
    example = Example(prompt.id, example.prompt_ids, example.answer_ids[:_LONGEST], example.provenance[:_LONGEST])
    target_rows = guided_hidden_states(target, [example], guidance)[0]
    draft_rows = _proposing_rows(target, draft, example, generation)
    # Where nothing was rejected the token itself stands in, and its probability is not used.
    asked = [token if other is None else other for token, other in zip(example.answer_ids, rejected, strict=True)]
    columns = torch.tensor([example.answer_ids, asked]).T
    p, q = (_probabilities(*side, columns, sampling) for side in ((target, target_rows), (draft, draft_rows)))
    text = _GrowingText(target, encoded)
    tokens = []
    for place, (token, other) in enumerate(zip(example.answer_ids, rejected, strict=True)):
        proposal = {}
        if other is not None:
            proposal = {"proposed": text.peek(other), "proposed_p": p[place][1], "proposed_q": q[place][1]}
        by = "draft" if generation.from_draft[place] else "target"
        tokens.append(SampleToken(text=text.add(token), by=by, p=p[place][0], q=q[place][0], **proposal))
    return Sample(
        prompt_id=prompt.id,
        category=prompt.category,
        prompt=_prompt_text(prompt),
        tokens=tokens,
        shortened=len(generation.token_ids) > _LONGEST,
    )


def rejected_tokens(generation: Generation) -> list[int | None]:
    """For each token of the answer, the draft token that was rejected in its place."""
    tokens: list[int | None] = [None] * len(generation.token_ids)
    # The pass over the prompt, which is no round, may have written the first token.
    end = len(tokens) - sum(each.emitted for each in generation.rounds)
    for each in generation.rounds:
        end += each.emitted
        if each.rejected is not None:
            tokens[end - 1] = each.rejected
    return tokens


def _proposing_rows(
    target: LanguageModel, draft: LanguageModel, example: Example, generation: Generation
) -> torch.Tensor:
    """The draft's hidden states that propose each token, [answer, hidden]; some drafts' depend on the round."""
    if not draft.guesses_by_start:
        return answer_hidden_states(draft, [example])[0]
    total, rounds = len(generation.token_ids), [each.emitted for each in generation.rounds]
    starts, depths = [*range(total - sum(rounds))], [0] * (total - sum(rounds))
    for emitted in rounds:
        starts += [len(starts)] * emitted
        depths += range(emitted)
    kept = len(example.answer_ids)
    rows = guessed_states(draft, [example], max(depths[:kept]) + 1, target)[0]
    return rows[starts[:kept], depths[:kept]]


@torch.no_grad()
def _probabilities(
    model: LanguageModel, rows: torch.Tensor, columns: torch.Tensor, sampling: Sampling
) -> list[list[float]]:
    """Probabilities of the ids in each row of `columns`, after what the bench does to logits; temperature 1 if greedy.

    Four digits, since they are for reading.
    """
    found = []
    for block in logit_blocks(rows, model.vocab_size):
        probabilities = process(model.logits(rows[block]), sampling).softmax(-1)
        found += probabilities.gather(1, columns[block].to(probabilities.device)).tolist()
    return [[round(value, 4) for value in row] for row in found]


class _GrowingText:
    """Text of an answer as its tokens come. A character whose bytes are not all there yet is held back.

    Args:
        model: Its tokenizer decodes.
        prompt_ids: Token ids of the prompt.
    """

    def __init__(self, model: LanguageModel, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = model.tokenizer
        self._ids = list(prompt_ids[-_CONTEXT:])
        self._shown = self._decode(self._ids)

    def add(self, token: int) -> str:
        """Appends a token; the text that it completes."""
        text, self._shown = self._with(token)
        self._ids.append(token)
        return text

    def peek(self, token: int) -> str:
        """The text that a token would add."""
        return self._with(token)[0]

    def _with(self, token: int) -> tuple[str, str]:
        """(text that a token adds, all text with it)."""
        text = self._decode([*self._ids, token])
        complete = text.rstrip(_BROKEN)
        if text.startswith(self._shown):
            # Characters that were shown stay shown, also a replacement character that the model wrote itself.
            shown = complete if len(complete) > len(self._shown) else self._shown
            return shown[len(self._shown) :], shown
        if complete != text:
            # Half a character may spoil the ones before it until it is whole (SentencePiece's bytes).
            return "", self._shown
        # A decoder that rewrites what it has written.
        return self._decode([token]), text

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _prompt_text(prompt: Prompt) -> str:
    content = prompt.messages[-1].get("content") if prompt.messages else None
    text = content if isinstance(content, str) else str(content or "")
    return text if len(text) <= _LONGEST_PROMPT else text[:_LONGEST_PROMPT] + "…"
