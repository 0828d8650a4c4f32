"""Scorers of finished answers: comparison with the field answer, the target's likelihood, or a user's function."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.distill.answers.given import is_empty
from specdistill.errors import ConfigError, DataError
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.models import LanguageModel
from specdistill_kernels import fused_divergence

Scorer = Callable[[Prompt, str], float]
"""(prompt, answer's text) -> a number; more is better."""


def exact_match(prompt: Prompt, text: str) -> float:
    """1 where the answer, or its last line, equals the prompt's given answer up to case and white space; else 0.

    Of a given answer in GSM8K's form only what follows the last "####" counts, and of a last line in the form
    "The answer is 42." what follows "answer is" or "####".
    """
    assert prompt.answer is not None, "check_scorer comes first"
    wanted = _plain(prompt.answer.rpartition("####")[2])
    last = text.strip().rpartition("\n")[2]
    candidates = {_plain(text), _plain(last), _plain(last.rpartition("####")[2])}
    lowered = last.lower()
    if "answer is" in lowered:
        candidates.add(_plain(lowered.rpartition("answer is")[2]))
    return float(wanted in candidates)


def load_function(name: str, flag: str) -> Scorer:
    """Imports `module:function`; modules of the current folder are found too.

    Raises:
        ConfigError: Not of that form, or there is no such function.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ConfigError(f"{flag} must be module:function, got {name!r}")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        scorer = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ConfigError(f"{flag} {name}: can't import {module} ({error}); is it in the current folder?") from error
    finally:
        sys.path.remove(here)
    if not callable(scorer):
        raise ConfigError(f"{flag} {name}: {module} has no function {function}")

    def checked(prompt: Prompt, text: str) -> float:
        value = float(scorer(prompt, text))  # pyright: ignore[reportArgumentType]
        if not math.isfinite(value):
            raise DataError(f"{flag} {name} gave {value} for prompt {prompt.id!r}; it must return a finite number")
        return value

    return checked


def check_scorer(name: str, prompts: Sequence[Prompt], flag: str = "--scorer") -> Scorer | None:
    """Finds a scorer before any model is loaded; None for `target-likelihood`, which the target itself is.

    Raises:
        ConfigError: No such scorer.
        DataError: exact-match, and a prompt has no answer.
    """
    if name == "target-likelihood":
        return None
    if name == "exact-match":
        for prompt in prompts:
            if prompt.answer is None or is_empty(prompt):
                problem = "has no" if prompt.answer is None else "has an empty"
                raise DataError(
                    f'prompt {prompt.id!r} {problem} field "answer", which {flag} exact-match compares with'
                )
        return exact_match
    if ":" not in name:
        raise ConfigError(f"unknown {flag} {name!r}; choose target-likelihood, exact-match or module:function")
    return load_function(name, flag)


@torch.no_grad()
def mean_log_likelihoods(model: LanguageModel, sequences: Sequence[Example], batch_size: int = 8) -> list[float]:
    """Mean log-probability per answer token under the model at temperature 1, in nats, one per sequence."""
    means: list[float] = []
    for start in range(0, len(sequences), batch_size):
        for sequence, hidden in zip(
            sequences[start : start + batch_size],
            answer_hidden_states(model, sequences[start : start + batch_size]),
            strict=True,
        ):
            labels = torch.tensor(sequence.answer_ids, device=hidden.device)
            loss = fused_divergence(
                hidden,
                model.head_weight,
                None,
                None,
                torch.full((len(labels),), 1 / len(labels), device=hidden.device),
                kind="ce",
                labels=labels,
                vocab_size=model.vocab_size,
                draft_softcap=model.softcap,
            ).loss
            means.append(-float(loss))
    return means


def example_scorer(scorer: Scorer, prompts: Sequence[Prompt], model: LanguageModel) -> Callable[[Example], float]:
    """Makes a scorer of examples from one of texts.

    Args:
        scorer: Judges a prompt and an answer's text.
        prompts: All that the examples answer.
        model: Its tokenizer decodes the answers.
    """
    by_id = {prompt.id: prompt for prompt in prompts}

    def score(example: Example) -> float:
        return scorer(by_id[example.prompt_id], model.decode(example.answer_ids))

    return score


def best_of_n(
    sequences: Sequence[Example], prompts: Sequence[Prompt], target: LanguageModel, scorer: Scorer | None
) -> list[Example]:
    """The best answer to each prompt, in the order of the prompts; ties go to the one that the target finds likelier.

    Args:
        sequences: Several answers per prompt.
        prompts: All that the sequences answer.
        target: Its likelihood is the score, or decides ties.
        scorer: None scores by the likelihood alone.
    """
    known = {prompt.id: prompt for prompt in prompts}
    best: dict[str, tuple[float, float, Example]] = {}
    likelihoods = mean_log_likelihoods(target, [row.as_target_reads for row in sequences])
    for sequence, likelihood in zip(sequences, likelihoods, strict=True):
        score = 0.0
        if scorer is not None:
            score = scorer(known[sequence.prompt_id], target.decode(sequence.answer_ids))
        held = best.get(sequence.prompt_id)
        if held is None or (score, likelihood) > held[:2]:
            best[sequence.prompt_id] = (score, likelihood, sequence)
    return [best[prompt.id][2] for prompt in prompts if prompt.id in best]


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".").replace(",", "").lstrip("$ :")
