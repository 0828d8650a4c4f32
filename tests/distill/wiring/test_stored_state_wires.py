"""A head's states on disk: against transformers' own, and their loss against that of a target in memory."""

from __future__ import annotations

import pytest
import torch
from head_drafts import make_head
from tiny_models import make_model
from tiny_runs import annotate_config, any_config, generate_config, gradient, write_folder

from specdistill import annotate, generate, load_model
from specdistill.data.batch import collate
from specdistill.distill.answers.shards import read_rollouts, to_example
from specdistill.distill.target.head_states import HeadStates
from specdistill.distill.target.stored_states import stored_states
from specdistill.distill.training.head_loss import build_loss
from specdistill.distill.training.loss import StepTotals
from specdistill.models import ModelPair
from specdistill_kernels import DIVERGENCES

LAYERS = (2, 3, 4)
FORMATS = ("float32", "float16", "bfloat16")
# Relative: of a loss, and of a gradient's norm. Rounding of float32; 2^-11 and 2^-8 of every number in the others.
LOSS_OFF = {"float32": 1e-6, "float16": 2e-5, "bfloat16": 2e-4}
GRADIENT_OFF = {"float32": 1e-6, "float16": 5e-4, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target of seven layers, its answers, and their labels with states in each format."""
    folder = write_folder(tmp_path_factory.mktemp("stored"), {"target": make_model(layers=7)})
    generate(generate_config(folder, folder / "answers", shard_size=10, max_new_tokens=9))
    for name in FORMATS:
        annotate(annotate_config(folder, folder / name, features=name, batch_size=4))
    return folder


@pytest.fixture(scope="module")
def target(folder):
    return load_model(str(folder / "target"))


@pytest.fixture(scope="module")
def examples(folder):
    """Answers of several shards, so that places are counted through them."""
    return [to_example(row) for row in read_rollouts(folder / "answers")][3:40:6]


def by_hand(target, example, layers=LAYERS):
    """States of each layer from a plain pass over one text, and those after the final norm."""
    with torch.no_grad():
        found = target.model(torch.tensor([[*example.prompt_ids, *example.answer_ids]]), output_hidden_states=True)
    every = found.hidden_states
    return torch.cat([every[layer][0] for layer in layers], -1), every[-1][0, len(example.prompt_ids) - 1 : -1]


@pytest.mark.parametrize("name", FORMATS)
def test_stored_states_are_those_of_the_targets_layers(folder, target, examples, name):
    states, off = stored_states(folder / name, target), {"float32": 1e-5, "float16": 6e-4, "bfloat16": 4e-3}[name]
    batch = states.with_features(collate(examples), examples)
    for row, example in enumerate(examples):
        aux, predicting = by_hand(target, example)
        scale = float(aux.abs().max())
        torch.testing.assert_close(batch.aux[row, : len(aux)], aux, rtol=off, atol=off * 0.1 * scale)
        assert not batch.aux[row, len(aux) :].any()
        torch.testing.assert_close(states.hidden_states([example])[0], predicting, rtol=off, atol=off * 0.1 * scale)


def test_states_of_other_layers_are_stored_in_their_order(folder, target, examples, tmp_path):
    annotate(annotate_config(folder, tmp_path / "out", features="float32", feature_layers=(6, 0, 7)))
    aux = stored_states(tmp_path / "out", target).with_features(collate(examples[:1]), examples[:1]).aux[0]
    # transformers' last state has been through the final norm, which a head's has not.
    torch.testing.assert_close(aux[:, :64], by_hand(target, examples[0], (6, 0))[0])
    normed = target.base_model.norm(aux[len(examples[0].prompt_ids) - 1 : -1, 64:])
    torch.testing.assert_close(normed, by_hand(target, examples[0])[1])


def loss_of(pair, states, examples, **settings):
    objective = any_config(unroll=3, unroll_weights=0.5, **settings).for_draft(True)[0]
    lengths = [len(one.answer_ids) for one in examples]
    totals = StepTotals(sum(lengths), len(examples), tuple(objective.head.rows(lengths)))
    hidden = torch.cat(states.hidden_states(examples)) if objective.needs_target else None
    return build_loss(pair, objective)(states.with_features(collate(examples), examples), hidden, totals)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_loss_and_gradient_are_those_of_a_target_in_memory(folder, target, examples, kind):
    settings = {"method": "sft"} if kind == "ce" else {"divergence": kind}
    pair = ModelPair(target, make_head(target, [0, 1, *range(6, 40)]))
    live = loss_of(pair, HeadStates(target, LAYERS), examples, **settings)
    wanted = gradient(live.loss, pair.draft)
    for name in FORMATS:
        found = loss_of(pair, stored_states(folder / name, target), examples, **settings)
        assert relative(found.loss.detach(), live.loss.detach()) <= LOSS_OFF[name]
        assert relative(gradient(found.loss, pair.draft), wanted) <= GRADIENT_OFF[name]


def test_the_same_batches_give_the_same_bits(folder, target):
    """Only the company that a text has in a pass of the target makes a difference in float32."""
    chunk = [to_example(row) for row in read_rollouts(folder / "answers")][:4]
    live, stored = HeadStates(target, LAYERS), stored_states(folder / "float32", target)
    for one, other in zip(live.hidden_states(chunk), stored.hidden_states(chunk), strict=True):
        assert torch.equal(one, other)
    batch = collate(chunk)
    mask = batch.attention_mask.bool()
    assert torch.equal(live.with_features(batch, chunk).aux[mask], stored.with_features(batch, chunk).aux[mask])
