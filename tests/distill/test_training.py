"""init-draft and train-draft end to end on tiny models: what they write, that they learn, and what they refuse."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import FAMILIES, make_model, save
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from specdistill import InitDraftConfig, TrainConfig, init_draft, train_draft
from specdistill.distill.answers.shards import read_rollouts
from specdistill.distill.config import METHODS
from specdistill.distill.cutting.layer_search import end_layers, even_layers
from specdistill.distill.sequences.build import target_fraction
from specdistill.distill.training import guard_rails
from specdistill.distill.training import loss as losses_module
from specdistill.distill.training import trainer as trainer_module
from specdistill.distill.training.trainer import learning_rate
from specdistill.errors import ConfigError, DataError, OutputError, SpecdistillError
from specdistill.models import load, load_model
from specdistill.progress import Quiet


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    # Two padded rows, as real families have them.
    save(make_model(layers=4, vocab_size=67), folder / "target")
    save(make_model(layers=1, seed=9, vocab_size=65), folder / "draft")
    prompts = [{"prompt": f"w{i} w{(7 * i) % 60}", "answer": f"w{(i + 1) % 60} w{(i + 2) % 60}"} for i in range(24)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return folder


def config(files, output, **settings):
    defaults = {
        "prompts": str(files / "prompts.jsonl"),
        "heldout_prompts": 6,
        "rollouts_per_prompt": 2,
        "max_new_tokens": 16,
        "steps": 6,
        "eval_every": 3,
        "learning_rate": 3e-3,
    }
    return TrainConfig.flat(
        target=str(files / "target"), draft=str(files / "draft"), output=str(output), **(defaults | settings)
    )


@pytest.mark.parametrize("method", [method for method in METHODS if method != "online"])
def test_every_method_runs_and_writes_a_plain_checkpoint(files, tmp_path, method):
    output = tmp_path / "out"
    summary = train_draft(config(files, output, method=method))
    assert summary["steps"] == 6 and summary["heldout_prompts"] == 6 and summary["training_prompts"] == 18
    model = AutoModelForCausalLM.from_pretrained(output)
    # Padded to the target's exact number of rows, as vLLM demands.
    assert model.config.vocab_size == model.get_output_embeddings().weight.shape[0] == 67
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (output / name).read_bytes() == (files / "target" / name).read_bytes()
    assert AutoTokenizer.from_pretrained(output).get_vocab() == load_model(str(files / "target")).tokenizer.get_vocab()
    history = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in history] == [0, 3, 6]
    # Strict JSON: seqkd has no training alpha, and NaN is no number.
    assert "NaN" not in (output / "history.jsonl").read_text()
    card = (output / "README.md").read_text()
    assert f"Method `{method}`" in card and f"{summary['after']['greedy']:.3f}" in card
    settings = yaml.safe_load((output / "specdistill.yaml").read_text())
    assert TrainConfig.flat(**settings) == config(files, output, method=method)
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_cut_and_trained(files, tmp_path, family, monkeypatch):
    # AutoTokenizer gives every qwen2 checkpoint Qwen's own pre-tokeniser, which the tests' whole words can't follow.
    monkeypatch.setattr(load, "AutoTokenizer", PreTrainedTokenizerFast)
    target = save(make_model(family, layers=4), tmp_path / "target")
    prompts = str(files / "prompts.jsonl")
    init_draft(
        InitDraftConfig.flat(
            target=str(target),
            output=str(tmp_path / "cut"),
            layers=2,
            prompts=prompts,
            calibration_tokens=8,
            probe_steps=2,
        )
    )
    settings = config(files, tmp_path / "out", steps=30, eval_every=10, rollouts_per_prompt=3, patience=0)
    summary = train_draft(settings.replace(target=str(target), draft=str(tmp_path / "cut")))
    assert summary["after"]["sampled"] > summary["before"]["sampled"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 2


def test_training_raises_heldout_alpha(files, tmp_path):
    summary = train_draft(
        config(files, tmp_path / "out", steps=80, eval_every=20, rollouts_per_prompt=6, target_fraction=0.7, patience=0)
    )
    for rule in ("greedy", "sampled"):
        assert summary["gain"][rule]["ci95"][0] > 0, summary["gain"]
    trained = load_model(summary["output"], "draft")
    assert trained.model.config.num_hidden_layers == 1


def test_assisted_generation_with_the_result_is_exact_and_silent(files, tmp_path, recwarn, caplog):
    output = tmp_path / "out"
    train_draft(config(files, output))
    target = AutoModelForCausalLM.from_pretrained(files / "target")
    draft = AutoModelForCausalLM.from_pretrained(output)
    ids = torch.tensor([[3, 9, 12, 4]])
    arguments = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    alone = target.generate(ids, **arguments)
    assert torch.equal(target.generate(ids, assistant_model=draft, **arguments), alone)
    assert draft.generation_config.num_assistant_tokens == 4
    assert draft.generation_config.repetition_penalty in (None, 1.0)


def test_heldout_prompts_are_never_trained_on(files, tmp_path, monkeypatch):
    seen: set[str] = set()
    original = trainer_module.DraftTrainer._one_step

    def spy(self, sequences):
        seen.update(each.prompt_id for each in sequences)
        return original(self, sequences)

    monkeypatch.setattr(trainer_module.DraftTrainer, "_one_step", spy)
    train_draft(config(files, tmp_path / "out", method="gkd", steps=12))
    assert len(seen) == 18


def test_rollouts_of_one_run_serve_another(files, tmp_path):
    train_draft(config(files, tmp_path / "one", method="seqkd"))
    saved = tmp_path / "one" / "rollouts"
    assert len(read_rollouts(saved)) == 36
    train_draft(config(files, tmp_path / "two", method="distillspec", rollouts=str(saved)))
    assert not (tmp_path / "two" / "rollouts").exists()


def test_same_seed_same_result(files, tmp_path):
    histories = []
    for name in ("one", "two"):
        train_draft(config(files, tmp_path / name, method="gkd", seed=5))
        histories.append((tmp_path / name / "history.jsonl").read_text())
    assert histories[0] == histories[1]


def test_trimmed_head_is_kept_through_training(files, tmp_path):
    init_draft(
        InitDraftConfig.flat(
            target=str(files / "target"),
            output=str(tmp_path / "cut"),
            layers=2,
            vocab_keep=30,
            prompts=str(files / "prompts.jsonl"),
            calibration_tokens=8,
        )
    )
    train_draft(config(files, tmp_path / "out").replace(draft=str(tmp_path / "cut")))
    trained = load_model(str(tmp_path / "out"), "draft")
    assert trained.kept_ids is not None and len(trained.kept_ids) == 30 and 1 in trained.kept_ids
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert full.get_output_embeddings().weight.shape[0] == 67, "engines get the full vocabulary"


def test_a_draft_trains_in_float32_and_is_saved_as_it_was_stored(files, tmp_path):
    stored = make_model(layers=1, seed=9)
    stored.model = stored.model.to(torch.bfloat16)
    draft = save(stored, tmp_path / "bf16")
    train_draft(config(files, tmp_path / "out", steps=3).replace(draft=str(draft)))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_early_stopping_keeps_the_best(files, tmp_path):
    summary = train_draft(config(files, tmp_path / "out", learning_rate=50.0, steps=30, eval_every=1, patience=2))
    assert summary["steps"] < 30
    assert summary["after"]["sampled"] >= summary["before"]["sampled"]


def test_when_nothing_is_better_the_start_is_written_unchanged(files, tmp_path, monkeypatch):
    target = str(files / "target")
    same = config(files, tmp_path / "out", learning_rate=1.0, steps=2, eval_every=1).replace(draft=target)
    summary = train_draft(same)
    assert summary["best_step"] == 0
    start = load_model(target).model.state_dict()
    written = load_model(str(tmp_path / "out")).model.state_dict()
    assert all(torch.equal(written[name][:65], tensor[:65]) for name, tensor in start.items())


def test_a_loss_that_is_not_finite_stops_with_the_remedy_and_keeps_the_best(files, tmp_path, monkeypatch):
    original = losses_module.fused_divergence
    calls = iter(range(100))

    def broken(*args, **kwargs):
        output = original(*args, **kwargs)
        return output._replace(loss=output.loss * float("nan")) if next(calls) == 4 else output

    monkeypatch.setattr(losses_module, "fused_divergence", broken)
    with pytest.raises(SpecdistillError, match=r"step 5 \(prompts .*lower --learning-rate"):
        train_draft(config(files, tmp_path / "out"))
    assert (tmp_path / "out" / "history.jsonl").exists()
    dump = json.loads((tmp_path / "out" / "failed-step-000005" / "sequences.json").read_text())
    assert dump["step"] == 5 and len(dump["sequences"]) == 8


def test_a_step_that_failed_is_reproduced_from_its_dump(files, tmp_path):
    """A rate that explodes the weights: the step's own loss is not finite, and neither is the one computed again."""
    with pytest.raises(SpecdistillError, match=r"what reproduces the step in failed-step-"):
        train_draft(
            config(files, tmp_path / "out", learning_rate=1e30, steps=40, eval_every=40, method="supervised-kd")
        )
    (directory,) = (tmp_path / "out").glob("failed-step-*")
    loss, norm = guard_rails.reproduce(directory)
    assert not (math.isfinite(loss) and math.isfinite(norm))


def test_a_step_is_reproduced_to_the_last_digits(files, tmp_path, monkeypatch):
    original = losses_module.DistillationLoss.forward
    seen = []

    def breaking(self, *arguments, **named):
        output = original(self, *arguments, **named)
        seen.append(float(output.loss.detach()))
        return output._replace(loss=output.loss * math.inf) if len(seen) == 4 else output

    monkeypatch.setattr(losses_module.DistillationLoss, "forward", breaking)
    with pytest.raises(SpecdistillError, match="at step 4"):
        train_draft(config(files, tmp_path / "out", method="gkd"))
    loss, norm = guard_rails.reproduce(tmp_path / "out" / "failed-step-000004")
    assert loss == pytest.approx(seen[3], rel=1e-5) and 0 < norm < math.inf


def test_out_of_memory_names_the_knob(files, tmp_path, monkeypatch):
    def full(self, sequences):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(trainer_module.DraftTrainer, "_one_step", full)
    with pytest.raises(SpecdistillError, match=r"--micro-batch-size 4 .*--gradient-checkpointing.*--resume"):
        train_draft(config(files, tmp_path / "out"))


def test_a_falling_held_out_alpha_warns(files, tmp_path):
    lines = []
    progress = Quiet()
    progress.say = lines.append
    train_draft(config(files, tmp_path / "out", learning_rate=1.0, steps=12, eval_every=2, patience=0), progress)
    assert any(line.startswith("warning: held-out alpha (sampled): it") for line in lines)
    assert guard_rails.falling([0.3, 0.4, 0.5]) is None and guard_rails.falling([0.3, 0.2]) is None
    assert guard_rails.falling([0.3, 0.5, 0.4, 0.35]) == "it fell in two looks running"
    assert guard_rails.falling([0.3, 0.1, 0.2]) == "it is below the start's"


def test_full_disk_while_saving_leaves_the_last_checkpoint(files, tmp_path, monkeypatch):
    from specdistill.models import checkpoint

    original = checkpoint._publish
    saves = iter(range(1000))

    def full(source, destination):
        if destination.name == "model.safetensors" and next(saves) >= 1:
            raise OSError(28, "No space left on device")
        original(source, destination)

    monkeypatch.setattr(checkpoint, "_publish", full)
    with pytest.raises(OutputError, match="disk full while writing"):
        train_draft(config(files, tmp_path / "out", steps=60, eval_every=5))
    load_model(str(tmp_path / "out"), "draft")
    assert not list((tmp_path / "out").glob(".saving*"))


def test_interrupt_keeps_what_was_learned(files, tmp_path, monkeypatch):
    original = trainer_module.DraftTrainer._one_step

    def interrupted(self, sequences):
        if self.step == 3:
            raise KeyboardInterrupt
        return original(self, sequences)

    monkeypatch.setattr(trainer_module.DraftTrainer, "_one_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_draft(config(files, tmp_path / "out", eval_every=100))
    output = tmp_path / "out"
    trained, start = load_model(str(output), "draft"), load_model(str(files / "draft"), "draft")
    assert not torch.equal(trained.head_weight[:65], start.head_weight[:65])
    assert len(read_rollouts(output / "rollouts")) == 36
    card = (output / "README.md").read_text()
    assert "(interrupted)" in card and "interrupted before the first measurement" in card


def test_output_that_holds_a_run_is_refused(files, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.safetensors").write_text("precious")
    with pytest.raises(OutputError, match="already holds files"):
        train_draft(config(files, tmp_path / "old"))
    assert (tmp_path / "old" / "model.safetensors").read_text() == "precious"


def test_supervised_needs_answers_before_anything_is_generated(files, tmp_path):
    (tmp_path / "p.txt").write_text("w1\nw2\nw3\n")
    with pytest.raises(DataError, match='needs the field "answer"'):
        train_draft(config(files, tmp_path / "out", method="supervised-kd", prompts=str(tmp_path / "p.txt")))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "magic"}, "unknown --method 'magic'"),
        ({"beta": 1.1}, "--beta must be in"),
        ({"beta": 0.5}, "--beta belongs to jsd"),
        ({"lmbda": 1.1}, "--lmbda"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"method": "seqkd", "divergence": "rkl"}, "minimises cross entropy"),
        ({"method": "skd", "rollouts": "x"}, "does not use"),
        ({"method": "skd", "guidance": 1.0, "negative_prompt": "x"}, "does not go with --method skd"),
        ({"guidance": 1.0}, "go together"),
        ({"method": "skd", "reward": "m:f"}, "does not make"),
        ({"reward": "m:f", "top_p": 0.9}, "sampled from the whole distribution"),
        ({"reference": "r", "divergence": "rkl"}, "selects tokens for fkl only"),
        ({"text": "t.txt"}, "is trained on by sft and supervised-kd"),
        ({"divergence": "skewed_kl", "beta": 1.0}, "nothing is learned"),
        ({"ce_weight": 1.5}, "--ce-weight must be in"),
        ({"select_fraction": 0.0}, "--select-fraction"),
        ({"temperature": -0.1}, "--temperature"),
    ],
)
def test_refuses_settings(settings, text):
    with pytest.raises(ConfigError, match=text):
        TrainConfig.flat(**({"target": "t", "draft": "d", "output": "o"} | settings))


def test_learning_rate_by_size_and_freshness(tmp_path):
    free = TrainConfig.flat(target="t", draft="d", output="o")

    def rates(directory):
        sizes = (42_000_000, 135_000_000, 1_000_000_000)
        drafts = [SimpleNamespace(directory=directory, num_parameters=size) for size in sizes]
        return [learning_rate(free, draft) for draft in drafts]

    assert rates(tmp_path) == rates(None) == [3e-4, 1e-4, 1e-5]
    (tmp_path / "init_draft.json").write_text("{}")
    assert rates(tmp_path) == [1.5e-3, 5e-4, 1e-4]
    fixed = TrainConfig.flat(target="t", draft="d", output="o", learning_rate=2e-5)
    assert learning_rate(fixed, make_model()) == 2e-5


def test_a_fresh_cut_learns_from_the_target_only(tmp_path):
    free = TrainConfig.flat(target="t", draft="d", output="o")
    draft = SimpleNamespace(directory=tmp_path)
    assert target_fraction(free, draft) == 0.6
    (tmp_path / "init_draft.json").write_text("{}")
    assert target_fraction(free, draft) == 1.0
    assert target_fraction(free.replace(target_fraction=0.0), draft) == 0.0


def test_layer_patterns():
    assert even_layers(30, 4) == [0, 10, 19, 29] and even_layers(5, 1) == [0]
    assert end_layers(30, 4) == [0, 1, 28, 29] and end_layers(30, 3) == [0, 1, 29] and end_layers(5, 1) == [0]


@pytest.mark.parametrize("choose", ["auto", "even", "ends", "greedy"])
def test_init_draft_measures_and_keeps_the_best(files, tmp_path, choose):
    record = init_draft(
        InitDraftConfig.flat(
            target=str(files / "target"),
            output=str(tmp_path / "cut"),
            layers=2,
            choose=choose,
            prompts=str(files / "prompts.jsonl"),
            calibration_tokens=8,
        )
    )
    found = record["candidates"]
    assert set(found) == ({"even", "ends", "greedy"} if choose == "auto" else {choose})
    if choose == "auto":
        best = max(found.values(), key=lambda each: each["trained_alpha"])
        assert record["layers"] == best["layers"]
        assert all(each["trained_alpha"] > each["alpha"] for each in found.values()), "a few steps must help every cut"
    assert found[choose if choose != "auto" else "even"]["alpha"] > 0
    assert json.loads((tmp_path / "cut" / "init_draft.json").read_text()) == json.loads(json.dumps(record))
    assert load_model(str(tmp_path / "cut"), "draft").config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"layers": 4}, "below the target's 4 layers"), ({"layers": 1, "vocab_keep": 66}, "exceeds the vocabulary")],
)
def test_init_draft_refuses(files, tmp_path, settings, text):
    with pytest.raises(ConfigError, match=text):
        init_draft(
            InitDraftConfig.flat(
                target=str(files / "target"),
                output=str(tmp_path / "x"),
                prompts=str(files / "prompts.jsonl"),
                **settings,
            )
        )
