"""Every run ends with the command to type next, and that command does run."""

from __future__ import annotations

import shlex

import pytest
from tiny_runs import prompt_rows, standard_models, write_folder, write_rows

from specdistill import (
    AnnotateConfig,
    CheckConfig,
    ExportConfig,
    GenerateConfig,
    InitDraftConfig,
    PlanConfig,
    TrainConfig,
)
from specdistill.cli import _COMMANDS, app, main, next_command
from specdistill.settings.checks import typed

SMALL = {
    "init-draft": "--layers 2 --calibration-prompts 4 --calibration-tokens 8 --probe-steps 1",
    "train-draft": "--steps 2 --heldout-prompts 4 --rollouts-per-prompt 1 --max-new-tokens 8",
    "bench": "--num-prompts 8 --max-new-tokens 8",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("next"), standard_models(), prompt_rows(24))
    write_rows(folder / "new.jsonl", [{"prompt": f"w{i} w{i + 30}"} for i in range(12)])
    return folder


@pytest.fixture
def last_line(folder, monkeypatch, capsys):
    """Runs a command in the folder, made small; the command that its last line names, as words."""
    monkeypatch.chdir(folder)

    def run(*words: str) -> list[str]:
        assert main([*words, *SMALL.get(words[0], "").split()]) == 0
        *_, last = capsys.readouterr().out.splitlines()
        assert last.startswith("next: "), last
        return shlex.split(last.removeprefix("next: "))

    return run


def test_the_way_from_a_cut_to_a_server(last_line):
    """Each command is the one that the run before it named, word for word but for the new prompts."""
    target = ["--target", "target", "--threads", "1"]
    named = last_line("init-draft", *target, "--prompts", "prompts.jsonl", "--output", "cut")
    trained = ["--draft", "cut", "--prompts", "prompts.jsonl", "--output", "cut-trained"]
    assert named == ["specdistill", "train-draft", *target, *trained]
    named = last_line(*named[1:])
    benched = ["--draft", "cut-trained", "--compare", "cut", "--prompts", "NEW_PROMPTS", "--html", "cut-trained.html"]
    assert named == ["specdistill", "bench", *target, *benched]
    # What bench advises depends on the measured speed; of a draft that pays it is `check`.
    assert last_line(*(word.replace("NEW_PROMPTS", "new.jsonl") for word in named[1:]))
    named = last_line("check", "--target", "target", "--draft", "cut-trained")
    assert named[:3] == ["vllm", "serve", "target"]


def test_answers_and_labels_name_the_training_that_takes_them(last_line, folder):
    chosen = "--target", "target", "--prompts", "prompts.jsonl"
    named = last_line("generate", *chosen, "--rollouts-per-prompt", "1", "--max-new-tokens", "8", "--output", "answers")
    training = ["train-draft", "--target", "target", "--draft", "DRAFT"]
    assert named[1:] == [*training, "--prompts", "prompts.jsonl", "--rollouts", "answers", "--output", "draft"]
    made = {"DRAFT": "draft", "draft": "from-answers"}
    last_line(*(made.get(word, word) for word in named[1:]))
    named = last_line("annotate", "--target", "target", "--rollouts", "answers", "--top-k", "8", "--output", "labels")
    # Labels answer the prompts that their answers were made for, and no others.
    assert named[1:] == [*training, "--prompts", "prompts.jsonl", "--soft-labels", "labels", "--output", "draft"]
    made = {"DRAFT": "draft", "draft": "from-labels"}
    last_line(*(made.get(word, word) for word in named[1:]))
    written = "from-answers-of-its-own"
    training += ["--prompts", "prompts.jsonl"]
    last_line("train-draft", *chosen, "--draft", "draft", "--output", written)
    named = last_line("annotate", "--target", "target", "--rollouts", f"{written}/rollouts", "--output", "its-labels")
    assert named[1:] == [*training, "--soft-labels", "its-labels", "--output", "draft"]


def test_every_command_says_it():
    """A command that returns nothing would end without a word."""
    for name, module in _COMMANDS.items():
        assert module.command.__annotations__["return"] == "str", name


ADAPTER = {"target": "tuned", "target_base": "base model"}
THINKING = '{"enable_thinking": false}'
CASES = [
    (
        next_command.after_plan(PlanConfig.flat(target_params="8B", draft_params="1B")),
        "advise --target TARGET --prompts PROMPTS",
    ),
    (
        next_command.after_init_draft(InitDraftConfig.flat(**ADAPTER, layers=2, output="cut", raw_prompts=True)),
        "train-draft --target tuned --target-base 'base model' --raw-prompts --draft cut --output cut-trained",
    ),
    (
        next_command.after_train_draft(TrainConfig.flat(**ADAPTER, draft="cut", output="d", prompts="builtin:train")),
        "bench --target tuned --target-base 'base model' --draft d --compare cut --html d.html",
    ),
    (
        next_command.after_train_draft(TrainConfig.flat(target="T", draft="c", output="d"), kept_start=True),
        "bench --target T --draft d --html d.html",
    ),
    (
        next_command.after_train_draft(
            TrainConfig.flat(target="T", draft="c", output="d", prompts="self:4:train", chat_template_kwargs=THINKING)
        ),
        f"bench --target T --chat-template-kwargs '{THINKING}' --draft d --compare c --prompts self:4:heldout "
        "--html d.html",
    ),
    (
        next_command.after_train_draft(
            TrainConfig.flat(target="T", draft="S", output="d", method="sft", prompts="p.jsonl"), same_tokenizer=False
        ),
        "bench --target T --draft d --engine transformers --prompts NEW_PROMPTS --html d.html",
    ),
    (
        next_command.after_train_draft(
            TrainConfig.flat(
                target="T", draft="T", output="d", method="sft", prompts="p.jsonl", scorer="json", threads=1
            )
        ),
        "generate --target d --threads 1 --prompts NEW_PROMPTS --temperature 0 --scorer json --output d-answers",
    ),
    (
        next_command.after_train_draft(
            TrainConfig.flat(target="T", draft="T", output="d", method="sft", prompts="p.jsonl")
        ),
        "generate --target d --prompts NEW_PROMPTS --temperature 0 --output d-answers",
    ),
    (
        next_command.after_train_draft(TrainConfig.flat(target="T", draft="T", output="d", parallel=4)),
        "bench --target T --draft d --html d.html",
    ),
    (
        next_command.after_train_draft(
            TrainConfig.flat(
                **{"target": "T", "draft": "c", "output": "d", "prompts": "p.jsonl", "scorer": "my:f"},
                **{"guidance": 0.5, "negative_prompt": ""},
            )
        ),
        "bench --target T --draft d --compare c --guidance 0.5 --negative-prompt '' --prompts NEW_PROMPTS "
        "--scorer my:f --html d.html",
    ),
    (
        # A head writes no answers alone, which bench refuses to score.
        next_command.after_train_draft(
            TrainConfig.flat(target="T", draft="c", output="d", scorer="my:f"), scored=False
        ),
        "bench --target T --draft d --compare c --html d.html",
    ),
    (
        # Guidance is for our decoder alone.
        next_command.after_train_draft(
            TrainConfig.flat(
                target="T", draft="S", output="d", method="seqkd", guidance=0.5, negative_prompt="x", scorer="my:f"
            ),
            same_tokenizer=False,
        ),
        "bench --target T --draft d --engine transformers --scorer my:f --html d.html",
    ),
    (
        next_command.after_generate(
            GenerateConfig.flat(
                target="T", scorer="my:f", strict_scorer="json", score_threshold=0.5, output="a", prompts="p.jsonl"
            )
        ),
        "train-draft --target T --draft DRAFT --prompts p.jsonl --method best-of-n --keep-correct --scorer my:f "
        "--score-threshold 0.5 --strict-scorer json --rollouts a --output draft",
    ),
    (
        next_command.after_generate(GenerateConfig.flat(target="T", temperature=0, output="a")),
        "train-draft --target T --draft DRAFT --rollouts a --output draft",
    ),
    (
        next_command.after_annotate(AnnotateConfig.flat(target="T", text="corpus.jsonl", output="labels")),
        "train-draft --target T --draft DRAFT --soft-labels labels --output draft",
    ),
    (
        next_command.after_export(
            ExportConfig.flat(**ADAPTER, draft="d", format="vllm", output="out", merged_target="merged"), "vllm serve"
        ),
        "bench --target merged --draft out --engine vllm --prompts NEW_PROMPTS",
    ),
    (
        next_command.after_export(
            ExportConfig.flat(target="T", target_gguf="t.gguf", draft="d", format="gguf", output="d.gguf"), "serve"
        ),
        "bench --target t.gguf --draft d.gguf --engine llama-cpp --prompts NEW_PROMPTS",
    ),
]


@pytest.mark.parametrize(("named", "expected"), CASES)
def test_settings_of_the_project_are_carried_on(named, expected):
    assert named == f"specdistill {expected}"
    app.parse_args(shlex.split(expected.replace("N --output", "2 --output")), exit_on_error=False, print_error=False)


def test_answers_of_two_models_are_both_named():
    config = GenerateConfig.flat(target="T", other="S", scorer="json", output="matched")
    shared = "specdistill train-draft --target T --draft DRAFT --method best-of-n --keep-correct --scorer json"
    one, other = next_command.after_generate(config).split("\nor: ")
    assert one == f"{shared} --rollouts matched/target --output draft"
    assert other == f"{shared} --rollouts matched/other --output draft-other"


def test_judged_greedy_answers_are_not_trained_on():
    """They were written to be scored: best-of-n would have one answer to choose from."""
    greedy = GenerateConfig.flat(target="student", temperature=0, scorer="json", output="a")
    assert next_command.after_generate(greedy) == ""


def test_where_bench_has_no_such_engine_the_server_is_started():
    config = ExportConfig.flat(target="T", draft="d", format="sglang", output="out")
    assert next_command.after_export(config, "python -m sglang.launch_server") == "python -m sglang.launch_server"


class OwnHead:
    def __init__(self, state: str, remedy: str | None = None) -> None:
        self.state, self.remedy = state, remedy


@pytest.mark.parametrize(
    ("own_head", "expected"),
    [
        (
            OwnHead("lost", "specdistill carry-head --base B --target T --output O"),
            "carry-head --base B --target T --output O",
        ),
        (OwnHead("here"), "bench --target T --engine vllm --method mtp"),
        (OwnHead("none"), "init-draft --target T --layers N --output cut"),
    ],
)
def test_a_target_without_a_draft(own_head, expected):
    assert next_command.after_check(CheckConfig.flat(target="T"), [], own_head) == f"specdistill {expected}"


def test_settings_are_printed_as_they_are_typed():
    """Several values follow their flag, and a switch that is off has no bare value behind it."""
    assert typed("feature_layers", (1, 2, 3)) == ["--feature-layers", "1", "2", "3"]
    assert typed("packing", False) == ["--packing=false"] and typed("packing", True) == ["--packing"]
    assert typed("seed", 0) == ["--seed", "0"]
