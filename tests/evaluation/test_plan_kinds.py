"""Kinds of drafts beside each other in `plan`: by hand, and against real heads."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from tiny_models import make_model
from torch import nn
from transformers import LlamaConfig

from specdistill.cli import main
from specdistill.data import Example
from specdistill.data.batch import collate
from specdistill.distill.target import head_states, hidden_states
from specdistill.distill.target.head_states import HeadStates
from specdistill.distill.training.head_rows import head_rows
from specdistill.errors import ConfigError
from specdistill.evaluation import plan_kinds
from specdistill.evaluation.plan import plan
from specdistill.evaluation.plan_config import PlanConfig
from specdistill.evaluation.plan_sizes import ACTIVATIONS, ADAMW_BYTES, KEPT_STATES, working_bytes
from specdistill.models.eagle3 import head_from_target
from specdistill.models.eagle3.head import Eagle3Head
from specdistill.models.eagle3.start import head_config

SMALL = {
    **{"target_params": "8B", "draft_params": "1B", "gpus": 1, "target_width": 1000, "head_ids": 500},
    **{"prompts": 10, "rollouts_per_prompt": 2, "prompt_tokens": 30, "answer_tokens": 50, "epochs": 3, "unroll": 4},
}


def settings(**changes):
    return PlanConfig.flat(**SMALL | changes)


def test_a_head_by_hand():
    """At width w: 3 w^2 make a feature, 15 w^2 are the layer (queries, keys and values read 2 w), 500 w propose ids."""
    head = plan(settings()).kinds["head"]
    assert head.parameters == 18e6 + 0.5e6
    # 1000 answer tokens and 600 of prompts, three times; every text token makes a feature, a key and a value once, and
    # each of the four steps of a round multiplies the layer, but for the first one's keys and values.
    flops = 6 * (4800 * 7e6 + 3000 * (4 * 15.5e6 - 4e6))
    assert head.trains == pytest.approx(flops / (989e12 * 0.4) / 3600)
    assert head.labels == pytest.approx(2 * 8e9 * 1600 / (989e12 * 0.4) / 3600)
    # Three states of each token, and one of each that is predicted, of 2000 bytes.
    assert head.states == 2000 * (3 * 1600 + 1000) and head.state_bytes_per_token == 8000
    # On disk beside their labels, with a row of embedding and output head for each id.
    assert head.disk == head.states + 1000 * (64 * 6 + 4) + 2 * 128256 * 2000 and head.states_are_kept
    assert head.memory > 18.5e6 * ADAMW_BYTES + 16e9 + head.states


def test_the_others_by_hand():
    planned = plan(settings(parallel=5, parallel_keep_least=0.2, labels="stored", label_top_k=16))
    one, many = planned.kinds["independent"], planned.kinds["parallel"]
    assert one.trains == pytest.approx(6e9 * 4800 / (989e12 * 0.4) / 3600)
    # The token's own row, then 0.5, 0.25, 0.2, 0.2 of a mask.
    assert many.trains == pytest.approx(6e9 * 60 * (30 + 50 * 2.15) / (989e12 * 0.4) / 3600)
    assert one.labels == many.labels and one.states == many.states == 2000 * 1000
    assert one.disk == planned.storage.labels
    alone = settings(labels="live")
    assert one.memory == pytest.approx(1e9 * ADAMW_BYTES + 16e9 + working_bytes(alone) + one.states)
    assert many.memory > one.memory


def test_states_on_disk_have_16_bits_whatever_the_target_has():
    wide, narrow = (plan(settings(dtype=name, vocab_size=500)).kinds["head"] for name in ("float32", "bfloat16"))
    assert wide.states == 2 * narrow.states
    assert wide.disk - narrow.disk == 2 * 500 * 2000, "embedding and output head alone"


def test_a_heads_states_are_beyond_what_is_kept_long_before_others():
    """2 GiB of 2000 bytes: 1,073,741 states, which 215,000 tokens of such answers have in a head, and in others a
    million."""
    kinds = plan(settings(prompts=10_000)).kinds
    assert kinds["independent"].states_are_kept and not kinds["head"].states_are_kept
    assert kinds["head"].labels == pytest.approx(3 * kinds["independent"].labels)
    assert kinds["independent"].memory - kinds["head"].memory > 1e9, "what is not kept takes no memory"


@pytest.mark.parametrize(
    ("width", "shape"),
    [
        # Llama 3.1 8B and SmolLM2 135M, which have fewer keys than queries.
        (4096, {"intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}),
        (576, {"intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}),
    ],
)
def test_parameters_of_real_heads(width, shape):
    target = LlamaConfig(hidden_size=width, num_hidden_layers=30, vocab_size=49152, **shape)
    with torch.device("meta"):
        head = Eagle3Head(head_config(target, 8192))
    real = sum(weight.numel() for weight in head.parameters())
    planned = plan_kinds.head_size(settings(target_width=width, head_ids=8192)).parameters
    assert planned == pytest.approx(real, rel=0.1)


def test_states_are_those_that_training_holds():
    target = make_model(layers=4)
    examples = [Example(f"p{row}", tuple(range(5, 35)), tuple(range(5, 55)), (2,) * 50) for row in range(3)]
    states = HeadStates(target, (2, 3, 4), examples)
    held = [rows.nbytes for rows in states.hidden_states(examples)]
    held.append(states.with_features(collate(examples), examples).aux.nbytes)
    width = target.config.hidden_size
    config = settings(target_width=width, dtype="float32", prompts=3, rollouts_per_prompt=1)
    assert plan(config).kinds["head"].states == sum(held)
    assert KEPT_STATES == head_states._CACHE_BYTES == hidden_states._CACHE_BYTES


def test_memory_of_a_real_step():
    """The tensors that autograd keeps of a head's steps, against the plan's activations and shares of attention."""
    target = make_model(layers=4, hidden=128)
    head = head_from_target(target, range(60))
    config = settings(
        target_width=128,
        dtype="float32",
        micro_batch_size=2,
        prompt_tokens=60,
        answer_tokens=100,
        unroll=3,
        head_ids=60,
    )
    batch = collate([Example(f"p{row}", (5,) * 60, (6,) * 100, (2,) * 100) for row in range(2)])
    batch = dataclasses.replace(batch, aux=torch.randn(2, 160, 3 * 128))
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in head.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        rows = head_rows(nn.Module.train(head), batch, 3)
    assert rows.hidden.requires_grad
    rows_read = 2 * (60 + 3 * 100)
    activations = rows_read * ACTIVATIONS * 128 * 4
    shares = plan_kinds.head_attention_bytes(config, 3) * 3 / 6
    assert sum(kept.values()) == pytest.approx(activations + shares, rel=0.4)


def test_the_command_compares_the_kinds(tmp_path, monkeypatch, capsys):
    out = tmp_path / "plan.json"
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["plan", *words, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "EAGLE-3 head, 4 steps" in printed and "parallel, 8 tokens" in printed
    assert "annotate --features" in printed
    written = json.loads(out.read_text())["kinds"]
    assert list(written) == ["independent", "parallel", "head"] and written["head"]["parameters"] == 18.5e6


def test_what_a_head_cannot_be():
    with pytest.raises(ConfigError, match="--unroll must be at least 1"):
        settings(unroll=0)
    with pytest.raises(ConfigError, match="--head-ids must be at least 1"):
        settings(head_ids=0)
