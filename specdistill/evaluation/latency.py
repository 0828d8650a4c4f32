"""Ways of decoding against the plain target: the same prompts in the same run, in turn, paired."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specdistill.data.prompts import Prompt
from specdistill.decoding import Generation, Guidance, Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.guided_model import cached_model
from specdistill.evaluation.report import GreedyDifference
from specdistill.evaluation.statistics import FEWEST_UNITS, Estimate, of_sums
from specdistill.models import LanguageModel


@dataclass(frozen=True)
class TimedRun:
    """Both ways of decoding one batch of prompts."""

    plain: list[Generation]
    speculative: list[Generation]


def time_ways(
    target: LanguageModel,
    decoders: Mapping[str, SpeculativeDecoder],
    encoded: Sequence[list[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    seeds: list[int],
    on_tokens=None,
    on_interrupt: Callable[[BaseException], None] | None = None,
    on_left_out: Callable[[str, Exception], None] | None = None,
    on_batch: Callable[[dict[str, list[TimedRun]]], None] | None = None,
) -> dict[str, list[TimedRun]]:
    """Times the plain target and every decoder batch by batch; who begins takes turns, so drift cancels out.

    Args:
        target: The model alone, which samples and is guided as the first decoder says.
        decoders: The same model with drafts, by name; at least one.
        encoded: Token ids of each prompt.
        batch_size: Prompts decoded together.
        max_new_tokens: Tokens per answer.
        seeds: One per prompt.
        on_tokens: Called as by `generate_plain`, for progress.
        on_interrupt: Called with a Ctrl-C or a failure; the batches that are done are then returned. None passes it on.
        on_left_out: Called with the name of a decoder that failed, and why; never the first. None: as any failure.
        on_batch: Called after each batch with what is returned, so far.

    Returns:
        Name -> one entry per batch, without decoders that were left out; the plain answers are the same in all.
    """
    runs: dict[str, list[TimedRun]] = {name: [] for name in decoders}
    kept, first = next(iter(decoders.items()))
    plain = functools.partial(generate_plain, target, sampling=first.sampling, guidance=first.guidance)

    for number, start in enumerate(range(0, len(encoded), batch_size)):
        chunk, own = list(encoded[start : start + batch_size]), seeds[start : start + batch_size]
        written: dict[str, list[Generation]] = {}
        ways = ("", *runs)
        begin = number % len(ways)
        try:
            for name in (*ways[begin:], *ways[:begin]):
                try:
                    write = decoders[name].generate if name else plain
                    written[name] = write(chunk, max_new_tokens=max_new_tokens, seeds=own, on_tokens=on_tokens)
                except Exception as error:
                    if on_left_out is None or name in ("", kept):
                        raise
                    # What was timed of it before is not paired with the rest.
                    del runs[name]
                    on_left_out(name, error)
            for name, batches in runs.items():
                batches.append(TimedRun(written[""], written[name]))
            if on_batch is not None:
                on_batch(runs)
        except (KeyboardInterrupt, Exception) as error:
            if on_interrupt is None:
                raise
            on_interrupt(error)
            break
    return runs


def speedup_of(slow: Sequence[list[Generation]], fast: Sequence[list[Generation]]) -> Estimate:
    """Ratio of tokens per second of the same batches, paired.

    Args:
        slow, fast: Answers of each batch; `seconds` of the first is the batch's wall time.
    """
    columns = time_and_tokens(slow), time_and_tokens(fast)
    return of_sums(lambda a, b, c, d: (a / b) / (c / d), *columns[0], *columns[1])


def time_and_tokens(batches: Sequence[list[Generation]]) -> tuple[np.ndarray, np.ndarray]:
    """Seconds and tokens of each batch, float64 [batches]."""
    seconds = np.array([batch[0].seconds for batch in batches])
    return seconds, np.array([sum(len(g.token_ids) for g in batch) for batch in batches], dtype=float)


def too_few_batches(prompts: int, batch_size: int) -> str | None:
    """The remark that so few timed batches give no interval; None where they do."""
    batches = -(-prompts // batch_size)
    if batches >= FEWEST_UNITS:
        return None
    return (
        f"{batches} timed batches are too few for an interval, and so for a verdict: {FEWEST_UNITS} are needed; raise "
        "--num-prompts and --latency-prompts, or lower --batch-size"
    )


def warm_up(target: LanguageModel, decoder: SpeculativeDecoder, prompt: list[int]) -> None:
    """Makes one short call of each: first calls pay for allocations and thread pools, and must not be timed."""
    generate_plain(target, [prompt], sampling=decoder.sampling, max_new_tokens=4, seeds=[0], guidance=decoder.guidance)
    decoder.generate([prompt], max_new_tokens=4, seeds=[0])


@torch.inference_mode()
def first_difference(
    target: LanguageModel | None,
    prompt: Prompt,
    encoded: list[int],
    plain: Generation,
    other: Generation,
    guidance: Guidance | None = None,
) -> GreedyDifference | None:
    """Finds the first token that differs between two greedy answers; None if they are equal.

    The gap is the distance of the target's two best logits there. A few float32 roundings are a numerical tie: a pass
    over several tokens adds up in another order than one over a single token. A larger gap is a bug. Without a target
    the gap is left out.
    """
    if plain.token_ids == other.token_ids:
        return None
    pairs = zip(plain.token_ids, other.token_ids, strict=False)
    shorter = min(len(plain.token_ids), len(other.token_ids))
    position = next((index for index, (a, b) in enumerate(pairs) if a != b), shorter)
    if target is None:
        return GreedyDifference(prompt=prompt.id, position=position)
    text = [*encoded, *plain.token_ids[:position]]
    best = target.logits(cached_model(target, 1, len(text), guidance).read([text]))[0].topk(2).values
    return GreedyDifference(prompt=prompt.id, position=position, logit_gap=float(best[0] - best[1]))


def run_differences(
    target: LanguageModel | None,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    runs: Sequence[TimedRun],
    guidance: Guidance | None = None,
) -> list[GreedyDifference | None]:
    """Compares the answers of greedy runs prompt by prompt; None for those that are equal."""
    answers = [pair for run in runs for pair in zip(run.plain, run.speculative, strict=True)]
    return [
        first_difference(target, prompt, ids, *pair, guidance)
        for prompt, ids, pair in zip(prompts, encoded, answers, strict=True)
    ]


def greedy_check(
    target: LanguageModel,
    draft: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    *,
    num_draft_tokens: int,
    max_new_tokens: int,
    guidance: Guidance | None = None,
) -> list[GreedyDifference | None]:
    """Compares greedy answers with and without the draft, one prompt at a time."""
    sampling = Sampling(temperature=0.0)
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=num_draft_tokens, sampling=sampling, guidance=guidance)
    differences = []
    for prompt, ids in zip(prompts, encoded, strict=True):
        plain = generate_plain(
            target, [ids], sampling=sampling, max_new_tokens=max_new_tokens, seeds=[0], guidance=guidance
        )
        fast = decoder.generate([ids], max_new_tokens=max_new_tokens, seeds=[0])
        differences.append(first_difference(target, prompt, ids, plain[0], fast[0], guidance))
    return differences
