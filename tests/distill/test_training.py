"""init-draft and train-draft end to end on tiny models: the files they write, that they learn, and their refusals."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import FAMILIES, make_model, save
from tiny_runs import (
    any_config,
    before_each_step,
    cut_config,
    history,
    spoil_loss,
    train,
    train_config,
    write_folder,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from specdistill import TrainConfig, init_draft, train_draft
from specdistill.distill.answers.shards import read_rollouts
from specdistill.distill.config import METHODS
from specdistill.distill.cutting.layer_search import end_layers, even_layers
from specdistill.distill.reproduce import reproduce
from specdistill.distill.sequences.build import target_fraction
from specdistill.distill.sequences.settings import SequenceSettings
from specdistill.distill.training import guard_rails
from specdistill.distill.training import loss as losses_module
from specdistill.distill.training.settings import OptimiserSettings
from specdistill.distill.training.step import learning_rate
from specdistill.errors import ConfigError, DataError, OutOfMemoryError, OutputError, SpecdistillError
from specdistill.models import load, load_model
from specdistill.progress import Quiet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target with two padded rows, as real families have them."""
    models = {"target": make_model(layers=4, vocab_size=67), "draft": make_model(layers=1, seed=9, vocab_size=65)}
    return write_folder(tmp_path_factory.mktemp("training"), models)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "online"])
def test_every_method_runs_and_writes_a_plain_checkpoint(folder, tmp_path, method):
    output = tmp_path / "out"
    summary = train(folder, output, method=method)
    assert summary.steps == 8 and summary.heldout_prompts == 6 and summary.training_prompts == 18
    model = AutoModelForCausalLM.from_pretrained(output)
    # Padded to the target's exact number of rows, as vLLM demands.
    assert model.config.vocab_size == model.get_output_embeddings().weight.shape[0] == 67
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (output / name).read_bytes() == (folder / "target" / name).read_bytes()
    assert AutoTokenizer.from_pretrained(output).get_vocab() == load_model(str(folder / "target")).tokenizer.get_vocab()
    assert [entry["step"] for entry in history(output)] == [0, 4, 8]
    # Strict JSON: seqkd has no training alpha, and NaN is no number.
    assert "NaN" not in (output / "history.jsonl").read_text()
    card = (output / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n") and "\n\n\n" not in card
    assert f"Method `{method}`" in card and f"{summary.after['greedy']:.3f}" in card
    settings = yaml.safe_load((output / "specdistill.yaml").read_text())
    assert TrainConfig.flat(**settings) == train_config(folder, output, method=method)
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_cut_and_trained(folder, tmp_path, family, monkeypatch):
    # AutoTokenizer gives every qwen2 checkpoint Qwen's own pre-tokeniser, which the tests' whole words can't follow.
    monkeypatch.setattr(load, "AutoTokenizer", PreTrainedTokenizerFast)
    target = save(make_model(family, layers=4), tmp_path / "target")
    init_draft(cut_config(folder, tmp_path / "cut", target=str(target), probe_steps=2))
    models = {"target": str(target), "draft": str(tmp_path / "cut")}
    summary = train(folder, tmp_path / "out", **models, steps=30, eval_every=10, rollouts_per_prompt=3, patience=0)
    assert summary.after["sampled"] > summary.before["sampled"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.num_hidden_layers == 2


def test_training_raises_heldout_alpha(folder, tmp_path):
    settings = {"steps": 80, "eval_every": 20, "rollouts_per_prompt": 6, "target_fraction": 0.7, "patience": 0}
    summary = train(folder, tmp_path / "out", **settings)
    for rule in ("greedy", "sampled"):
        assert summary.gain[rule].low > 0, summary.gain
    trained = load_model(summary.output, "draft")
    assert trained.model.config.num_hidden_layers == 1


def test_assisted_generation_with_the_result_is_exact_and_silent(folder, tmp_path, recwarn, caplog):
    output = tmp_path / "out"
    train(folder, output)
    target = AutoModelForCausalLM.from_pretrained(folder / "target")
    draft = AutoModelForCausalLM.from_pretrained(output)
    ids = torch.tensor([[3, 9, 12, 4]])
    arguments = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    alone = target.generate(ids, **arguments)
    assert torch.equal(target.generate(ids, assistant_model=draft, **arguments), alone)
    assert draft.generation_config.num_assistant_tokens == 4
    assert draft.generation_config.repetition_penalty in (None, 1.0)


def test_heldout_prompts_are_never_trained_on(folder, tmp_path, monkeypatch):
    seen: set[str] = set()
    before_each_step(monkeypatch, lambda step, examples: seen.update(one.prompt_id for one in examples))
    train(folder, tmp_path / "out", method="gkd", steps=12)
    assert len(seen) == 18


def test_rollouts_of_one_run_serve_another(folder, tmp_path):
    train(folder, tmp_path / "one", method="seqkd")
    saved = tmp_path / "one" / "rollouts"
    assert len(read_rollouts(saved)) == 36
    train(folder, tmp_path / "two", method="distillspec", rollouts=str(saved))
    assert not (tmp_path / "two" / "rollouts").exists()


def test_same_seed_same_result(folder, tmp_path):
    histories = []
    for name in ("one", "two"):
        train(folder, tmp_path / name, method="gkd", seed=5)
        histories.append((tmp_path / name / "history.jsonl").read_text())
    assert histories[0] == histories[1]


def test_trimmed_head_is_kept_through_training(folder, tmp_path):
    init_draft(cut_config(folder, tmp_path / "cut", vocab_keep=30))
    train(folder, tmp_path / "out", draft=str(tmp_path / "cut"))
    trained = load_model(str(tmp_path / "out"), "draft")
    assert trained.kept_ids is not None and len(trained.kept_ids) == 30 and 1 in trained.kept_ids
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert full.get_output_embeddings().weight.shape[0] == 67, "engines get the full vocabulary"


def test_a_draft_trains_in_float32_and_is_saved_as_it_was_stored(folder, tmp_path):
    stored = make_model(layers=1, seed=9)
    stored.model = stored.model.to(torch.bfloat16)
    draft = save(stored, tmp_path / "bf16")
    train(folder, tmp_path / "out", steps=3, draft=str(draft))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_early_stopping_keeps_the_best(folder, tmp_path):
    summary = train(folder, tmp_path / "out", learning_rate=50.0, steps=30, eval_every=1, patience=2)
    assert summary.steps < 30
    assert summary.after["sampled"] >= summary.before["sampled"]


def test_when_nothing_is_better_the_start_is_written_unchanged(folder, tmp_path, monkeypatch):
    target = str(folder / "target")
    summary = train(folder, tmp_path / "out", draft=target, method="sft", learning_rate=1.0, steps=2, eval_every=1)
    assert summary.best_step == 0
    start = load_model(target).model.state_dict()
    written = load_model(str(tmp_path / "out")).model.state_dict()
    assert all(torch.equal(written[name][:65], tensor[:65]) for name, tensor in start.items())


def test_a_loss_that_is_not_finite_stops_with_the_remedy_and_keeps_the_best(folder, tmp_path, monkeypatch):
    original = losses_module.fused_divergence
    calls = iter(range(100))

    def broken(*args, **kwargs):
        output = original(*args, **kwargs)
        return output._replace(loss=output.loss * float("nan")) if next(calls) == 4 else output

    monkeypatch.setattr(losses_module, "fused_divergence", broken)
    with pytest.raises(SpecdistillError, match=r"step 5 \(prompts .*lower --learning-rate"):
        train(folder, tmp_path / "out")
    assert (tmp_path / "out" / "history.jsonl").exists()
    dump = json.loads((tmp_path / "out" / "failed-step-000005" / "sequences.json").read_text())
    assert dump["step"] == 5 and len(dump["sequences"]) == 8


def test_a_step_that_failed_is_reproduced_from_its_dump(folder, tmp_path):
    """A rate that explodes the weights: the step's own loss is not finite, and neither is the one computed again."""
    with pytest.raises(SpecdistillError, match=r"what reproduces the step in failed-step-"):
        train(folder, tmp_path / "out", learning_rate=1e30, steps=40, eval_every=40, method="supervised-kd")
    (directory,) = (tmp_path / "out").glob("failed-step-*")
    loss, norm = reproduce(directory)
    assert not (math.isfinite(loss) and math.isfinite(norm))


def test_a_step_is_reproduced_to_the_last_digits(folder, tmp_path, monkeypatch):
    values = spoil_loss(monkeypatch, call=4)
    with pytest.raises(SpecdistillError, match="at step 4"):
        train(folder, tmp_path / "out", method="gkd")
    loss, norm = reproduce(tmp_path / "out" / "failed-step-000004")
    assert loss == pytest.approx(values[3], rel=1e-5) and 0 < norm < math.inf


def test_out_of_memory_names_the_knob(folder, tmp_path, monkeypatch):
    def full(step, examples):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        before_each_step(patch, full)
        with pytest.raises(
            SpecdistillError, match=r"--micro-batch-size 4 .*--gradient-checkpointing .*--resume"
        ) as error:
            train(folder, tmp_path / "out")
    flags = re.search(r"set (.*) and --resume", str(error.value))[1].split(" or ")
    assert flags == ["--micro-batch-size 4", "--gradient-checkpointing"]
    # What is advised is taken.
    summary = train(folder, tmp_path / "out", resume=True, micro_batch_size=4, gradient_checkpointing=True)
    assert summary.steps == 8


def test_out_of_memory_names_nothing_that_was_done_already():
    least = OptimiserSettings(micro_batch_size=1, gradient_checkpointing=True)
    full = "DefaultCPUAllocator: can't allocate memory"
    with pytest.raises(OutOfMemoryError) as error, guard_rails.out_of_memory_named(least, make_model(layers=1)):
        raise RuntimeError(full)
    assert "--micro-batch-size" not in str(error.value) and "--gradient" not in str(error.value)


def test_a_falling_held_out_alpha_warns(folder, tmp_path):
    lines = []
    progress = Quiet()
    progress.say = lines.append
    train_draft(train_config(folder, tmp_path / "out", learning_rate=1.0, steps=12, eval_every=2, patience=0), progress)
    (line, *_) = [line for line in lines if line.startswith("warning: held-out alpha (sampled): it")]
    assert line.endswith("; lower --learning-rate")
    assert guard_rails.worsening([0.3, 0.4, 0.5]) is None and guard_rails.worsening([0.3, 0.2]) is None
    assert guard_rails.worsening([0.3, 0.5, 0.4, 0.35]) == "it got worse in two evaluations running"
    assert guard_rails.worsening([0.3, 0.1, 0.2]) == "it is worse than the start's"


def test_the_remedies_are_flags_that_the_method_takes(folder, tmp_path):
    """Whatever flag a warning names can be given to the same run."""
    named = {
        ("distillspec", None, False): "",
        ("distillspec", None, True): "--target-fraction",
        ("distillspec", 0.5, False): "--target-fraction",
        ("gkd", None, False): "--lmbda",
        ("skd", None, False): "--skd-top-k",
    }
    for method in METHODS:
        settings = SequenceSettings(target_fraction=None)
        said = guard_rails.worsening_remedy(method, settings, False)
        for flag in re.findall(r"--([a-z-]+)", said):
            assert flag == "learning-rate" or flag.replace("-", "_") in METHODS[method].settings
    for (method, fraction, own), flag in named.items():
        said = guard_rails.worsening_remedy(method, SequenceSettings(target_fraction=fraction), own)
        assert said == "lower --learning-rate" if not flag else said.endswith(f" {flag})")


def test_a_warning_of_skd_advises_what_skd_takes(folder, tmp_path):
    lines = []
    progress = Quiet()
    progress.say = lines.append
    settings = {"learning_rate": 1.0, "steps": 8, "eval_every": 2, "patience": 0, "method": "skd"}
    train_draft(train_config(folder, tmp_path / "out", **settings), progress)
    warned = [line for line in lines if line.startswith("warning: held-out alpha (sampled): it")]
    assert warned and all("--target-fraction" not in line and "--skd-top-k" in line for line in warned)


def test_full_disk_while_saving_leaves_the_last_checkpoint(folder, tmp_path, monkeypatch):
    from specdistill.models import checkpoint

    original = checkpoint._publish
    saves = iter(range(1000))

    def full(source, destination):
        if destination.name == "model.safetensors" and next(saves) >= 1:
            raise OSError(28, "No space left on device")
        original(source, destination)

    monkeypatch.setattr(checkpoint, "_publish", full)
    with pytest.raises(OutputError, match="disk full while writing"):
        train(folder, tmp_path / "out", steps=60, eval_every=5)
    load_model(str(tmp_path / "out"), "draft")
    assert not list((tmp_path / "out").glob(".saving*"))


def test_interrupt_keeps_what_was_learned(folder, tmp_path, monkeypatch):
    def interrupt(step, examples):
        if step == 3:
            raise KeyboardInterrupt

    before_each_step(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(folder, tmp_path / "out", eval_every=100)
    output = tmp_path / "out"
    trained, start = load_model(str(output), "draft"), load_model(str(folder / "draft"), "draft")
    assert not torch.equal(trained.head_weight[:65], start.head_weight[:65])
    assert len(read_rollouts(output / "rollouts")) == 36
    card = (output / "README.md").read_text()
    assert "2 steps (interrupted)" in card
    assert "Step 2 was kept: the last one before the interruption, which was not measured." in card
    before = json.loads((output / "history.jsonl").read_text())["heldout_alpha_greedy"]
    assert f"| greedy | {before:.3f} | not measured (interrupted) | |" in card and "no later draft" not in card


def test_output_that_holds_a_run_is_refused(folder, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.safetensors").write_text("precious")
    with pytest.raises(OutputError, match="already holds files"):
        train(folder, tmp_path / "old")
    assert (tmp_path / "old" / "model.safetensors").read_text() == "precious"


def test_supervised_needs_answers_before_anything_is_generated(folder, tmp_path):
    (tmp_path / "p.txt").write_text("w1\nw2\nw3\n")
    with pytest.raises(DataError, match=r'have no field "answer" .*supervised-kd needs'):
        train(folder, tmp_path / "out", method="supervised-kd", prompts=str(tmp_path / "p.txt"))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "magic"}, "--method must be one of sft, .* online, got 'magic'"),
        ({"beta": 1.1}, "--beta must be in"),
        ({"beta": 0.5}, "--beta belongs to jsd"),
        ({"lmbda": 1.1}, "--lmbda"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"method": "seqkd", "divergence": "rkl"}, "--divergence .*, not with seqkd"),
        ({"method": "skd", "rollouts": "x"}, "--rollouts .*, not with skd"),
        ({"method": "skd", "guidance": 1.0, "negative_prompt": "x"}, "--guidance .*, not with skd"),
        ({"guidance": 1.0}, "go together"),
        ({"method": "skd", "reward": "m:f"}, "--reward .*, not with skd"),
        ({"reward": "m:f", "top_p": 0.9}, "sampled from the whole distribution"),
        ({"reference": "r", "divergence": "rkl"}, "selects tokens for fkl only"),
        ({"text": "t.txt"}, "--text .*goes with --method sft, supervised-kd, not with distillspec"),
        ({"divergence": "skewed_kl", "beta": 1.0}, "nothing is learned"),
        ({"ce_weight": 1.5}, "--ce-weight must be in"),
        ({"select_fraction": 0.0}, "--select-fraction"),
        ({"temperature": -0.1}, "--temperature"),
    ],
)
def test_refuses_settings(settings, text):
    with pytest.raises(ConfigError, match=text):
        any_config(**settings)


def test_learning_rate_by_size_and_freshness(tmp_path):
    free = any_config()

    def rates(directory):
        sizes = (42_000_000, 135_000_000, 1_000_000_000)
        drafts = [SimpleNamespace(directory=directory, num_parameters=size, learns_to_guess=False) for size in sizes]
        return [learning_rate(free.optimiser, draft) for draft in drafts]

    assert rates(tmp_path) == rates(None) == [3e-4, 1e-4, 1e-5]
    (tmp_path / "init_draft.json").write_text("{}")
    assert rates(tmp_path) == [1.5e-3, 5e-4, 1e-4]
    # Adapters start at zero: about ten times the rate of full training.
    trained = [
        SimpleNamespace(directory=None, num_parameters=size, learns_to_guess=False) for size in (42e6, 135e6, 1e9)
    ]
    assert [learning_rate(any_config(lora_rank=4).optimiser, draft) for draft in trained] == [1.5e-3, 5e-4, 1e-4]
    fixed = any_config(learning_rate=2e-5)
    assert learning_rate(fixed.optimiser, make_model()) == 2e-5


def test_a_draft_learns_from_its_own_answers_only_where_something_asks_for_them():
    assert target_fraction(None, own_answers=False) == 1.0
    assert target_fraction(None, own_answers=True) == 0.6
    assert target_fraction(0.0, own_answers=False) == 0.0


def test_layer_patterns():
    assert even_layers(30, 4) == [0, 10, 19, 29] and even_layers(5, 1) == [0]
    assert end_layers(30, 4) == [0, 1, 28, 29] and end_layers(30, 3) == [0, 1, 29] and end_layers(5, 1) == [0]


@pytest.mark.parametrize("choose", ["auto", "even", "ends", "greedy"])
def test_init_draft_measures_and_keeps_the_best(folder, tmp_path, choose):
    record = init_draft(cut_config(folder, tmp_path / "cut", choose=choose))
    candidates = record.candidates
    assert set(candidates) == ({"even", "ends", "greedy"} if choose == "auto" else {choose})
    if choose == "auto":
        best = max(candidates.values(), key=lambda candidate: candidate.trained_alpha)
        assert record.layers == best.layers
        assert all(cut.trained_alpha > cut.alpha for cut in candidates.values()), "a few steps must help every cut"
    assert candidates[choose if choose != "auto" else "even"].alpha > 0
    assert json.loads((tmp_path / "cut" / "init_draft.json").read_text()) == json.loads(json.dumps(record.to_json()))
    assert load_model(str(tmp_path / "cut"), "draft").config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("settings", "text"),
    [({"layers": 4}, "below the target's 4 layers"), ({"layers": 1, "vocab_keep": 66}, "exceeds the vocabulary")],
)
def test_init_draft_refuses(folder, tmp_path, settings, text):
    with pytest.raises(ConfigError, match=text):
        init_draft(cut_config(folder, tmp_path / "x", **settings))
