"""Tiny models on disk and runs of them: the one place where tests build configurations, losses and sources.

Tests name settings as flags do. A setting that moves, or a constructor that changes, is mended here alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_models import make_model, make_tokenizer, save

from specdistill import AnnotateConfig, GenerateConfig, InitDraftConfig, TrainConfig, train_draft
from specdistill.data import Example, Prompt, Provenance
from specdistill.data.batch import collate
from specdistill.decoding import Guidance, Sampling
from specdistill.distill.sequences.on_policy import OnPolicy
from specdistill.distill.sequences.skd import Skd
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training.adaspec import select_tokens
from specdistill.distill.training.loss import DistillationLoss, LossOutput, StepTotals
from specdistill.distill.training.trainer import DraftTrainer
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.models import LanguageModel, ModelPair
from specdistill.progress import Quiet
from specdistill_kernels import SoftLabels

SETTINGS: dict[str, Any] = {
    "heldout_prompts": 6,
    "rollouts_per_prompt": 2,
    "max_new_tokens": 12,
    "steps": 8,
    "eval_every": 4,
    "learning_rate": 3e-3,
}
"""Shared defaults of tiny training runs: a second or two each."""


# ---- folders


def prompt_rows(count: int = 24) -> list[dict[str, str]]:
    """Prompts of two words, each with an answer of two words."""
    return [
        {"id": f"p{i}", "prompt": f"w{i % 60} w{(7 * i) % 60}", "answer": f"w{(i + 1) % 60} w{(i + 2) % 60}"}
        for i in range(count)
    ]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_folder(
    folder: Path, models: dict[str, LanguageModel], prompts: Sequence[dict[str, Any]] | None = None
) -> Path:
    """Saves models by name, and prompts.jsonl beside them; tests only read it."""
    for name, model in models.items():
        save(model, folder / name)
    write_rows(folder / "prompts.jsonl", prompt_rows() if prompts is None else prompts)
    return folder


def standard_models() -> dict[str, LanguageModel]:
    """A target of three layers, a draft of one, and a draft of another tokenizer."""
    foreign = make_tokenizer(50, "other")
    return {
        "target": make_model(layers=3),
        "draft": make_model(layers=1, seed=9),
        "foreign": make_model(layers=1, seed=9, tokenizer=foreign, vocab_size=55),
    }


def count_w7(prompt: Prompt, text: str) -> float:
    """A reward, as `--reward tiny_runs:count_w7`: how often the answer says w7."""
    return text.split().count("w7")


# ---- configurations and runs


def any_config(**settings: Any) -> TrainConfig:
    """A configuration whose models don't exist, to be checked or refused."""
    return TrainConfig.flat(**({"target": "t", "draft": "d", "output": "o"} | settings))


def train_settings(folder: Path, output: Path, **settings: Any) -> dict[str, Any]:
    """Flat settings of a training run on a folder's models."""
    places = {name: str(folder / name) for name in ("target", "draft")}
    return places | {"prompts": str(folder / "prompts.jsonl"), "output": str(output)} | SETTINGS | settings


def train_config(folder: Path, output: Path, **settings: Any) -> TrainConfig:
    """Configuration of a training run on a folder's models."""
    return TrainConfig.flat(**train_settings(folder, output, **settings))


def train(folder: Path, output: Path, *, callbacks: Sequence[Any] = (), **settings: Any):
    """Trains and returns the run's summary."""
    return train_draft(train_config(folder, output, **settings), callbacks=callbacks)


def generate_config(folder: Path, output: Path, **settings: Any) -> GenerateConfig:
    """Configuration of `generate` on a folder's target."""
    given = {"target": str(folder / "target"), "prompts": str(folder / "prompts.jsonl"), "output": str(output)}
    return GenerateConfig.flat(**(given | {"max_new_tokens": 12} | settings))


def annotate_config(folder: Path, output: Path, **settings: Any) -> AnnotateConfig:
    """Configuration of `annotate` on a folder's target and answers."""
    given = {"target": str(folder / "target"), "rollouts": str(folder / "answers"), "output": str(output)}
    drawn = settings.get("labels") == "sampled"
    return AnnotateConfig.flat(**(given | ({} if drawn else {"top_k": 8}) | settings))


def cut_config(folder: Path, output: Path, **settings: Any) -> InitDraftConfig:
    """Configuration of `init-draft` on a folder's target, with little calibration."""
    given = {"target": str(folder / "target"), "prompts": str(folder / "prompts.jsonl"), "output": str(output)}
    return InitDraftConfig.flat(**(given | {"layers": 2, "calibration_tokens": 8} | settings))


def history(output: Path) -> list[dict[str, Any]]:
    """The lines of a run's history.jsonl."""
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two saved models are equal bit for bit."""
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Said(Quiet):
    """A progress that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def before_each_step(monkeypatch, action: Callable[[int, Sequence[Example]], None]) -> None:
    """Calls `action(number of the step, its examples)` before every optimiser step of runs in this process."""
    original = DraftTrainer.train_step

    def acting(self, examples):
        action(self.step, examples)
        return original(self, examples)

    monkeypatch.setattr(DraftTrainer, "train_step", acting)


def spoil_loss(monkeypatch, call: int, kind: type[DistillationLoss] = DistillationLoss) -> list[float]:
    """Makes one call of the loss infinite; the list gets the true value of each call."""
    original = kind.forward
    values: list[float] = []

    def spoiling(self, *arguments, **named):
        output = original(self, *arguments, **named)
        values.append(float(output.loss.detach()))
        return output._replace(loss=output.loss * math.inf) if len(values) == call else output

    monkeypatch.setattr(kind, "forward", spoiling)
    return values


# ---- examples, losses and sources


def example(
    prompt: Sequence[int], answer: Sequence[int], writer: Provenance = Provenance.TARGET, name: str = "p"
) -> Example:
    """An example whose answer has one writer."""
    return Example(name, tuple(prompt), tuple(answer), (int(writer),) * len(answer))


EXAMPLES = [
    example((3, 5, 4), (6, 7, 8, 1), name="a"),
    example((3, 9, 10, 4), (11, 12), name="b"),
    example((3, 4), (13, 14, 15, 16, 17), name="c"),
]


def loss_module(
    draft: LanguageModel, target: LanguageModel, reference_model: LanguageModel | None = None, **settings: Any
) -> DistillationLoss:
    """The loss that a run with these settings would train."""
    return DistillationLoss(draft, target, any_config(**settings).objective, reference_model)


def loss_of(
    draft: LanguageModel,
    target: LanguageModel,
    examples: Sequence[Example],
    advantages: torch.Tensor | None = None,
    *,
    reference_model: LanguageModel | None = None,
    totals: StepTotals | None = None,
    soft_labels: SoftLabels | None = None,
    **settings: Any,
) -> LossOutput:
    """Loss of one batch; the target is asked itself unless soft labels stand in for it."""
    module = loss_module(draft, target, reference_model, **settings)
    totals = totals or StepTotals(sum(len(one.answer_ids) for one in examples), len(examples))
    asked = module.kind != "ce" and soft_labels is None
    hidden = torch.cat(answer_hidden_states(target, examples)) if asked else None
    batch, selection = collate(examples), None
    if reference_model is not None:
        selection = select_tokens(module.lags(batch, hidden), any_config(**settings).objective.select_fraction)
    return module(batch, hidden, totals, advantages, soft_labels=soft_labels, selection=selection)


def gradient(value: torch.Tensor, draft: LanguageModel) -> torch.Tensor:
    """Gradient of a value with respect to all trained parameters, as one vector."""
    parameters = [parameter for parameter in draft.model.parameters() if parameter.requires_grad]
    parts = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat([part.reshape(-1) for part in parts if part is not None])


def target_states(
    target: LanguageModel, examples: Sequence[Example], guidance: Guidance | None = None
) -> list[torch.Tensor]:
    """The target's hidden states of each example, as training computes them."""
    return TargetStates(target, guidance=guidance).hidden_states(examples)


def on_policy(
    draft: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    sampling: Sampling | None = None,
    *,
    max_new_tokens: int = 12,
    batch_size: int = 6,
    seed: int = 0,
    **settings: Any,
) -> OnPolicy:
    """The source of a draft's own answers."""
    return OnPolicy(draft, prompts, encoded, sampling or Sampling(), max_new_tokens, batch_size, seed, **settings)


def skd_source(
    target: LanguageModel,
    draft: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    sampling: Sampling | None = None,
    **settings: Any,
) -> Skd:
    """The source of answers that draft and target write together."""
    given = {"top_k": 5, "num_draft_tokens": 3, "max_new_tokens": 20, "batch_size": 6, "seed": 0}
    return Skd(ModelPair(target, draft), prompts, encoded, sampling or Sampling(), **(given | settings))
