"""`bench --compare-target`: the same draft against two targets, each on its own answers and both on the first one's."""

from __future__ import annotations

import json

import pytest
import torch
import wild_checkpoints as wild
from head_drafts import make_head
from tiny_models import make_model, make_tokenizer, perturbed, save
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from specdistill import BenchConfig, bench, load_model
from specdistill.cli import main
from specdistill.decoding import Sampling, generate_plain
from specdistill.errors import ConfigError, IncompatibleModelsError
from specdistill.evaluation.interruption import BenchFailedError
from specdistill.evaluation.report import TargetComparison
from specdistill.models.checkpoint import save_draft
from specdistill.progress import Quiet

RULES = ("greedy", "sampled", "argmax_draft")
TOKENS = 10


@pytest.fixture
def folder(tmp_path):
    """A target that says something else than the full one it came from, and a draft near the full one."""
    full = make_model(layers=2, hidden=64)
    save(full, tmp_path / "full")
    save(perturbed(full, 0.05), tmp_path / "target")
    save(perturbed(full, 0.03, seed=7), tmp_path / "draft")
    (tmp_path / "prompts.txt").write_text("".join(f"w{i} w{3 * i % 60}\n" for i in range(8)))
    return tmp_path


def measure(folder, compare_target: str = "full", **settings):
    names = {role: str(folder / role) for role in ("target", "draft")}
    names |= {"prompts": str(folder / "prompts.txt"), "compare_target": str(folder / compare_target)}
    given = {"max_new_tokens": TOKENS, "latency_prompts": 1, "num_draft_tokens": 2, "temperature": 1.0} | settings
    return bench(BenchConfig.flat(**(names | given)))


def other(report) -> TargetComparison:
    assert report.compare_target is not None
    return report.compare_target


def by_hand(folder, writer: str, judge: str) -> dict[str, float]:
    """Alpha of the draft against `judge` on the answers of `writer`, from whole models' logits alone."""
    models = {name: load_model(str(folder / name)) for name in (writer, judge, "draft")}
    tokenizer, sums, count = models["draft"].tokenizer, dict.fromkeys(RULES, 0.0), 0
    for number, line in enumerate((folder / "prompts.txt").read_text().splitlines()):
        asked = [{"role": "user", "content": line}]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        (answer,) = generate_plain(models[writer], [prompt], sampling=Sampling(), max_new_tokens=TOKENS, seeds=[number])
        ids = torch.tensor([[*prompt, *answer.token_ids]])
        with torch.no_grad():
            p, q = (models[name].model(ids).logits[0, len(prompt) - 1 : -1].softmax(-1) for name in (judge, "draft"))
        sums["greedy"] += float((p.argmax(-1) == q.argmax(-1)).sum())
        sums["sampled"] += float(torch.minimum(p, q).sum())
        sums["argmax_draft"] += float(p.gather(-1, q.argmax(-1, keepdim=True)).sum())
        count += len(p)
    return {rule: value / count for rule, value in sums.items()}


def test_numbers_are_those_of_a_direct_computation(folder):
    report = measure(folder)
    found = other(report)
    ours, theirs = by_hand(folder, "target", "target"), by_hand(folder, "full", "full")
    same = by_hand(folder, "target", "full")
    assert abs(ours["sampled"] - theirs["sampled"]) > 0.01 and abs(same["sampled"] - theirs["sampled"]) > 1e-4
    for rule in RULES:
        assert report.acceptance.alpha[rule].mean == pytest.approx(ours[rule], abs=1e-5)
        assert found.alpha[rule].mean == pytest.approx(theirs[rule], abs=1e-5)
        assert getattr(found.difference, rule).mean == pytest.approx(ours[rule] - theirs[rule], abs=1e-5)
        assert getattr(found.difference_on_same_answers, rule).mean == pytest.approx(ours[rule] - same[rule], abs=1e-5)
    assert found.target.name == str(folder / "full") and found.difference.sampled.has_interval
    length = found.predicted_mean_acceptance_length.mean
    predicted = report.acceptance.predicted_mean_acceptance_length[2]
    assert found.difference.predicted_mean_acceptance_length.mean == pytest.approx(predicted - length)
    assert found.difference.sampled.mean < 0 and predicted < length, "the draft is near the full one"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_target_beside_itself_costs_nothing(folder, temperature):
    report = measure(folder, "target", temperature=temperature)
    found = other(report)
    assert found.alpha == report.acceptance.alpha and found.tokens_scored == report.acceptance.tokens_scored
    assert found.alpha_at_temperature_1 == report.acceptance.alpha_at_temperature_1
    for each in (found.difference, found.difference_on_same_answers):
        assert [getattr(each, rule).mean for rule in RULES] == [0, 0, 0]
        assert each.predicted_mean_acceptance_length.mean == 0


def test_what_quantisation_costs_a_draft(folder, capsys):
    """A 4-bit target, its full-precision model and a draft that is that model: all of the loss is quantisation's."""
    kind = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    small = AutoModelForCausalLM.from_pretrained(folder / "full", quantization_config=kind)
    (folder / "target" / wild.WEIGHTS).unlink()
    small.save_pretrained(folder / "target")
    words = ["bench", "--target", str(folder / "target"), "--draft", str(folder / "full"), "--temperature", "1"]
    words += ["--compare-target", str(folder / "full"), "--prompts", str(folder / "prompts.txt")]
    words += ["--max-new-tokens", "12", "--latency-prompts", "1", "--json", str(folder / "r.json")]
    assert main([*words, "--html", str(folder / "r.html")]) == 0, capsys.readouterr().err
    found = json.loads((folder / "r.json").read_text())
    beside = found["compare_target"]
    assert beside["alpha"]["sampled"]["mean"] == pytest.approx(1, abs=1e-5)
    lost = found["acceptance"]["alpha"]["sampled"]["mean"] - 1
    for name in ("difference", "difference_on_same_answers"):
        paired = beside[name]["sampled"]
        assert paired["mean"] == pytest.approx(lost, abs=1e-5) and paired["ci95"][1] < 0
    sentence = "against target in place of full: the draft is accepted less ("
    assert sentence in capsys.readouterr().out and sentence in (folder / "r.html").read_text()


def test_a_second_target_that_fails_costs_the_first_ones_report_nothing(folder, monkeypatch, capsys):
    """Its weights hold a NaN, which only reading them shows: after everything else was measured."""
    wild.change_weights(folder / "full", lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    said = []
    monkeypatch.setattr(Quiet, "say", lambda self, text: said.append(text))
    with pytest.raises(
        BenchFailedError, match=r"compare_target failed: .*full: model\.norm\.weight holds NaN"
    ) as failed:
        measure(folder)
    report = failed.value.report
    assert report.compare_target is None and report.latency.speedup.mean > 0
    assert report.partial.where == "compare_target" and "NaN" in report.partial.left_out["compare_target"]
    assert [text for text in said if "compare_target failed: " in text and "the report is without it" in text]


def test_an_adapters_base_beside_it(folder, monkeypatch):
    from peft_adapters import make_adapter

    monkeypatch.setenv("SPECDISTILL_CACHE", str(folder / "cache"))
    make_adapter(folder / "full", folder / "tuned", named="../full")
    (folder / "target").rename(folder / "old")
    (folder / "tuned").rename(folder / "target")
    report = measure(folder)
    assert report.target.adapter_of == str(folder / "full")
    assert other(report).difference.sampled.mean < -0.1, "the draft was made for the base"


# ---- refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine": "transformers"}, "--compare-target is for our decoder, not for transformers"),
        ({"guidance": 0.5, "negative_prompt": "no"}, "leave --guidance and --pack away"),
        ({"pack": "float32"}, "leave --guidance and --pack away"),
    ],
)
def test_settings_that_it_does_not_go_with(settings, words):
    with pytest.raises(ConfigError, match=words):
        BenchConfig.flat(target="t", draft="d", compare_target="f", **settings)


def test_bad_targets_are_refused_before_weights_are_read(folder, capsys):
    save(make_model(tokenizer=make_tokenizer(first_word="zebra")), folder / "foreign")
    save(make_model(), folder / "endless")
    for file, key in (("config.json", "eos_token_id"), ("generation_config.json", "eos_token_id")):
        wild.change_json(folder / "endless" / file, **{key: None})
    wild.change_json(folder / "endless/tokenizer_config.json", eos_token=None)
    for file in ("target", "draft"):
        (folder / file / wild.WEIGHTS).write_bytes(b"not read")
    save(make_model(context=64), folder / "short")
    for name, words in (
        ("nowhere", "--compare-target ./nowhere does not exist"),
        ("foreign", "--compare-target ./foreign has another tokenizer than --target"),
        ("endless", "--compare-target ./endless has no stop id"),
        ("short", "--compare-target ./short takes 64 tokens, the pair 256"),
    ):
        more = ["--compare-target", f"./{name}"]
        assert run_in(folder, more) == 2
        assert words in wild.one_line(capsys)


def run_in(folder, more) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return wild.run("bench", folder, more)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """A target of 7 layers with a head, and second targets that are shorter, longer and wider."""
    folder = tmp_path_factory.mktemp("heads")
    target = make_model(layers=7)
    save(target, folder / "target")
    (folder / "draft").mkdir()
    save_draft(make_head(target), target, folder / "draft")
    save(perturbed(target, 0.05), folder / "same")
    save(make_model(layers=3), folder / "short")
    save(make_model(layers=9), folder / "long")
    save(make_model(layers=7, hidden=48), folder / "wide")
    (folder / "prompts.txt").write_text("".join(f"w{i} w{3 * i % 60}\n" for i in range(4)))
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short", "short has 3 layers, and the head --draft .* reads the states after layers 2, 3, 4; name another"),
        ("wide", "wide has hidden states of 48 numbers, and the head --draft .* reads 32"),
    ],
)
def test_a_second_target_without_the_states_of_a_head_is_refused_before_work(heads, name, words, monkeypatch):
    monkeypatch.setattr("specdistill.evaluation.measure.load_pair", None)
    with pytest.raises(IncompatibleModelsError, match=words):
        measure(heads, name)


@pytest.mark.parametrize("name", ["same", "long"])
def test_a_head_is_scored_against_a_second_target_that_has_its_layers(heads, name):
    found = other(measure(heads, name))
    assert found.tokens_scored > 0 and 0 < found.alpha["sampled"].mean < 1
    if name == "same":
        names = {"target": str(heads / "same"), "draft": str(heads / "draft"), "prompts": str(heads / "prompts.txt")}
        alone = bench(BenchConfig.flat(**names, max_new_tokens=TOKENS, latency_prompts=1, temperature=1.0))
        assert found.alpha["sampled"].mean == pytest.approx(alone.acceptance.alpha["sampled"].mean, abs=1e-6)
