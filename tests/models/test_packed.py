"""Packed weights: close to what they stand for, used by every pass, refused where they can't run."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, make_model, save

from specdistill import BenchConfig, bench
from specdistill.data import Prompt
from specdistill.decoding import Generation, Sampling, SpeculativeDecoder, generate_plain
from specdistill.errors import ConfigError
from specdistill.evaluation.latency import first_difference
from specdistill.models.packed import PackedLinear, check_packable, pack

GREEDY = Sampling(temperature=0.0)


@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 1e-5), ("float16", 2e-3), ("int8", 0.1)])
def test_a_packed_layer_is_close_to_its_weights(kind, tolerance):
    generator = torch.Generator().manual_seed(0)
    weight, bias = 0.1 * torch.randn(70, 50, generator=generator), torch.randn(70, generator=generator)
    inputs = torch.randn(2, 5, 50, generator=generator)
    layer = PackedLinear(weight, bias, kind)
    for given in (inputs, inputs[:, :1], inputs.transpose(0, 1), inputs[:, ::2], inputs.expand(3, 2, 5, 50)):
        torch.testing.assert_close(layer(given), given @ weight.T + bias, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_is_exact_for_the_packed_model(family, kind):
    target, draft = make_model(family), make_model(family, layers=1, seed=3)
    before = target.logits(target.hidden_states(torch.tensor([[5, 6, 7, 8]])))
    counted = target.num_parameters
    assert pack(target, kind) > 0 and pack(draft, kind) > 0
    assert target.num_parameters == counted
    after = target.logits(target.hidden_states(torch.tensor([[5, 6, 7, 8]])))
    tolerance = 0.05 if kind == "float16" else 1e-4
    assert kind == "float32" or not torch.equal(before, after), "nothing was packed"
    torch.testing.assert_close(before, after, atol=tolerance, rtol=tolerance)
    linear = [module for module in target.base_model.modules() if type(module).__name__ in ("Linear", "Conv1D")]
    assert not linear
    for prompt in ([5, 6, 7], [20, 21, 22, 23, 24, 25]):
        plain = generate_plain(target, [prompt], sampling=GREEDY, max_new_tokens=30, seeds=[0])[0]
        fast = SpeculativeDecoder(target, draft, num_draft_tokens=4, sampling=GREEDY)
        assert fast.generate([prompt], max_new_tokens=30, seeds=[0])[0].token_ids == plain.token_ids


def test_refuses():
    with pytest.raises(ConfigError, match="is for CPUs"):
        check_packable("int8", "cuda")
    with pytest.raises(ConfigError, match="float32, float16, int8"):
        pack(make_model(), "int4")
    with pytest.raises(ConfigError, match="leave out --dtype bfloat16"):
        BenchConfig.flat(target="a", draft="b", pack="int8", dtype="bfloat16")


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_a_difference_of_packed_answers_is_measured(kind):
    """int8 multiplies no single row without its batch: a bench that found a difference ended there."""
    model = make_model()
    pack(model, kind)
    prompt = Prompt("p", ({"role": "user", "content": "w1"},))
    found = first_difference(model, prompt, [5, 6], Generation([7]), Generation([8]))
    assert found is not None and found.logit_gap is not None and found.logit_gap >= 0


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_bench_reports_packing(tmp_path, kind):
    target, draft = make_model(), make_model(layers=1, seed=3)
    save(target, tmp_path / "target")
    save(draft, tmp_path / "draft")
    (tmp_path / "prompts.txt").write_text("w1 w2 w3\nw4 w5\n")
    report = bench(
        BenchConfig.flat(
            target=str(tmp_path / "target"), draft=str(tmp_path / "draft"), prompts=str(tmp_path / "prompts.txt"),
            max_new_tokens=12, max_draft_tokens=2, pack=kind,
        )
    )  # fmt: skip
    assert report.setup.pack == kind and report.setup.packing_seconds > 0
    assert report.latency.is_timed, "the proof is made before weights are rounded"
    assert report.setup.lossy == (kind == "int8") and (kind == "int8" or report.lossless.greedy_identical)
