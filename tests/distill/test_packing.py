"""Packed training is padded training: loss, alpha and every gradient, whatever is minimised and whoever wrote the text.

Values are compared in float64, where rounding is 1e-16 and a wrong token would show.
"""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from by_hand import LOSSES
from family_models import family_model
from tiny_models import make_model, perturbed, save
from tiny_runs import (
    annotate_config,
    any_config,
    generate_config,
    gradient,
    history,
    loss_of,
    target_states,
    train,
    train_config,
    write_folder,
)
from torch import Tensor

from specdistill import annotate, generate
from specdistill.data import Example, Provenance
from specdistill.distill.processes.ranks import ALONE
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training import lora, packing
from specdistill.distill.training.loss import DistillationLoss
from specdistill.distill.training.step import StepRunner
from specdistill.errors import ConfigError
from specdistill.files import run_settings
from specdistill.models import LanguageModel, ModelPair
from specdistill_kernels import SoftLabels

LENGTHS = ((9, 14), (2, 2), (5, 7), (12, 18), (3, 4), (1, 8), (1, 1), (4, 14))
"""Tokens of each prompt and its answer; packed they are 3 rows of 37 tokens at most instead of 8 of 30."""
WRITERS = (Provenance.GIVEN, Provenance.TARGET, Provenance.DRAFT)


def ragged(seed=0) -> list[Example]:
    """Texts of several writers."""
    drawn, examples = random.Random(seed), []
    for number, (prompt, answer) in enumerate(LENGTHS):
        ids = tuple(drawn.randrange(5, 65) for _ in range(prompt + answer))
        examples.append(Example(str(number), ids[:prompt], ids[prompt:], (int(WRITERS[number % 3]),) * answer))
    return examples


def labels(examples) -> SoftLabels:
    """Four ids of every answer token, with probabilities that leave something over."""
    generator = torch.Generator().manual_seed(3)
    tokens = sum(len(one.answer_ids) for one in examples)
    ids = torch.stack([torch.randperm(65, generator=generator)[:4] for _ in range(tokens)])
    return SoftLabels(ids, (0.9 * torch.rand(tokens, 4, generator=generator).softmax(-1)).log())


@pytest.fixture
def pair():
    """Target, draft and a reference in float64."""
    models = make_model(layers=2), make_model(layers=2, seed=9), make_model(layers=1, seed=4)
    for model in models:
        model.model.double()
    return models


def both_ways(models: tuple[LanguageModel, ...], values) -> list[tuple[Tensor, ...]]:
    """Calls `values` with padded texts, then with packed ones."""
    found = []
    for packs in (False, True):
        for model in models:
            model.packs = packs
        found.append(values())
    return found


def assert_same(models, values, rounding: float = 1e-9) -> None:
    padded, packed = both_ways(models, values)
    for one, other in zip(padded, packed, strict=True):
        largest = float(one.detach().abs().nan_to_num().max())
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding * max(1e-2, largest), equal_nan=True)


def check(models, examples=None, rounding: float = 1e-9, **settings) -> None:
    """Loss, sum of alpha and gradient are those of padded texts, and are not nothing."""
    (target, draft, _), examples = models, examples or ragged()

    def values():
        output = loss_of(draft, target, examples, **settings)
        found = gradient(output.loss, draft)
        assert float(found.abs().max()) > 1e-4
        return output.loss, output.alpha_sum, found

    assert_same(models, values, rounding)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_divergence(pair, kind):
    check(pair, divergence=kind)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_divergence_from_stored_labels(pair, kind):
    check(pair, divergence=kind, soft_labels=labels(ragged()))


def test_cross_entropy(pair):
    check(pair, method="sft")


@pytest.mark.parametrize(
    "settings", [{"ce_weight": 0.3}, {"loss_temperature": 0.6}, {"divergence": "jsd", "beta": 0.2}]
)
def test_the_losss_settings(pair, settings):
    check(pair, **settings)


def test_tokens_that_a_reference_selects(pair):
    check(pair, reference="r", reference_model=pair[2], select_fraction=0.4)


def test_rewards_weigh_answers_and_not_rows(pair):
    """With a reward every answer counts alike: its own length divides it, not that of what shares its row."""
    advantages = torch.tensor([0.5, -1.0, 2.0, 0.0, 1.0, -0.5, 3.0, -2.0], dtype=torch.float64)
    check(pair, method="distillspec", reward="tiny_runs:count_w7", distill_weight=0.3, advantages=advantages)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "mistral", "qwen3"])
def test_families_with_windows_and_learned_positions(family):
    models = make_model(family, layers=2), make_model(family, layers=2, seed=9), make_model(family, layers=1)
    for model in models:
        model.model.double()
    # Gemma's norms compute in float32.
    check(models, rounding=1e-6)


def test_a_prompt_is_never_trained_on_and_never_seen_by_others(pair):
    """Another prompt changes its own answer's loss, and of all other texts nothing."""
    target, draft, _ = pair
    for model in pair:
        model.packs = True
    examples = ragged()
    changed = [dataclasses.replace(examples[0], prompt_ids=(60,) * 9), *examples[1:]]
    rows = [target_states(target, texts) for texts in (examples, changed)]
    assert not torch.equal(rows[0][0], rows[1][0])
    assert all(torch.equal(one, other) for one, other in zip(rows[0][1:], rows[1][1:], strict=True))
    trained = [loss_of(draft, target, texts, method="sft").loss for texts in (examples, changed)]
    assert float(trained[0].detach()) != float(trained[1].detach())


def test_a_target_that_sees_more_is_packed_by_its_own_prompts(pair):
    target = pair[0]
    more = [dataclasses.replace(one, target_prompt_ids=(7, 8, 9) * 5 + one.prompt_ids) for one in ragged()]
    assert_same((target,), lambda: tuple(target_states(target, more)))


def runner_of(models, **settings) -> StepRunner:
    config = any_config(batch_size=len(LENGTHS), learning_rate=1e-3, max_grad_norm=1e9, **settings)
    pair = ModelPair(models[0], models[1])
    return StepRunner(pair, TargetStates(models[0]), config.objective, config.optimiser, ALONE)


@pytest.mark.parametrize("micro_batch_size", [0, 3])
@pytest.mark.parametrize("rank", [0, 2], ids=["whole", "lora"])
def test_a_step_and_the_weights_after_it(micro_batch_size, rank):
    """Accumulated over uneven micro-batches, with and without adapters: the step's numbers and all new weights."""

    def values(packs):
        target, draft = make_model(layers=2), make_model(layers=2, seed=9)
        for model in (target, draft):
            model.model.double()
            model.packs = packs
        if rank:
            torch.manual_seed(0)
            lora.add_adapters(draft.model, rank)
        runner = runner_of((target, draft), micro_batch_size=micro_batch_size)
        draft.model.train()
        numbers = [runner.run(ragged(step)) for step in range(3)]
        assert numbers[0].tokens == sum(answer for _, answer in LENGTHS)
        measured = torch.tensor([[one.loss, one.alpha, one.grad_norm] for one in numbers], dtype=torch.float64)
        return measured, torch.cat([weight.detach().reshape(-1) for weight in draft.model.parameters()])

    for one, other in zip(values(False), values(True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_logits_are_those_of_the_answers_tokens_alone(pair, monkeypatch):
    """Packing must not bring back logits of prompts or padding: the loss gets a row for each answer token."""
    rows, original = [], DistillationLoss._divergence

    def counting(self, kind, hidden, *arguments, **named):
        rows.append(len(hidden))
        return original(self, kind, hidden, *arguments, **named)

    monkeypatch.setattr(DistillationLoss, "_divergence", counting)
    check(pair)
    assert rows == [sum(answer for _, answer in LENGTHS)] * 2


# ---- runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prompts of one to eight words with answers of one to twelve."""
    rows = [
        {
            "id": f"p{i}",
            "prompt": " ".join(f"w{(i + 3 * j) % 60}" for j in range(1 + i % 8)),
            "answer": " ".join(f"w{(2 * i + j) % 60}" for j in range(1 + (5 * i) % 12)),
        }
        for i in range(24)
    ]
    models = {"target": make_model(layers=3), "draft": make_model(layers=1, seed=9), "reference": make_model(seed=5)}
    return write_folder(tmp_path_factory.mktemp("packing"), models, rows)


@pytest.fixture
def shapes(monkeypatch):
    """Rows and tokens of each pass of a loss, and what padding would make of it."""
    from specdistill.decoding import packed_pass

    seen, original = [], packed_pass.packed_hidden_states

    def watched(model, batch, lengths, rows):
        hidden, places = original(model, batch, lengths, rows)
        seen.append((len(hidden), batch.input_ids.numel()))
        return hidden, places

    monkeypatch.setattr(packed_pass, "packed_hidden_states", watched)
    return seen


RUNS = {
    "sft": {"method": "sft"},
    "seqkd": {"method": "seqkd"},
    "best-of-n": {"method": "best-of-n"},
    "supervised-kd": {"method": "supervised-kd"},
    "distillspec": {"method": "distillspec", "target_fraction": 0.5, "micro_batch_size": 3},
    "gkd": {"method": "gkd", "ce_weight": 0.2},
    "skd": {"method": "skd"},
    "reference": {"method": "supervised-kd", "reference": "reference"},
    "lora": {"method": "supervised-kd", "lora_rank": 2},
    "checkpointed": {"method": "supervised-kd", "gradient_checkpointing": True},
    "context": {"method": "supervised-kd", "target_hint": "it is {answer}"},
    "labels": {"method": "distillspec", "soft_labels": "labels"},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_the_same_packed_and_padded_and_packs_by_itself(folder, tmp_path, shapes, name):
    settings = dict(RUNS[name])
    for place in ("reference", "soft_labels"):
        if place in settings:
            settings[place] = str((folder if place == "reference" else tmp_path) / settings[place])
    if name == "labels":
        generate(generate_config(folder, tmp_path / "answers"))
        annotate(annotate_config(folder, tmp_path / "labels", rollouts=str(tmp_path / "answers"), precision="float32"))
    train(folder, tmp_path / "padded", packing=False, learning_rate=1e-4, **settings)
    assert not shapes
    train(folder, tmp_path / "packed", learning_rate=1e-4, **settings)
    assert shapes and all(packed < padded for packed, padded in shapes)
    padded, packed = history(tmp_path / "padded"), history(tmp_path / "packed")
    assert len(padded) == len(packed) == 3
    for wanted, got in zip(padded, packed, strict=True):
        assert wanted.keys() == got.keys()
        for key, value in wanted.items():
            assert got[key] == (pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value), key


def test_a_model_that_cannot_is_padded_and_named_or_refused_before_loading(folder, tmp_path):
    """Recurrent layers: without the flag the run goes on and says so; with it nothing is loaded or written."""
    save(family_model("qwen3_next"), tmp_path / "recurrent")
    settings = {"draft": str(tmp_path / "recurrent"), "method": "sft", "steps": 2, "eval_every": 2}
    with pytest.raises(ConfigError, match=r"--packing can't be had with the draft .*recurrent: its layers of the kind"):
        train(folder, tmp_path / "refused", packing=True, **settings)
    assert not (tmp_path / "refused").exists()


def test_each_model_is_proven_for_itself(monkeypatch):
    """A draft that can't is padded while its target is packed; a head's run, and --packing=false, pack nothing."""
    target, draft, reference = make_model(), perturbed(make_model(), 0.1), make_model(seed=5)
    monkeypatch.setattr(packing, "why_unpacked", lambda model: "it mixes texts" if model is draft else None)
    lines: list[str] = []
    say = lines.append
    packing.allow_packing(ModelPair(target, draft), reference, None, say, True, False)
    assert (target.packs, draft.packs, reference.packs) == (True, False, True)
    assert lines == ["texts are padded in passes of the draft, not packed: it mixes texts"]
    with pytest.raises(ConfigError, match=r"--packing can't be had with the draft .*: it mixes texts; leave --packing"):
        packing.allow_packing(ModelPair(target, draft), None, True, say, True, False)
    for packed, wanted, parallel, weights in [(None, [True, False], True, True), (False, [False] * 2, False, True)]:
        models = make_model(), make_model(seed=9)
        packing.allow_packing(ModelPair(*models), None, packed, say, weights, parallel)
        assert [model.packs for model in models] == wanted
    shell, own = make_model(), make_model(seed=9)
    packing.allow_packing(ModelPair(shell, own), None, None, say, False, False)
    assert (shell.packs, own.packs) == (False, True)


def test_parallel_drafts_and_packing_are_refused_together():
    with pytest.raises(ConfigError, match="mask tokens behind each text"):
        any_config(parallel=4, packing=True)
    assert any_config(parallel=4).optimiser.packing is None


def test_the_setting_reaches_the_run_by_its_flags(folder, tmp_path):
    from specdistill.cli import main

    config = train_config(folder, tmp_path / "out", steps=1, eval_every=1)
    flags = ["--target", config.target, "--draft", config.draft, "--prompts", config.prompts, "--output", config.output]
    assert main(["train-draft", *flags, "--packing", "--parallel", "3"]) == 2
    assert not (tmp_path / "out").exists()
    # As the documentation writes it: there is no --no-packing.
    assert main(["train-draft", *flags, "--packing=false", "--steps", "1", "--heldout-prompts", "2"]) == 0
    assert run_settings.read(tmp_path / "out")["packing"] is False
