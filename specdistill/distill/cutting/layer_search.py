"""Which layers of a model make the best draft of the target, by measurement."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdistill.data.batch import Example, collate
from specdistill.distill.sequences.pool import Pool
from specdistill.evaluation.acceptance import HiddenCache, alpha_sums, answer_hidden_states, score
from specdistill.evaluation.statistics import ratio
from specdistill.evaluation.summaries import LayerCandidate
from specdistill.models import LanguageModel, cut_draft, families
from specdistill.models.cut import only_layers
from specdistill.progress import Progress
from specdistill.settings.sampling import Sampling
from specdistill_kernels import expected_acceptance, fused_divergence

_MAX_TOKENS = 160
"""Answer tokens that an untrained candidate is scored on: a greedy search looks at hundreds of candidates."""
_PROBE_BATCH = 4
_PROBE_LEARNING_RATE = 5e-4


class LayerScorer:
    """Teacher-forced alpha (sum min(p, q)) of a subset of layers on the target's answers, without any training.

    Args:
        target: The model to agree with.
        source: The model whose layers are tried; often the target itself.
        answers: The target's answers.
    """

    def __init__(self, target: LanguageModel, source: LanguageModel, answers: Sequence[Example]) -> None:
        self._source = source
        # A few tokens of many answers say more than all tokens of a few.
        share = max(4, _MAX_TOKENS // len(answers))
        cut = [
            Example(answer.prompt_id, answer.prompt_ids, answer.answer_ids[:share], answer.provenance[:share])
            for answer in answers
        ]
        self._answers = cut[: max(1, _MAX_TOKENS // share)]
        self._target_logits = self._logits(target)
        self.evaluated = 0

    def __call__(self, layers: Sequence[int]) -> float:
        with only_layers(self._source, layers):
            logits = self._logits(self._source)
        self.evaluated += 1
        return float(expected_acceptance(self._target_logits, logits).sampled.mean())

    @torch.inference_mode()
    def _logits(self, model: LanguageModel) -> torch.Tensor:
        return model.logits(torch.cat(answer_hidden_states(model, self._answers)))


def even_layers(total: int, count: int) -> list[int]:
    """Evenly spaced, first and last included."""
    if count == 1:
        return [0]
    return [round(index * (total - 1) / (count - 1)) for index in range(count)]


def end_layers(total: int, count: int) -> list[int]:
    """The first half from the bottom, the rest from the top."""
    first = (count + 1) // 2
    return [*range(first), *range(total - (count - first), total)]


def greedy_layers(score: LayerScorer, total: int, count: int, progress: Progress) -> list[int]:
    """Adds the layer that raises alpha most, `count` times."""
    chosen: list[int] = []
    candidates = sum(total - done for done in range(count))
    with progress.task("greedy layer search", candidates, "candidates") as task:
        for _ in range(count):
            best, best_alpha = -1, -1.0
            for layer in set(range(total)) - set(chosen):
                alpha = score(sorted([*chosen, layer]))
                if alpha > best_alpha:
                    best, best_alpha = layer, alpha
                task.advance()
            chosen.append(best)
            task.note(f"alpha {best_alpha:.3f}")
    return sorted(chosen)


def healed_alpha(
    target: LanguageModel,
    source: LanguageModel,
    layers: Sequence[int],
    answers: Sequence[Example],
    steps: int,
    progress: Progress,
    name: str,
) -> float:
    """Alpha of a cut after a short training, on answers that this training did not see.

    Cutting breaks the flow between layers, and a few steps mend it, in some cuts faster than in others. Untrained alpha
    does not tell: on SmolLM2 a cut that it prefers by far learned slowest (benchmarks/results/layer_choice.json).

    Args:
        target: The model to agree with.
        source: The model to cut from.
        layers: The candidate.
        answers: The target's own answers; every second one is for training.
        steps: Optimiser steps.
        progress: Where the bar goes.
        name: Name of the candidate, for the bar.
    """
    draft = cut_draft(source, layers)
    draft.model.train()
    optimizer = torch.optim.AdamW(draft.model.parameters(), lr=_PROBE_LEARNING_RATE, weight_decay=0.0)
    training, watched = answers[::2], answers[1::2]
    pool = Pool(training, _PROBE_BATCH, seed=0)
    cache: HiddenCache = {}
    with progress.task(f"short training, {name}", steps, "steps") as task:
        for step in range(1, steps + 1):
            sequences = pool.next_batch(step)
            batch = collate(sequences).to(target.device)
            hidden = draft.hidden_states(batch.input_ids, batch.attention_mask)[batch.predicting]
            output = fused_divergence(
                *draft.loss_inputs(hidden),
                *target.loss_inputs(torch.cat(answer_hidden_states(target, sequences, cache))),
                torch.full((len(hidden),), 1 / len(hidden), device=hidden.device),
                kind="fkl",
                vocab_size=target.vocab_size,
                draft_softcap=draft.softcap,
                target_softcap=target.softcap,
            )
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(draft.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            task.advance()
    draft.model.eval()
    return ratio(*alpha_sums(score(target, draft, watched, Sampling()), "sampled")).mean


def choose_layers(
    target: LanguageModel,
    source: LanguageModel,
    answers: Sequence[Example],
    count: int,
    choose: str,
    probe_steps: int,
    progress: Progress,
) -> tuple[list[int], dict[str, LayerCandidate]]:
    """Chooses layers for a draft.

    Args:
        target: The model to agree with.
        source: The model to cut from.
        answers: The target's own answers to calibration prompts, at least two.
        count: Layers to keep; all of them are the only candidate.
        choose: `even`, `ends`, `greedy`, or `auto` for the best of the three.
        probe_steps: Steps of the short training that `auto` judges by; 0 judges the untrained cuts.
        progress: Where bars and remarks go.

    Returns:
        The layers, and every candidate with its alpha.
    """
    total = families.num_layers(source.config)
    untrained = LayerScorer(target, source, answers)
    trained: dict[tuple[int, ...], float] = {}
    candidates: dict[str, LayerCandidate] = {}
    names = ("all",) if count == total else ("even", "ends", "greedy") if choose == "auto" else (choose,)
    for name in names:
        if name == "all":
            layers = list(range(total))
        elif name == "greedy":
            layers = greedy_layers(untrained, total, count, progress)
        else:
            layers = even_layers(total, count) if name == "even" else end_layers(total, count)
        alpha = untrained(layers)
        # Two names may stand for the same layers, which are trained once.
        if probe_steps and len(names) > 1 and tuple(layers) not in trained:
            title = f"{name} {layers}"
            trained[tuple(layers)] = healed_alpha(target, source, layers, answers, probe_steps, progress, title)
        candidates[name] = LayerCandidate(layers=layers, alpha=alpha, trained_alpha=trained.get(tuple(layers)))
    best = max(candidates, key=lambda name: _judged_alpha(candidates[name]))
    for name, candidate in candidates.items():
        after = ""
        if candidate.trained_alpha is not None:
            after = f", {candidate.trained_alpha:.4f} after {probe_steps} steps"
        kept = "  (kept)" if name == best else ""
        progress.say(f"layers {name} {list(candidate.layers)}: alpha {candidate.alpha:.4f}{after}{kept}")
    return list(candidates[best].layers), candidates


def _judged_alpha(candidate: LayerCandidate) -> float:
    return candidate.alpha if candidate.trained_alpha is None else candidate.trained_alpha
