"""`specdistill plan`: by hand, in its limits, and against what small runs really took."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from specdistill.cli import main
from specdistill.errors import ConfigError
from specdistill.evaluation.plan import memory_per_gpu, plan
from specdistill.evaluation.plan_config import PlanConfig, parse_count
from specdistill.evaluation.plan_experts import uniform_distinct
from specdistill.evaluation.plan_sizes import counts_of, shape_of, token_counts, working_bytes

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
SMALL = {"target_params": "134.5M", "draft_params": "42.5M", "vocab_size": 49152, "gpus": 1}


def settings(**changes):
    return PlanConfig.flat(**({"target_params": "70B", "draft_params": "1B"} | changes))


def test_counts_by_hand():
    config = settings(prompts=10, rollouts_per_prompt=2, prompt_tokens=30, answer_tokens=50, epochs=3, gpus=2)
    tokens = token_counts(config.text)
    assert tokens.written == 1000 and tokens.read == 600 and tokens.trained == 3000
    # Labelled once: hidden states of what comes again are kept.
    assert tokens.labelled == pytest.approx(1600) and tokens.trained_with_prompts == pytest.approx(4800)
    planned = plan(config)
    assert planned.flops["draft trains"] == pytest.approx(6e9 * 4800)
    assert planned.flops["target labels"] == pytest.approx(2 * 70e9 * 1600)
    assert planned.gpu_hours["draft trains"] == pytest.approx(6e9 * 4800 / (989e12 * 0.4) / 3600)
    # Two bytes of every weight a step, at 60 % of the bandwidth.
    steps = 1000 / 64
    reading = 2 * 70e9 * 600 / (989e12 * 0.4)
    seconds = steps * 70e9 * 2 / (3.35e12 * 0.6) + reading
    assert planned.gpu_hours["target writes"] == pytest.approx(seconds / 3600)
    assert planned.wall_hours == pytest.approx(planned.gpu_hours["all"] / 2)


def test_states_that_do_not_fit_are_computed_again_in_each_epoch():
    """A state of an 8B target has 4096 numbers of 2 bytes: those of 262,144 answer tokens are 2 GiB."""
    text = {"target_params": "8B", "target_width": 4096, "answer_tokens": 64, "prompt_tokens": 32, "epochs": 3}
    fits, beyond = (settings(**text, prompts=count, rollouts_per_prompt=1) for count in (4096, 4097))
    assert counts_of(fits).labelled == 4096 * 96 and counts_of(beyond).labelled == 3 * 4097 * 96
    assert plan(beyond).flops["target labels"] == pytest.approx(2 * 8e9 * 3 * 4097 * 96)
    # Stored labels are written once, whatever their size.
    stored = settings(**text, prompts=4097, rollouts_per_prompt=1, labels="stored")
    assert counts_of(stored).labelled == 4097 * 96


def test_the_drafts_own_answers_are_labelled_each_time():
    fixed, mixed = (token_counts(settings(on_policy_fraction=share).text) for share in (0.0, 0.5))
    assert mixed.own == fixed.trained / 2
    assert mixed.labelled > fixed.labelled


def test_a_parallel_draft_reads_its_masks_too():
    sizes = {"prompts": 10, "rollouts_per_prompt": 2, "prompt_tokens": 30, "answer_tokens": 50, "epochs": 3}
    sizes["vocab_size"] = 1000
    # The token's own row, then 0.5, 0.25, 0.2, 0.2 of a mask.
    config = settings(**sizes, parallel=5, parallel_keep_least=0.2)
    planned, ordinary = plan(config), plan(settings(**sizes))
    assert planned.tokens.trained_with_prompts == pytest.approx(60 * (30 + 50 * 2.15))
    assert planned.flops["draft trains"] == pytest.approx(6e9 * 60 * (30 + 50 * 2.15))
    assert planned.tokens.labelled == ordinary.tokens.labelled and planned.steps == ordinary.steps
    more = working_bytes(config) - working_bytes(settings(**sizes))
    layers, width = shape_of(1e9)
    # Of a micro-batch of 8 answers; the target's own pass, which stays, is larger than so few logits.
    assert more == pytest.approx(8 * 50 * 1.15 * layers * width * 23 * 2)
    with pytest.raises(ConfigError, match="--parallel"):
        settings(parallel_keep=0.7)


def test_memory_by_strategy():
    whole = memory_per_gpu(settings(gpus=8))
    working = working_bytes(settings(gpus=8))
    assert whole["whole (--shard none)"] - working == pytest.approx(16e9 + 140e9)
    assert whole["--shard both"] - working == pytest.approx((16e9 + 140e9) / 8)
    assert whole["--shard target"] < whole["--shard draft"] < whole["whole (--shard none)"]
    stored = memory_per_gpu(settings(labels="stored", gpus=8))
    assert stored["no target, --shard draft"] - working == pytest.approx(16e9 / 8)
    # One accelerator shares with nobody.
    for labels in ("stored", "live"):
        rows = memory_per_gpu(settings(gpus=1, labels=labels))
        assert not any(share in name for name in rows for share in ("--shard draft", "--shard target", "--shard both"))
    stored = memory_per_gpu(settings(labels="stored"))
    assert stored["no target (--soft-labels)"] - working == pytest.approx(16e9)
    # A mixture of experts computes with some of what it holds.
    moe = settings(target_params="3B", target_resident_params="30B")
    assert memory_per_gpu(moe)["whole (--shard none)"] > 60e9
    assert plan(moe).flops["target labels"] < plan(settings(target_params="30B")).flops["target labels"] / 9


def test_uniform_routing_by_hand():
    assert uniform_distinct(8, 2, 1) == pytest.approx(2)
    assert uniform_distinct(8, 2, 2) == pytest.approx(8 * (1 - 0.75**2))
    # Against drawn experts.
    draws = np.random.default_rng(0)
    counts = [len({e for _ in range(5) for e in draws.choice(16, 4, replace=False)}) for _ in range(4000)]
    assert uniform_distinct(16, 4, 5) == pytest.approx(np.mean(counts), rel=0.01)


MIXTURE = {"target_params": "3B", "target_resident_params": "30B", "experts": 100, "experts_per_token": 4}


def test_a_mixture_by_hand():
    """27B lie in 96 experts that a token does not use: 281M in each, so 3B - 4 x 281M are shared."""
    planned = plan(settings(**MIXTURE)).experts
    expert = 27e9 / 96
    assert planned.active_parameters == 3e9 and planned.parameters == 30e9
    assert planned.shared_parameters == pytest.approx(3e9 - 4 * expert)
    assert planned.distinct_experts[2] == pytest.approx(100 * (1 - 0.96**2)) and len(planned.distinct_experts) == 8
    assert planned.verify_cost[1] == pytest.approx(1)
    assert planned.verify_cost[2] == pytest.approx((planned.shared_parameters + 7.84 * expert) / 3e9)
    assert plan(settings()).experts is None


def test_a_mixture_writes_at_the_speed_of_the_weights_that_a_batch_reads():
    def writing(**changes):
        # Nothing to read but one token of a prompt; answers of a batch are sent to experts of their own.
        return plan(settings(**MIXTURE | {"prompt_tokens": 1} | changes)).gpu_hours["target writes"]

    alone, many = writing(decode_batch=1), writing(decode_batch=64)
    expert = 27e9 / 96
    read = 3e9 + (100 * (1 - 0.96**64) - 4) * expert
    assert many * 64 / alone == pytest.approx(read / 3e9, rel=1e-2)
    # Where its experts are not known, a batch reads all of it, and a sentence says so.
    unknown = {"experts": 0, "experts_per_token": 0}
    assert writing(**unknown) == pytest.approx(many * 30e9 / read, rel=1e-2)
    assert any("--experts" in line for line in plan(settings(**MIXTURE | unknown)).assumptions)
    # One answer at a time reads what one token uses, known or not.
    assert writing(decode_batch=1, **unknown) == pytest.approx(alone)
    assert not any("expert" in line for line in plan(settings()).assumptions)


def test_known_shapes():
    """Llama 3.1 70B has 80 layers of 8192, 3.2 1B has 16 of 2048."""
    for params, layers, width in ((70e9, 80, 8192), (1.2e9, 16, 2048), (8e9, 32, 4096)):
        found = shape_of(params)
        assert found[0] == pytest.approx(layers, rel=0.25) and found[1] == pytest.approx(width, rel=0.25)


def test_peak_memory_of_the_measured_step():
    """benchmarks/training/training_step.py: SmolLM2 and its 4-layer draft in float32, 8 answers of 64 tokens."""
    step = json.loads((RESULTS / "training_step.json").read_text())
    measured = step["on_policy"]["specdistill"]
    config = PlanConfig.flat(
        **SMALL, prompt_tokens=150, answer_tokens=step["max_new_tokens"], micro_batch_size=step["batch_size"],
        draft_layers=4, draft_width=576, dtype="float32",
    )  # fmt: skip
    working = working_bytes(config)
    assert working / 2**20 == pytest.approx(measured["peak_above_held_mib"], rel=0.3)
    # The libraries themselves, which lie in memory before any weight does.
    python = 700 * 2**20
    whole = memory_per_gpu(config)["whole (--shard none)"]
    assert (whole + python) / 2**20 == pytest.approx(measured["peak_mib"], rel=0.2)


def test_hours_of_the_measured_steps():
    """benchmarks/training/plan_hours.py: stages of a step, drafts of three depths; plan knows the machine's peak."""
    report = json.loads((RESULTS / "plan_hours.json").read_text())
    computing, writing = [], []
    peak = report["peak"]
    for draft in report["drafts"]:
        config = settings(
            **SMALL | {"draft_params": str(draft["draft_params"])}, dtype="float32", on_policy_fraction=1.0,
            gpu="custom", gpu_tflops=peak["tflops"], gpu_bandwidth=peak["bandwidth"], gpu_memory=16.0,
            utilisation=1.0, decode_utilisation=1.0, decode_batch=report["batch"],
        )  # fmt: skip
        planned = plan(config)
        for stage, counted in {"draft trains": "trained_with_prompts", "draft writes": "own"}.items():
            seconds = planned.gpu_hours[stage] * 3600 / getattr(planned.tokens, counted)
            assert seconds == pytest.approx(draft[stage]["planned"], rel=0.01), "the result is of another plan"
        computing += [draft[stage]["utilisation"] for stage in ("target labels", "draft trains")]
        writing += [draft[stage]["utilisation"] for stage in ("target writes", "draft writes")]
    # One share of the peak serves all sizes that are bound alike, and it is one that machines reach.
    assert len(computing) == 6 and max(computing) < 1.5 * min(computing)
    assert max(writing) < 2.5 * min(writing)
    assert all(0.25 < share <= 1 for share in computing + writing)


@pytest.mark.parametrize("kept", [4, 16, 64, 256])
def test_storage_of_the_measured_labels(kept):
    """benchmarks/studies/soft_labels.py: what `annotate` really wrote for SmolLM2's 49152 ids."""
    rows = json.loads((RESULTS / "soft_labels.json").read_text())["rows"]
    measured = rows[f"top-{kept}"]["bytes_per_token"]
    predicted = plan(PlanConfig.flat(**SMALL, label_top_k=kept)).storage.label_bytes_per_token
    assert predicted == pytest.approx(measured, rel=0.15)


def test_the_command(tmp_path, capsys):
    out = tmp_path / "plan.json"
    arguments = ["plan", "--target-params", "70B", "--draft-params", "1B", "--json", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "--shard both" in printed and "accelerator hours" in printed
    assert json.loads(out.read_text())["tokens"]["written"] == 80_000_000
    assert main(arguments) == 2 and "already exists" in capsys.readouterr().err
    small = SMALL | {"prompts": 400, "answer_tokens": 64}
    assert main(["plan", *(f"--{name.replace('_', '-')}={value}" for name, value in small.items())]) == 0
    printed = capsys.readouterr().out
    hours = plan(PlanConfig.flat(**small)).wall_hours
    assert 0 < hours < 0.05 and f"wall time on 1: {hours:.2g} hours" in printed
    assert "0.0 hours" not in printed and not re.search(r"target labels\D.*  0\.0 ", printed)
    mixture = [f"--{name.replace('_', '-')}={value}" for name, value in MIXTURE.items()]
    assert main(["plan", "--draft-params", "1B", *mixture]) == 0
    printed = capsys.readouterr().out
    assert "target of 3B active of 30B parameters" in printed and re.search(
        r"distinct experts +\S +4.0 +\S +7.8", printed
    )


BY_THE_WAY = "an ordinary draft is trained first and made parallel then: that training is not in these numbers"


def test_a_parallel_plan_says_that_it_is_one_and_what_comes_before(capsys):
    words = ["plan", "--target-params", "8B", "--draft-params", "1B", "--gpus", "1"]
    assert main([*words, "--parallel", "8"]) == 0
    header, before, *_ = capsys.readouterr().out.splitlines()
    assert header.startswith("target of 8B, parallel draft of 1B that guesses 8 tokens in one pass, 1 x h100: ")
    assert before == f"{BY_THE_WAY}, and the same command without --parallel plans it"
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("target of 8B, draft of 1B, 1 x h100: ") and BY_THE_WAY not in printed
    assert "a parallel draft begins with a trained ordinary one, whose hours come on top of its own" in printed


def test_where_fewer_answers_at_a_time_would_fit(capsys):
    words = ["plan", "--target-params=8B", "--draft-params=1B", "--gpus=1", "--parallel=8", "--micro-batch-size"]
    config = {"target_params": "8B", "draft_params": "1B", "gpus": 1, "parallel": 8}
    planned = plan(settings(**config, micro_batch_size=32))
    whole = planned.memory_per_gpu["whole (--shard none)"]
    assert not whole.fits and whole.largest_micro_batch is not None and 1 <= whole.largest_micro_batch < 32
    at, above = (
        plan(settings(**config, micro_batch_size=whole.largest_micro_batch + more)).memory_per_gpu[
            "whole (--shard none)"
        ]
        for more in (0, 1)
    )
    assert at.fits and not above.fits and planned.kinds["parallel"].largest_micro_batch == whole.largest_micro_batch
    assert main([*words, "32"]) == 0
    hints = [line for line in capsys.readouterr().out.splitlines() if line.startswith("hint: ")]
    assert [hint.partition(" with ")[0] for hint in hints] == ["hint: these fit"] * 2
    assert f"below 32: whole (--shard none) with {whole.largest_micro_batch}; " in hints[0]
    assert hints[1].endswith(f"below 32: parallel with {whole.largest_micro_batch}")
    assert main([*words, "8"]) == 0 and "hint: " not in capsys.readouterr().out, "all fits"
    # Weights alone are too large for one accelerator: fewer answers are no remedy.
    hopeless = plan(settings(gpus=1)).memory_per_gpu["whole (--shard none)"]
    assert not hopeless.fits and hopeless.largest_micro_batch is None


def test_answers_shorter_than_the_usual_round():
    assert plan(settings(answer_tokens=5)).kinds["parallel"].trains > 0
    assert list(plan(settings(answer_tokens=1)).kinds) == ["independent", "head"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"target_params": "huge"}, "--target-params huge is no number"),
        ({"draft_params": "0"}, "--draft-params 0 is no number"),
        ({"draft_params": "80B"}, "is no smaller than its target"),
        ({"gpu": "custom"}, "--gpu custom goes with"),
        ({"gpu_tflops": 100.0}, "--gpu custom goes with"),
        ({"labels": "stored", "on_policy_fraction": 0.5}, "use --labels live"),
        ({"parallel": 1}, "--parallel 1 is an ordinary draft"),
        ({"parallel": 4, "parallel_keep": 0.0}, r"--parallel-keep must be in \(0, 1\], got 0.0"),
        ({"parallel": 9, "answer_tokens": 8}, "--parallel 9 exceeds --answer-tokens 8: guesses from 9 on would never"),
        ({"epochs": 0.0}, "--epochs must be above 0"),
        ({"utilisation": 0.0}, "--utilisation must be in"),
        ({"target_resident_params": "1B"}, "must be at least --target-params"),
        ({"experts": 8}, "--experts and --experts-per-token go together"),
        ({"experts": 8, "experts_per_token": 2}, "--experts needs --target-resident-params"),
        ({"experts": 8, "experts_per_token": 8, "target_resident_params": "90B"}, "must be below --experts 8"),
        ({"experts": 8, "experts_per_token": 4, "target_resident_params": "150B"}, "70B active of 150B .* 4 of 8"),
    ],
)
def test_settings_that_cannot_be(changes, text):
    with pytest.raises(ConfigError, match=text):
        settings(**changes)


def test_numbers_as_people_write_them():
    written = {"70B": 70e9, "1.5b": 1.5e9, "135M": 135e6, "134515008": 134515008, "2T": 2e12, "7e9": 7e9}
    assert {text: parse_count(text, "--x") for text in written} == written
