"""Whole runs with `--parallel`: what is written, resumed, frozen and refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from by_hand import watched_run
from safetensors.torch import load_file
from tiny_models import make_model, make_tokenizer
from tiny_runs import (
    Said,
    any_config,
    history,
    prompt_rows,
    same_weights,
    spoil_loss,
    train,
    train_config,
    write_folder,
    write_rows,
)

from specdistill import train_draft
from specdistill.distill import ending
from specdistill.distill.reproduce import reproduce
from specdistill.distill.target.place import Stored
from specdistill.distill.training.anchors import Anchored
from specdistill.distill.training.heldout_parallel import forgotten_skill, unlearned_guesses
from specdistill.distill.training.settings import OptimiserSettings
from specdistill.distill.training.step import learning_rate
from specdistill.errors import ConfigError, ModelError, SpecdistillError
from specdistill.evaluation.statistics import Estimate
from specdistill.evaluation.to_json import finite
from specdistill.files import run_settings
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import load_model
from specdistill.models.mask_token import install_mask_token
from specdistill.report.distill import training_table

# A vocabulary of 65 ids, and heads of 72 rows: the first row of padding is free.
FREE = 65


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    models = {
        "target": make_model(layers=2, vocab_size=72),
        "draft": make_model(layers=1, seed=9, vocab_size=72),
        "tied": make_model(layers=1, seed=9, vocab_size=72, tied=True),
        "full_target": make_model(layers=2),
        "full": make_model(layers=1, seed=9),
        "foreign": make_model(layers=1, seed=9, tokenizer=make_tokenizer(50, "other"), vocab_size=55),
    }
    return write_folder(tmp_path_factory.mktemp("parallel"), models)


FEW = {"parallel": 3, "method": "supervised-kd", "steps": 6, "eval_every": 3}


def config_of(output):
    return json.loads((output / "config.json").read_text())


def test_a_trained_draft_takes_a_fresh_cuts_rate_until_it_guesses_in_parallel(folder, tmp_path):
    few = FEW | {"steps": 1, "eval_every": 1, "keep": "last", "learning_rate": 0.0}
    first = train(folder, tmp_path / "first", draft=str(folder / "draft"), **few)
    on = train(folder, tmp_path / "on", draft=str(tmp_path / "first"), **few)
    ordinary = train(folder, tmp_path / "ordinary", draft=str(folder / "draft"), **few | {"parallel": 0})
    assert [summary.learning_rate for summary in (first, on, ordinary)] == [1.5e-3, 3e-4, 3e-4]


def test_a_draft_from_the_hub_takes_that_rate_too():
    """Its files are in the hub's cache, so no directory of it is known."""
    draft = make_model(layers=1, vocab_size=72)
    assert draft.directory is None
    rates = []
    for tokens in (2, 3):
        install_mask_token(draft, ParallelDrafting(FREE, tokens), 72)
        rates.append(learning_rate(OptimiserSettings(), draft))
    assert rates == [1.5e-3, 3e-4], "a parallel draft that is trained on has learned to guess already"


def test_another_mask_token_than_the_drafts_own_begins_anew_and_is_said(folder, tmp_path):
    """It took the low rate of a draft that knows its masks, and nobody said that what it had learned was left."""
    train(folder, tmp_path / "first", draft=str(folder / "draft"), **FEW | {"keep": "last"})
    few = FEW | {"draft": str(tmp_path / "first"), "steps": 1, "eval_every": 1, "learning_rate": 0.0}
    said = Said()
    summary = train_draft(train_config(folder, tmp_path / "other", mask_token=70, **few), said)
    (line,) = [line for line in said.lines if "the mask token that it learned" in line]
    assert line.startswith("warning: --mask-token 70") and "65" in line
    assert summary.learning_rate == 1.5e-3
    assert not any("that it learned" in line for line in said_by(folder, tmp_path / "own", mask_token=FREE, **few))


@pytest.mark.parametrize("draft", ["draft", "tied"])
def test_the_checkpoint_names_its_mask_token_and_drafts_both_ways(folder, tmp_path, draft):
    summary = train(folder, tmp_path / "out", draft=str(folder / draft), **FEW)
    config = config_of(tmp_path / "out")
    assert (config["pard_token"], config["parallel_draft_tokens"], config["vocab_size"]) == (FREE, 3, 72)
    assert summary.watched == "tokens per target call"
    names = ["tokens_per_call", "tokens_per_call_one_by_one", *(f"acceptance_at_{depth}" for depth in (1, 2, 3))]
    assert list(summary.after) == ["greedy", "sampled", "argmax_draft", *names]
    entries = history(tmp_path / "out")
    assert entries[-1]["watched"] == "heldout_tokens_per_call"
    assert entries[-1]["heldout_tokens_per_call"] == pytest.approx(summary.after["tokens_per_call"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Beware" not in card
    assert '"num_speculative_tokens": 3, "parallel_drafting": true' in card
    assert "it guesses up to 3 tokens in one pass" in card
    loaded = load_model(str(tmp_path / "out"), "draft")
    assert loaded.parallel is not None and loaded.parallel.mask_id == FREE


def test_the_best_draft_is_the_one_with_most_tokens_per_call(folder, tmp_path):
    summary = train(folder, tmp_path / "out", **FEW | {"learning_rate": 1e-30})
    entries = history(tmp_path / "out")
    best = max(entries, key=lambda entry: entry["heldout_tokens_per_call"])
    assert summary.best_step == best["step"] == 0


def test_a_start_that_is_kept_stays_the_ordinary_draft_that_it_was(folder, tmp_path, capsys):
    """It was written with `pard_token`, and served as a parallel draft whose masks had learned nothing."""
    settings = FEW | {"draft": str(folder / "draft"), "learning_rate": 1e-30}
    summary = train(folder, tmp_path / "out", **settings)
    assert summary.kept_step == 0
    assert same_weights(folder / "draft", tmp_path / "out")
    assert not {"pard_token", "parallel_draft_tokens"} & set(config_of(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "parallel_drafting" not in card and "A parallel draft" not in card
    training_table(summary)
    for text in (card, capsys.readouterr().out):
        assert "no draft of the run had better held-out tokens per target call" in text
        assert "one token per pass" in text


def test_a_kept_start_is_said_to_be_best_by_what_was_watched(folder, tmp_path):
    """A run that watched alpha was told that no draft gave more tokens per target call, though a later one did."""
    settings = FEW | {"draft": str(folder / "draft"), "watch": "alpha", "learning_rate": 1e-30}
    unlearned = train(folder, tmp_path / "out", **settings).unlearned
    assert unlearned is not None
    assert "no draft of the run had better held-out alpha (sampled) than its start" in unlearned


def test_a_parallel_start_that_is_kept_guesses_as_many_tokens_as_before(folder, tmp_path):
    train(folder, tmp_path / "first", draft=str(folder / "draft"), **FEW | {"keep": "last"})
    again = FEW | {"draft": str(tmp_path / "first"), "learning_rate": 1e-30, "parallel": 2}
    summary = train(folder, tmp_path / "again", **again)
    assert summary.kept_step == 0
    assert config_of(tmp_path / "again")["parallel_draft_tokens"] == 3
    assert (summary.tokens_per_pass, summary.unlearned) == (3, None)
    assert '"num_speculative_tokens": 3, "parallel_drafting": true' in (tmp_path / "again" / "README.md").read_text()


def test_guesses_that_are_not_learned_yet_are_not_served(folder, tmp_path, monkeypatch):
    """A run whose second guess was right 5 % of the time was reported as a gain, and served at K."""
    numbers = {"tokens_per_call": 1.8, "tokens_per_call_one_by_one": 2.6, "acceptance_at_1": 0.8}
    assert unlearned_guesses(numbers | {"acceptance_at_2": 0.4}) is None
    assert unlearned_guesses(numbers) is None, "no held-out answer is long enough for a second guess"
    warning = unlearned_guesses(numbers | {"acceptance_at_2": 0.39})
    assert warning is not None and "acceptance 0.390 at depth 2, 0.800 at depth 1" in warning
    assert "2.60 tokens per target call against 1.80" in warning
    monkeypatch.setattr(ending, "unlearned_guesses", lambda means: warning)
    summary = train(folder, tmp_path / "out", draft=str(folder / "draft"), **FEW | {"keep": "last"})
    assert (summary.tokens_per_pass, summary.unlearned) == (3, warning)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Beware: {warning}." in card and '"num_speculative_tokens": 4}' in card


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_the_trained_embedding_of_the_mask_is_written(folder, tmp_path, stored):
    """bfloat16 files take another way: padding rows are written again there."""
    model = make_model(layers=1, seed=9, vocab_size=72, tied=True)
    model.model.to(stored)
    own = write_folder(tmp_path / "models", {"draft": model})
    run = watched_run(folder, tmp_path / "out", draft=str(own / "draft"), keep="last", **FEW)
    written = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    trained = run.weights["model.embed_tokens.weight"]
    assert written.dtype == stored
    assert torch.equal(written[FREE], trained[FREE].to(stored))


def test_without_a_free_id_the_draft_gets_a_row_of_its_own(folder, tmp_path):
    settings = {"target": str(folder / "full_target"), "draft": str(folder / "full")} | FEW
    said = Said()
    train_draft(train_config(folder, tmp_path / "out", **settings), said)
    assert config_of(tmp_path / "out")["vocab_size"] == 66
    assert config_of(tmp_path / "out")["pard_token"] == 65
    assert any("row 65 beyond the target's 65" in line and "--mask-token" in line for line in said.lines)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Beware: vLLM refuses this draft, since its mask token 65 lies beyond the target's 65 rows" in card
    assert load_model(str(tmp_path / "out"), "draft").parallel is not None


def said_by(folder, output, **settings):
    """Lines that a run says."""
    said = Said()
    train_draft(train_config(folder, output, **settings), said)
    return said.lines


def test_an_untrained_cut_is_told_to_learn_one_token_first(folder, tmp_path):
    cut = write_folder(tmp_path / "models", {"draft": make_model(layers=1, seed=9, vocab_size=72)}) / "draft"
    few = {"draft": str(cut)} | FEW | {"steps": 1, "eval_every": 1}

    def hints(name, **settings):
        return [line for line in said_by(folder, tmp_path / name, **few | settings) if line.startswith("hint:")]

    assert hints("trained") == []
    (cut / "init_draft.json").write_text("{}")
    assert hints("ordinary", parallel=0) == []
    (hint,) = hints("cut")
    assert "train it without --parallel first" in hint


def test_a_skill_that_was_lost_is_said():
    before = {"tokens_per_call_one_by_one": 4.27}
    after = {"tokens_per_call_one_by_one": 3.65}
    warning = forgotten_skill(before, after, Estimate(-0.62, -0.9, -0.3))
    assert warning is not None and "it gives 3.65 tokens per target call, 4.27 before training" in warning
    for gain in (Estimate(-0.62, -1.3, 0.1), Estimate(0.62, 0.1, 0.9), Estimate(-0.62, math.nan, math.nan)):
        assert forgotten_skill(before, after, gain) is None


@pytest.mark.parametrize("divergence", ["jsd", "tvd", "fkl", "lk_lambda"])
def test_bounded_divergences_are_said_to_be_slow(folder, tmp_path, divergence):
    few = FEW | {"steps": 1, "eval_every": 1, "divergence": divergence}
    hints = [line for line in said_by(folder, tmp_path / "out", **few) if "--divergence fkl learns them sooner" in line]
    assert len(hints) == (divergence in ("jsd", "tvd"))


def test_masks_that_are_kept_less_than_the_least_are_refused():
    with pytest.raises(ConfigError, match=r"--parallel-keep 0.05 is below --parallel-keep-least 0.1, .* raise the one"):
        any_config(**FEW | {"parallel_keep": 0.05})
    any_config(**FEW | {"parallel_keep": 0.05, "parallel_keep_least": 0.05})


def test_guesses_that_no_answer_is_long_enough_for_are_refused():
    with pytest.raises(ConfigError, match="--parallel 40 exceeds --max-new-tokens 12: guesses from 13 on would never"):
        any_config(**FEW | {"parallel": 40, "max_new_tokens": 12})
    any_config(**FEW | {"parallel": 12, "max_new_tokens": 12})


@pytest.mark.parametrize(("tokens", "remedy"), [(3, "lower --parallel to 3, or train on longer answers"), (5, None)])
def test_answers_too_short_to_teach_the_later_guesses_are_said(folder, tmp_path, tokens, remedy):
    """Held-out answers are the target's own and long: they hid that no answer to train on had a fourth token."""
    rows = [
        row | {"answer": " ".join(f"w{(number + i) % 60}" for i in range(tokens - 1))}
        for number, row in enumerate(prompt_rows())
    ]
    write_rows(tmp_path / "prompts.jsonl", rows)
    few = FEW | {"parallel": 5, "prompts": str(tmp_path / "prompts.jsonl"), "draft": str(folder / "draft")}
    lines = [line for line in said_by(folder, tmp_path / "out", **few) if "too short to teach guesses" in line]
    assert len(lines) == (remedy is not None), "once, at the first evaluation"
    assert all(line.startswith("warning: --parallel 5") and "from 4 on" in line and remedy in line for line in lines)


def test_numbers_that_do_not_exist_are_null_in_every_file():
    nan = float("nan")
    assert finite({"a": nan, "b": [1.0, (float("inf"), 2)], "c": "nan"}) == {
        "a": None,
        "b": [1.0, [None, 2]],
        "c": "nan",
    }


def test_a_parallel_draft_trained_on_without_the_flag_is_said_once(folder, tmp_path):
    train(folder, tmp_path / "first", **FEW)
    own = {"draft": str(tmp_path / "first"), "method": "supervised-kd", "steps": 2, "eval_every": 2}
    lines = said_by(folder, tmp_path / "second", **own)
    (line,) = [line for line in lines if "guesses several tokens in one pass" in line]
    assert "trains its first guess only" in line and "add --parallel 3" in line
    assert (config_of(tmp_path / "second")["pard_token"], config_of(tmp_path / "second")["parallel_draft_tokens"]) == (
        *(FREE, 3),
    )
    assert not any("first guess only" in line for line in said_by(folder, tmp_path / "third", **own | {"parallel": 3}))


def test_a_run_that_was_cut_off_ends_bit_for_bit_as_if_it_had_not(folder, tmp_path, monkeypatch):
    settings = FEW | {"method": "gkd", "anchors": "rounds", "parallel_confidence": True, "patience": 0}
    train(folder, tmp_path / "whole", **settings)
    step = Anchored.next_batch

    def stopping(self, number):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Anchored, "next_batch", stopping)
        with pytest.raises(KeyboardInterrupt):
            train(folder, tmp_path / "cut", **settings)
    train(folder, tmp_path / "cut", resume=True, **settings)
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert history(tmp_path / "whole") == history(tmp_path / "cut")


def test_each_step_drops_other_masks(folder, tmp_path):
    run = watched_run(folder, tmp_path / "out", **FEW | {"steps": 8, "parallel_keep": 0.5})
    seen = {}
    for one in run.examples:
        seen.setdefault((one.prompt_id, one.answer_ids), set()).add(one.masks)
    assert any(len(masks) > 1 for masks in seen.values())
    everything = watched_run(folder, tmp_path / "all", **FEW | {"parallel_keep": 1.0})
    assert {one.masks for one in everything.examples} == {(2, 1, 0)}


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lora_trains_the_masks_embedding_and_no_other(folder, tmp_path, decay):
    pytest.importorskip("peft")
    train(folder, tmp_path / "out", lora_rank=2, weight_decay=decay, keep="last", **FEW)
    before, after = (load_file(place / "model.safetensors") for place in (folder / "draft", tmp_path / "out"))
    changed = (before["model.embed_tokens.weight"] != after["model.embed_tokens.weight"]).any(1).nonzero().flatten()
    assert changed.tolist() == [FREE]
    began = before["model.embed_tokens.weight"][:FREE].mean(0)
    assert not torch.allclose(after["model.embed_tokens.weight"][FREE], began, atol=1e-4), "it has learned since"
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])


@pytest.mark.parametrize("settings", [{"method": "skd"}, {"method": "gkd", "lmbda": 1.0, "anchors": "rounds"}])
def test_text_that_the_draft_writes(folder, tmp_path, settings):
    run = watched_run(folder, tmp_path / "out", **FEW | {"steps": 2, "eval_every": 2} | settings)
    assert all(one.masks is not None for one in run.examples)
    assert run.summary is not None and run.summary.after["tokens_per_call"] >= 1


@pytest.mark.parametrize("settings", [{}, {"lora_rank": 2}, {"lora_rank": 2, "parallel": 0}])
def test_a_failed_step_can_be_computed_again(folder, tmp_path, monkeypatch, settings):
    if settings:
        pytest.importorskip("peft")
    values = spoil_loss(monkeypatch, 2)
    with pytest.raises(SpecdistillError, match="loss inf"):
        train(folder, tmp_path / "out", **FEW | settings)
    monkeypatch.undo()
    loss, _ = reproduce(tmp_path / "out" / "failed-step-000002")
    assert loss == pytest.approx(values[1], rel=1e-5)


REFUSED = {
    "one": ({"parallel": 1}, "--parallel 1 is an ordinary draft"),
    "most": ({"parallel": 257, "max_new_tokens": 300}, "--parallel must be at most 256, got 257"),
    "keep": ({"parallel": 4, "parallel_keep": 0.0}, r"--parallel-keep must be in \(0, 1\], got 0.0"),
    "alone": ({"anchors": "rounds"}, "--anchors rounds has no effect here: it goes with --parallel"),
    "online": ({"parallel": 4, "method": "online", "online": "x"}, "single tokens"),
    "reward": ({"parallel": 4, "reward": "m:f"}, "--parallel goes without --reward"),
    "watch": ({"watch": "tokens_per_call"}, "--watch tokens_per_call needs --parallel"),
    "loss": ({"parallel": 4, "watch": "loss"}, "--watch loss would be that of a parallel draft's first guess alone"),
    "preset": ({"parallel": 4, "preset": "adapt"}, "with --parallel set both to 0"),
    "confidence": ({"parallel": 4, "parallel_confidence": True, "method": "seqkd"}, "cross entropy looks at none"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_without_a_model(name):
    settings, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        any_config(**settings)


def test_refused_with_a_models_files(folder, tmp_path):
    with pytest.raises(ConfigError, match="--mask-token 3 is '<user>', which texts hold"):
        train(folder, tmp_path / "a", mask_token=3, **FEW)
    with pytest.raises(ConfigError, match="--mask-token 99 has no row in the embedding, whose ids end at 71"):
        train(folder, tmp_path / "b", mask_token=99, **FEW)
    with pytest.raises(ConfigError, match="needs a draft with the target's tokenizer"):
        train(folder, tmp_path / "c", **FEW | {"method": "sft", "draft": str(folder / "foreign")})


def test_drawn_labels_say_nothing_of_the_text(tmp_path):
    run_settings.write(tmp_path, {"labels": "sampled"})
    with pytest.raises(ConfigError, match="--parallel-confidence reads the target's probability of the text"):
        Stored(tmp_path).require_likeliest("--parallel-confidence")
    run_settings.write(tmp_path, {"labels": "top-k"})
    Stored(tmp_path).require_likeliest("--parallel-confidence")


def test_a_draft_with_a_state_is_refused(folder, tmp_path):
    from transformers import AutoModelForCausalLM, Qwen3NextConfig

    config = Qwen3NextConfig(
        vocab_size=72, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, head_dim=8, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "state")
    make_tokenizer().save_pretrained(tmp_path / "state")
    with pytest.raises(ModelError, match="keep a state that only grows, so mask tokens would stay in it"):
        train(folder, tmp_path / "out", **FEW | {"draft": str(tmp_path / "state")})
