"""Which of the target's layers make the best draft, by measurement."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch

from specdistill.data.batch import Sequence, collate
from specdistill.models import LanguageModel, families
from specdistill.models.cut import only_layers
from specdistill.progress import Progress
from specdistill_kernels import expected_acceptance

_MAX_TOKENS = 160
"""Answer tokens that a candidate is scored on: a greedy search looks at hundreds of candidates."""


class LayerScorer:
    """Teacher-forced alpha (sum min(p, q)) of a subset of layers on the target's answers, without any training."""

    def __init__(self, target: LanguageModel, answers: Many[Sequence]) -> None:
        self._target = target
        # A few tokens of many answers say more than all tokens of a few.
        share = max(4, _MAX_TOKENS // len(answers))
        cut = [
            Sequence(each.prompt_id, each.prompt_ids, each.answer_ids[:share], each.provenance[:share]) for each in answers
        ]
        self._batch = collate(cut[: max(1, _MAX_TOKENS // share)]).to(target.device)
        self._target_logits = self._logits()
        self.evaluated = 0

    def __call__(self, layers: Many[int]) -> float:
        with only_layers(self._target, layers):
            logits = self._logits()
        self.evaluated += 1
        return float(expected_acceptance(self._target_logits, logits).sampled.mean())

    @torch.inference_mode()
    def _logits(self) -> torch.Tensor:
        hidden = self._target.hidden_states(self._batch.input_ids, self._batch.attention_mask)
        return self._target.logits(hidden[self._batch.predicting])


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


def choose_layers(
    target: LanguageModel, answers: Many[Sequence], count: int, how: str, progress: Progress
) -> tuple[list[int], dict[str, dict[str, object]]]:
    """Layers for a draft, and what every candidate scored.

    Args:
        target: The model to cut from.
        answers: The target's own answers to calibration prompts.
        count: Layers to keep.
        how: `even`, `ends`, `greedy`, or `auto` for the best of the three.
        progress: Where the greedy search shows its bar.
    """
    total = families.num_layers(target.config)
    score = LayerScorer(target, answers)
    found: dict[str, list[int]] = {}
    if how in ("even", "auto"):
        found["even"] = even_layers(total, count)
    if how in ("ends", "auto"):
        found["ends"] = end_layers(total, count)
    if how in ("greedy", "auto"):
        found["greedy"] = greedy_layers(score, total, count, progress)
    scores = {name: score(layers) for name, layers in found.items()}
    best = max(scores, key=lambda name: scores[name])
    table = {name: {"layers": found[name], "alpha": scores[name]} for name in found}
    progress.say(
        "layers: "
        + "; ".join(f"{name} {found[name]} alpha {scores[name]:.4f}" for name in found)
        + (f"; kept {best}" if len(found) > 1 else "")
    )
    return found[best], table
