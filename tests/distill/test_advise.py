"""`specdistill advise` end to end, on tiny models."""

from __future__ import annotations

import json
import re

import pytest
import torch
from tiny_models import make_model
from tiny_runs import generate_config, prompt_rows, write_folder

from specdistill import AdviseConfig, BenchConfig, advise, bench, generate
from specdistill.cli import main
from specdistill.distill.advising import advise as advising
from specdistill.distill.advising import found as found_so_far
from specdistill.distill.advising.advise import AdviceFailedError
from specdistill.distill.training.step import StepRunner
from specdistill.evaluation.advice import Advice
from specdistill.evaluation.training_pace import TrainingPace
from specdistill.models.eagle3.start import TARGET_TYPES

SMALL = {"num_prompts": 8, "max_new_tokens": 12, "vocab_keep": 40, "cut_layers": (1, 2), "max_draft_tokens": 3}
KINDS = ["independent-1", "independent-2", "parallel-1", "parallel-2", "head"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    models = {"target": make_model(layers=7), "small": make_model(layers=1, seed=9)}
    models["gemma"] = make_model("gemma3_text", layers=3)
    place = write_folder(tmp_path_factory.mktemp("advise"), models, prompt_rows(10))
    (place / "asked.jsonl").write_text('{"prompt": "w1"}\n{"prompt": "w2", "answer": "w3"}\n')
    return place


def settings(folder, **changes):
    given = {"target": str(folder / "target"), "prompts": str(folder / "prompts.jsonl")} | SMALL
    return AdviseConfig.flat(**given | changes)


def words(folder, *more: str) -> list[str]:
    given = {"target": folder / "target", "prompts": folder / "prompts.jsonl"} | SMALL | {"cut_layers": "1,2"}
    return ["advise", *(f"--{name.replace('_', '-')}={value}" for name, value in given.items()), *more]


@pytest.fixture(scope="module")
def advice(folder):
    return advise(settings(folder))


def test_copies_are_counted_as_bench_counts_them(folder, advice):
    """The same answers, and so the same walk."""
    flags = {name: SMALL[name] for name in ("num_prompts", "max_new_tokens", "max_draft_tokens")}
    report = bench(
        BenchConfig.flat(
            target=str(folder / "target"), draft=str(folder / "small"), prompts=str(folder / "prompts.jsonl"),
            baselines="predict", latency_prompts=1, **flags,
        )
    )  # fmt: skip
    assert report.baselines is not None and report.overlap == advice.counted.overlap
    alone = {name: way for name, way in report.baselines.items() if "+" not in name}
    assert list(alone) == list(advice.counted.ways)
    for name, way in alone.items():
        assert advice.counted.ways[name].predicted_mean_acceptance_length == way.predicted_mean_acceptance_length
    assert advice.counted.answers == 8 and advice.counted.source == "target"


def test_every_kind_is_timed_in_its_own_shape(advice):
    assert advice.timed is not None and list(advice.timed.kinds) == KINDS
    kinds, whole = advice.timed.kinds, advice.target.parameters
    assert kinds["independent-1"].parameters < kinds["independent-2"].parameters < whole
    assert kinds["parallel-1"].parameters == kinds["independent-1"].parameters
    assert (kinds["head"].kind, kinds["head"].layers, kinds["parallel-2"].layers) == ("head", None, 2)
    assert list(advice.timed.verify_cost) == [1, 2, 3, 4] and advice.counted.head_size == 40
    for kind in kinds.values():
        assert list(kind.round_cost) == [1, 2, 3] and kind.training_tokens_per_second
        # A step for each token; a parallel draft's pass and a head's first one cost by themselves.
        steps = {length: length * kind.cost_ratio + advice.timed.verify_cost[length + 1] for length in (1, 2, 3)}
        assert (kind.round_cost == pytest.approx(steps)) == (kind.kind == "independent")
    assert advice.timed.writing_tokens_per_second and advice.timed.reading_tokens_per_second


def test_the_options_are_ordered_and_nothing_is_among_them(advice):
    known = [one.predicted_speedup for one in advice.options if one.predicted_speedup is not None]
    assert known == sorted(known, reverse=True) and advice.best.predicted_speedup == known[0] >= 1
    names = [one.name for one in advice.options]
    assert sorted(names) == sorted(["nothing", *advice.counted.ways, *KINDS])
    # Nothing was ever measured for a target of some thousand parameters.
    assert {one.ground for one in advice.options if one.name in KINDS} == {"not known"}
    assert all(one.unlike is not None for option in advice.options for one in option.elsewhere)
    assert any("what an EAGLE-3 head accepts: none was measured" in line for line in advice.not_known)


def test_the_commands_have_the_users_names(folder, advice):
    (head,) = [one for one in advice.options if one.name == "head"]
    target, prompts = folder / "target", folder / "prompts.jsonl"
    assert head.next[0] == (
        f"specdistill init-draft --target {target} --kind eagle3 --vocab-keep 40 --prompts {prompts} --output head"
    )
    assert head.next[1].startswith(
        f"specdistill train-draft --target {target} --draft head --prompts {prompts} --steps "
    )
    assert head.next[1].endswith(" --max-new-tokens 12 --rule greedy --output head-trained")
    assert head.next[2] == f"specdistill bench --target {target} --draft head-trained --prompts NEW_PROMPTS"
    (parallel,) = [one for one in advice.options if one.name == "parallel-2"]
    begin, ordinary, made, measure = parallel.next
    assert "--layers 2" in begin and " --draft cut-2 " in ordinary and " --parallel" not in ordinary
    assert " --draft first-2 " in made and " --rollouts first-2/rollouts --parallel 8 --steps " in made
    steps = [command.split("--steps ")[1].split()[0] for command in (ordinary, made)]
    assert steps[0] == steps[1], "as many in each run"
    assert measure == (
        f"specdistill bench --target {target} --draft draft-parallel-2 --compare first-2 --prompts NEW_PROMPTS"
    )
    (ngram,) = [one for one in advice.options if one.name == "ngram"]
    assert ngram.next[0].startswith(f"specdistill bench --target {target} --engine vllm --method ngram ")
    assert f"--prompts {prompts} --num-prompts 8 --max-new-tokens 12" in ngram.next[0]


def test_the_commands_fit_what_is_served_and_the_targets_vocabulary(folder):
    """init-draft refuses more ids than a target has, and filters of the server are flags of what measures for it."""
    served = {"temperature": 0.7, "top_p": 0.9, "rule": "argmax_draft", "batch_size": 2}
    found = advise(settings(folder, vocab_keep=8192, cut_layers=(1,), **served))
    assert found.counted.head_size is None and found.counted.head_covers is None
    commands = {one.name: one.next for one in found.options if one.next}
    assert "--vocab-keep" not in commands["independent-1"][0] and " --vocab-keep 65 " in commands["head"][0]
    assert commands["head"][2].endswith(" --rule argmax_draft --batch-size 2")
    for name, command in ((name, command) for name, every in commands.items() for command in every):
        filtered = "--temperature 0.7 --top-p 0.9" in command
        assert filtered != command.startswith(("specdistill init-draft", "specdistill check")), (name, command)


def test_the_minutes_hold_all_answers_that_training_would_write(folder, monkeypatch):
    """train-draft asks for 4 answers to each of the 10 prompts; answers that are there are taken as they are."""
    texts = []

    def watch(**facts):
        texts.append(facts["text"])
        return TrainingPace(**facts)

    monkeypatch.setattr(found_so_far, "TrainingPace", watch)
    one = advise(settings(folder, cut_layers=(1,)))
    assert texts == [10 * 4 * one.counted.tokens / 8] * 3
    texts.clear()
    given = advise(settings(folder, answers="given", cut_layers=(1,)))
    assert texts == [10 * 3] * 3
    trained = [command for option in given.options for command in option.next if " train-draft " in command]
    assert len(trained) == 4 and all(" --method supervised-kd " in command for command in trained)
    assert not any("--rollouts" in command for command in trained)


def test_the_commands_run(folder, advice, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (head,) = [one for one in advice.options if one.name == "head"]
    begin, train, _ = (command.split()[1:] for command in head.next)
    assert main([*begin, "--calibration-prompts", "4", "--calibration-tokens", "6"]) == 0, capsys.readouterr().err
    train[train.index("--steps") + 1] = "2"
    assert main([*train, "--heldout-prompts", "2"]) == 0, capsys.readouterr().err
    assert (tmp_path / "head-trained" / "model.safetensors").is_file()


def test_the_commands_of_a_parallel_draft_run(folder, advice, tmp_path, monkeypatch, capsys):
    """An ordinary draft first; the second run takes the answers of the first one."""
    monkeypatch.chdir(tmp_path)
    (parallel,) = [one for one in advice.options if one.name == "parallel-1"]
    begin, *runs = (command.split()[1:] for command in parallel.next[:3])
    assert main([*begin, "--calibration-prompts", "4", "--calibration-tokens", "6"]) == 0, capsys.readouterr().err
    for words in runs:
        words[words.index("--steps") + 1] = "2"
        assert main([*words, "--heldout-prompts", "2", "--keep", "last"]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "draft-parallel-1/config.json").read_text())["parallel_draft_tokens"] == 8
    assert not (tmp_path / "draft-parallel-1/rollouts").exists()


def test_training_is_timed_as_it_would_be(folder, monkeypatch):
    """A head by its unrolled steps, a parallel draft behind its masks, each on answers that were read before."""
    seen = []
    original = StepRunner.run

    def watch(self, examples, updated=None):
        objective = self._objective
        seen.append((objective.head and objective.head.steps, objective.parallel and objective.parallel.tokens))
        assert (examples[0].masks is not None) == (objective.parallel is not None)
        assert objective.kind == "fkl" and self._draft.model.training and len(examples) == 8
        return original(self, examples, updated)

    monkeypatch.setattr(StepRunner, "run", watch)
    advise(settings(folder, cut_layers=(1,), unroll=2, parallel=5))
    # Twice each: the first step is not counted.
    assert seen == [(None, None)] * 2 + [(None, 5)] * 2 + [(2, None)] * 2


def test_given_and_stored_answers_are_counted_as_they_are(folder, tmp_path):
    generate(generate_config(folder, tmp_path / "answers"))
    stored = advise(settings(folder, answers=str(tmp_path / "answers"), cut_layers=(1,)))
    given = advise(settings(folder, answers="given", cut_layers=(1,)))
    assert (stored.counted.answers, given.counted.answers) == (8, 8)
    # Two words and the end.
    assert given.counted.tokens == 8 * 3
    assert stored.counted.tokens != given.counted.tokens
    for found in (stored, given):
        assert found.timed is not None and found.timed.writing_tokens_per_second is None
        assert any(line.startswith("whether the target itself wrote these answers") for line in found.not_known)
    (one, *_) = [one for one in stored.options if one.name == "independent-1"]
    assert f"--rollouts {tmp_path / 'answers'}" in one.next[1]


def test_a_target_that_no_head_fits(folder):
    found = advise(settings(folder, target=str(folder / "gemma"), cut_layers=(1,)))
    assert found.timed is not None and list(found.timed.kinds) == ["independent-1", "parallel-1"]
    (line,) = [line for line in found.not_known if "no EAGLE-3 head can be made here" in line]
    assert "gemma3_text" in line and "gemma3_text" not in TARGET_TYPES


def test_the_command_says_what_rests_on_what(folder, tmp_path, capsys):
    assert main(words(folder, "--json", str(tmp_path / "a.json"))) == 0
    printed = capsys.readouterr().out
    order = ["counted on", "timed here", "measured for other targets", "not known: ", "in this order, with 60 min"]
    places = [printed.index(title) for title in order]
    assert places == sorted(places)
    assert "sources, in benchmarks/results: " in printed and "drifted.json, fkl-2" in printed
    assert "mails to JSON: not similar, your target is 1,945 times smaller" in printed
    assert "\nnext: specdistill " in printed
    table = printed[printed.index("measured for other targets") : printed.index("sources, in ")]
    assert all(f" {study} " in table for study in ("drifted", "kinds_mails", "kinds_code", "methods"))
    assert re.search(r"│ +0\.79 │.*\n.*│ +first │", table), "of a parallel draft"
    # The whole table is there in 80 columns.
    assert all(line.rstrip().endswith(("┓", "┃", "┩", "│", "┘")) for line in table.splitlines() if line[:1] in "┏┃┡│└")
    assert "first: alpha of a round's first token alone; later ones are accepted less often" in printed
    assert "tokens and time of a parallel draft hold the ordinary training before it" in printed
    assert "speed-ups of two studies do not compare, since their prompts and training differ" in printed
    # Every option is followed by the commands that make it.
    options = re.split(r"\n(?=\d+\. )", printed[printed.index("in this order") :].partition("\njson: ")[0])[1:]
    for text in options:
        heading, *commands = text.splitlines()
        assert bool(commands) == ("the plain target" not in heading), heading
        assert all(line.startswith("   specdistill ") for line in commands)
    written = json.loads((tmp_path / "a.json").read_text())
    assert len(written["options"]) == len(options) > len(KINDS)
    assert list(written)[:6] == ["schema", "target", "setup", "training_minutes", "counted", "timed"]
    assert set(written["counted"]["ways"]["suffix"]["mean_acceptance_length"]) == {"mean", "ci95"}
    assert written["options"][0]["predicted_speedup"] >= 1 and "partial" not in written


def failing(monkeypatch, name, calls, error):
    """Lets the n-th call of a function of `advise` fail, and all later ones."""
    original, count = getattr(advising, name), iter(range(10**6))

    def fail(*arguments, **named):
        if next(count) >= calls:
            raise error
        return original(*arguments, **named)

    monkeypatch.setattr(advising, name, fail)


def test_ctrl_c_leaves_what_was_found(folder, tmp_path, monkeypatch, capsys):
    failing(monkeypatch, "measure_costs", 2, KeyboardInterrupt())
    assert main(words(folder, "--json", str(tmp_path / "a.json"))) == 130
    written = json.loads((tmp_path / "a.json").read_text())
    assert list(written["timed"]["kinds"]) == KINDS[:2] and written["partial"]["where"] == "parallel-1"
    printed = capsys.readouterr()
    assert "INCOMPLETE: interrupted during parallel-1" in printed.out and "interrupted" in printed.err


def test_a_draft_that_fails_is_left_out_and_the_rest_stands(folder, tmp_path, monkeypatch, capsys):
    failing(monkeypatch, "step_speeds", 0, torch.OutOfMemoryError("CUDA out of memory"))
    kept: list[Advice] = []
    with pytest.raises(AdviceFailedError) as raised:
        advise(settings(folder), keep=kept.append)
    found = raised.value.advice
    assert found.timed is not None and list(found.timed.kinds) == KINDS and found.partial is not None
    assert set(found.partial.left_out or {}) == {f"the training speed of {name}" for name in KINDS}
    assert all(kind.training_tokens_per_second is None for kind in found.timed.kinds.values())
    assert all("--steps" not in one.next[1] for one in found.options if one.name in KINDS)
    # What was found is handed on after the answers and after each draft.
    assert [list(one.timed.kinds) if one.timed else [] for one in kept] == [KINDS[:count] for count in range(6)]
    assert all(one.partial is not None for one in kept)
    assert main(words(folder, "--json", str(tmp_path / "a.json"))) == 2
    assert "the rest of the advice stands" in capsys.readouterr().err and (tmp_path / "a.json").is_file()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--answers", "nowhere"], "--answers nowhere is no directory; it takes target, given, or a directory"),
        (["--answers", "given", "--prompts", "asked.jsonl"], "there are prompt), which --answers given needs"),
        (["--cut-layers", "7"], "--cut-layers 7 must be below the target's 7 layers"),
        (["--cut-layers", "2", "2"], "--cut-layers takes different numbers of layers from 1 on, such as 2 4; got 2 2"),
        (["--training-minutes", "0"], "--training-minutes must be above 0, got 0"),
        (["--rule", "sampled"], "--rule sampled does not go with --temperature 0.0"),
        (["--answers", "given", "--prompts", "self:4"], "self:4 has no answers, which --answers given reads"),
        (
            ["--parallel", "8", "--max-new-tokens", "7"],
            "--parallel 8 exceeds --max-new-tokens 7: guesses from 8 on would never be trained",
        ),
        (["--parallel", "1"], "--parallel must be at least 2, got 1"),
    ],
)
def test_bad_input_is_one_line_before_any_model_is_loaded(folder, monkeypatch, capsys, flags, text):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("specdistill.models.load.load_model", None)
    assert (
        main(
            [
                "advise",
                "--target",
                "target",
                *(["--prompts", "prompts.jsonl"] if "--prompts" not in flags else []),
                *flags,
            ]
        )
        == 2
    )
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert text in line and captured.out == ""
