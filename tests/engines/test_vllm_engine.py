"""vLLM itself writes rollouts: `make test-engines` runs this in vLLM's own environment."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("vllm", reason="make test-engines runs these in vLLM's environment")

import torch
from tiny_models import make_model, save

from specdistill import GenerateConfig, TrainConfig, generate, load_model, train_draft
from specdistill.decoding import Sampling, generate_plain
from specdistill.distill.answers.shards import read_rollouts
from specdistill.serving.engines.vllm import VllmEngine

PROMPTS = [[3, 7, 8, 4], [3, 9, 4], [3, 30, 31, 32, 4]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    # vLLM's attention on CPUs wants heads of at least 32.
    for name, layers, seed in (("target", 3, 0), ("draft", 1, 9)):
        save(make_model(layers=layers, seed=seed, hidden=128), folder / name)
    prompts = [{"prompt": f"w{i} w{(7 * i) % 60}"} for i in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return folder


def greedy(model):
    generations = generate_plain(model, PROMPTS, sampling=Sampling(temperature=0.0), max_new_tokens=12, seeds=[0, 0, 0])
    return [generation.token_ids for generation in generations]


def test_answers_are_the_models_and_change_with_pushed_weights(files):
    draft, other = load_model(str(files / "draft")), load_model(str(files / "draft"))
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    engine = VllmEngine(draft, max_length=32)

    def written():
        return [generation.token_ids for generation in engine.write(PROMPTS, Sampling(temperature=0.0), 12, [0, 0, 0])]

    assert written() == greedy(draft)
    engine.push(other.model.named_parameters())
    assert written() == greedy(other) != greedy(draft)
    sampled = [engine.write(PROMPTS, Sampling(), 12, seeds) for seeds in ([1, 2, 3], [1, 2, 3], [4, 5, 6])]
    ids = [[generation.token_ids for generation in batch] for batch in sampled]
    assert ids[0] == ids[1] != ids[2]


def test_generate_writes_by_vllm(files, tmp_path):
    config = GenerateConfig.flat(
        target=str(files / "target"),
        prompts=str(files / "prompts.jsonl"),
        output=str(tmp_path / "out"),
        rollouts_per_prompt=1,
        temperature=0.0,
        max_new_tokens=12,
        rollout_engine="vllm",
    )
    generate(config, make_engine=VllmEngine)
    target = load_model(str(files / "target"))
    for row in read_rollouts(tmp_path / "out"):
        (own,) = generate_plain(
            target, [row["prompt_ids"]], sampling=Sampling(temperature=0.0), max_new_tokens=12, seeds=[0]
        )
        assert row["answer_ids"] == own.token_ids and row["finish_reason"] == own.finish_reason


def test_training_on_rollouts_by_vllm(files, tmp_path):
    config = TrainConfig.flat(
        target=str(files / "target"),
        draft=str(files / "draft"),
        output=str(tmp_path / "out"),
        prompts=str(files / "prompts.jsonl"),
        method="gkd",
        lmbda=1.0,
        divergence="fkl",
        heldout_prompts=8,
        max_new_tokens=12,
        steps=40,
        eval_every=20,
        push_every=2,
        learning_rate=3e-3,
        rollout_engine="vllm",
    )
    assert train_draft(config, make_engine=VllmEngine).gain["sampled"].low > 0
