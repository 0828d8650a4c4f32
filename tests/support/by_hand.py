"""Runs whose draft stands still, and what their losses and scores must be: plain transformers passes, one at a time.

Nothing here calls the package for a number. With a learning rate of 1e-30 no weight changes, so every step's loss is
that of the start, whatever the step trains on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import WORDS
from tiny_runs import history, prompt_rows, train_config
from torch import Tensor
from transformers import AutoModelForCausalLM

from specdistill import train_draft
from specdistill.data import Example, Provenance
from specdistill.distill.training.loss import DistillationLoss
from specdistill.distill.training.step import StepMeasurement
from specdistill.distill.training.trainer import DraftTrainer
from specdistill.evaluation.summaries import TrainSummary

VOCABULARY, EOS, USER, BOT, FIRST_WORD = WORDS + 5, 1, 3, 4, 5
GIVEN, TARGET, DRAFT = Provenance.GIVEN, Provenance.TARGET, Provenance.DRAFT


# ---- what a run did


@dataclasses.dataclass
class WatchedRun:
    """Everything that a run trained on and measured, step by step."""

    output: Path
    steps: list[list[Example]] = dataclasses.field(default_factory=list)
    """Examples of each step."""
    measured: list[StepMeasurement] = dataclasses.field(default_factory=list)
    """Numbers of each step."""
    advantages: list[list[float] | None] = dataclasses.field(default_factory=list)
    """Advantages that the loss got in each pass; None where it got none."""
    weights: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    """The draft's weights after the last step."""
    summary: TrainSummary | None = None

    @property
    def examples(self) -> list[Example]:
        """Examples of all steps, in order."""
        return [one for step in self.steps for one in step]

    @property
    def writers(self) -> list[set[int]]:
        """Who wrote the tokens of each step."""
        return [{writer for one in step for writer in one.provenance} for step in self.steps]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of history.jsonl."""
        return history(self.output)

    @property
    def losses(self) -> list[float]:
        """Loss of each step."""
        return [step.loss for step in self.measured]


def watched_run(folder: Path, output: Path, *, make_engine: Any = None, **settings: Any) -> WatchedRun:
    """Trains by the flags, and writes down every step."""
    run = WatchedRun(output)
    step, forward = DraftTrainer.train_step, DistillationLoss.forward

    def watched_step(self, examples):
        run.steps.append(list(examples))
        run.measured.append(step(self, examples))
        run.weights = {name: value.clone() for name, value in self.draft.model.state_dict().items()}
        return run.measured[-1]

    def watched_loss(self, batch, target_hidden, totals, advantages=None, *arguments, **named):
        run.advantages.append(None if advantages is None else advantages.tolist())
        return forward(self, batch, target_hidden, totals, advantages, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DraftTrainer, "train_step", watched_step)
        patch.setattr(DistillationLoss, "forward", watched_loss)
        run.summary = train_draft(train_config(folder, output, **settings), make_engine=make_engine)
    return run


def frozen_run(folder: Path, output: Path, **settings: Any) -> WatchedRun:
    """A watched run of two steps whose draft stays what it was at the start."""
    still = {"learning_rate": 1e-30, "warmup": 0.0, "patience": 0, "steps": 2}
    given = still | settings
    return watched_run(folder, output, **({"eval_every": given["steps"]} | given))


# ---- what the texts must be


def prompt_of(name: str) -> tuple[int, ...]:
    """Token ids of a prompt of `tiny_runs.prompt_rows`: <user>, two words, <bot>."""
    number = int(name.removeprefix("p"))
    return (USER, FIRST_WORD + number % 60, FIRST_WORD + (7 * number) % 60, BOT)


def given_answer_of(name: str) -> tuple[int, ...]:
    """Token ids of its given answer: two words and the end."""
    number = int(name.removeprefix("p"))
    return (FIRST_WORD + (number + 1) % 60, FIRST_WORD + (number + 2) % 60, EOS)


def rows_without_answers() -> list[dict[str, str]]:
    """The prompts alone."""
    return [{key: value for key, value in row.items() if key != "answer"} for row in prompt_rows()]


def plain_model(folder: Path) -> Any:
    """A saved model in float64."""
    return AutoModelForCausalLM.from_pretrained(folder).double().eval()


@torch.no_grad()
def next_logits(model: Any, ids: Sequence[int]) -> Tensor:
    """Logits of the token after `ids`, [vocabulary]."""
    return model(torch.tensor([list(ids)])).logits[0, -1, :VOCABULARY]


NextLogits = Callable[[Sequence[int], Sequence[int]], Tensor]
"""(prompt, answer so far) -> logits of the next token."""


def greedy_answer(model: Any, prompt: Sequence[int], length: int, after: NextLogits | None = None) -> tuple[int, ...]:
    """The likeliest token again and again, to the end or to `length` tokens."""
    answer: list[int] = []
    while len(answer) < length and EOS not in answer:
        logits = after(prompt, answer) if after else next_logits(model, [*prompt, *answer])
        answer.append(int(logits.argmax()))
    return tuple(answer)


# ---- what the losses must be


@torch.no_grad()
def answer_logits(model: Any, example: Example) -> Tensor:
    """Logits that predict the answer, float64 [answer, vocabulary]."""
    ids = torch.tensor([example.prompt_ids + example.answer_ids])
    return model(ids).logits[0, len(example.prompt_ids) - 1 : -1, :VOCABULARY]


def guided_logits(model: Any, example: Example, negative: tuple[int, ...], weight: float) -> Tensor:
    """Logits of the target that is pushed away from its answer to a negative prompt."""
    twin = dataclasses.replace(example, prompt_ids=negative)
    return (1 + weight) * answer_logits(model, example) - weight * answer_logits(model, twin)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of each row."""
    return (p * (p.log() - q.log())).sum(-1)


def alpha(p: Tensor, q: Tensor) -> Tensor:
    """Sum of min(p, q) of each row."""
    return torch.minimum(p, q).sum(-1)


def jsd(p: Tensor, q: Tensor, beta: float = 0.5) -> Tensor:
    """Generalised JSD over beta (1 - beta), as train-draft scales it."""
    m = beta * p + (1 - beta) * q
    return (beta * kl(p, m) + (1 - beta) * kl(q, m)) / (beta * (1 - beta))


def lk_lambda(p: Tensor, q: Tensor, eta: float = 3.0) -> Tensor:
    """Forward KL that gives way to total variation as alpha grows."""
    weight = (-eta * alpha(p, q)).exp()
    return weight * kl(p, q) + (1 - weight) * (1 - alpha(p, q))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fkl": kl,
    "rkl": lambda p, q: kl(q, p),
    "jsd": jsd,
    "jeffreys": lambda p, q: (kl(p, q) + kl(q, p)) / 2,
    "skewed_kl": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "tvd": lambda p, q: 1 - alpha(p, q),
    "lk_alpha": lambda p, q: -alpha(p, q).log(),
    "lk_lambda": lk_lambda,
    "lk_argmax": lambda p, q: -(p * q).sum(-1).log(),
}
"""Divergence -> loss of each token, p the target's and q the draft's probabilities [tokens, vocabulary]."""


class ByHand:
    """Start and target of a run, to compute its losses from."""

    def __init__(self, folder: Path) -> None:
        self.target, self.draft = plain_model(folder / "target"), plain_model(folder / "draft")

    def probabilities(
        self,
        examples: Sequence[Example],
        temperature: float = 1.0,
        guidance: tuple[tuple[int, ...], float] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Target's and draft's probabilities of all answers' tokens, [tokens, vocabulary] each."""
        if guidance is None:
            wanted = [answer_logits(self.target, one) for one in examples]
        else:
            wanted = [guided_logits(self.target, one, *guidance) for one in examples]
        own = [answer_logits(self.draft, one) for one in examples]
        both = (torch.cat(rows) / temperature for rows in (wanted, own))
        p, q = (rows.softmax(-1) for rows in both)
        return p, q

    def per_token(self, kind: str, examples: Sequence[Example], **settings: Any) -> Tensor:
        """Loss of each token."""
        return LOSSES[kind](*self.probabilities(examples, **settings))

    def loss(self, kind: str, examples: Sequence[Example], **settings: Any) -> float:
        """Mean over all tokens of a step."""
        return float(self.per_token(kind, examples, **settings).mean())

    def cross_entropy(self, examples: Sequence[Example], temperature: float = 1.0) -> Tensor:
        """-log q of each answer token."""
        _, q = self.probabilities(examples, temperature)
        labels = torch.tensor([token for one in examples for token in one.answer_ids])
        return -q.gather(1, labels[:, None])[:, 0].log()


def close(value: float) -> Any:
    """Equal up to float32."""
    return pytest.approx(value, rel=1e-4, abs=1e-6)
