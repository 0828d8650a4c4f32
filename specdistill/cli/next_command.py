"""The command to type after each one, which the command line prints as a run's last line.

Words in capitals stand for what only the user knows, such as DRAFT or NEW_PROMPTS.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specdistill.settings.checks import flag
from specdistill.settings.command_line import PROJECT, changed_flags, command, unseen_prompts
from specdistill.settings.parts import Config, defaults
from specdistill.settings.scoring import LIKELIHOOD

if TYPE_CHECKING:
    from specdistill.distill.answers.annotate_config import AnnotateConfig
    from specdistill.distill.answers.generate_config import GenerateConfig
    from specdistill.distill.config import TrainConfig
    from specdistill.distill.cutting.config import InitDraftConfig
    from specdistill.evaluation.plan_config import PlanConfig
    from specdistill.report.serving import OwnHeadVerdict, Verdict
    from specdistill.serving.carry_config import CarryHeadConfig
    from specdistill.serving.check_config import CheckConfig
    from specdistill.serving.export_config import ExportConfig

_BENCH_ENGINES = {"transformers": "transformers", "vllm": "vllm", "gguf": "llama-cpp"}
"""--format of export -> --engine of bench."""


def after_plan(config: PlanConfig) -> str:
    """Chooses a draft; a plan knows no names."""
    return command("advise", "--target", "TARGET", "--prompts", "PROMPTS")


def after_init_draft(config: InitDraftConfig) -> str:
    """Trains it on the same prompts."""
    words = "--draft", config.output, *_prompts(config), "--output", f"{config.output}-trained"
    return command("train-draft", *_shared(config), *words)


def after_generate(config: GenerateConfig) -> str:
    """Trains on the answers, or on each half of those of two models; nothing where greedy answers were only judged."""
    comparison = config.comparison
    judged = comparison.scorer != LIKELIHOOD
    if judged and config.sampling.greedy:
        # One answer per prompt leaves nothing to choose from: the scores were what was asked for.
        return ""
    method = ["--method", "best-of-n", "--keep-correct"] if judged else []
    method += changed_flags(config, ("scorer", "score_threshold", "strict_scorer"))
    words = "--draft", "DRAFT", *_prompts(config), *method
    answers = {"draft": config.output}
    if comparison.other is not None:
        answers = {"draft": f"{config.output}/target", "draft-other": f"{config.output}/other"}
    return "\nor: ".join(
        command("train-draft", *_shared(config), *words, "--rollouts", directory, "--output", output)
        for output, directory in answers.items()
    )


def after_annotate(config: AnnotateConfig) -> str:
    """Trains on the labels, on the prompts that their answers were made for."""
    words = "--draft", "DRAFT", *_answered(config), "--soft-labels", config.output, "--output", "draft"
    return command("train-draft", *_shared(config), *words)


def after_train_draft(
    config: TrainConfig, same_tokenizer: bool = True, kept_start: bool = False, scored: bool = True
) -> str:
    """Measures the draft, beside the one it was made of, on prompts that training never saw.

    Args:
        config: The run's settings.
        same_tokenizer: Whether the draft has the target's tokenizer; only transformers drafts with another one.
        kept_start: Whether what is written is the start, which is not compared with itself.
        scored: Whether --scorer has judged the draft's own answers; a head writes none.
    """
    same, parallel = config.draft == config.target, config.parallel_draft.wanted
    scorer = ("--scorer", config.sequences.scorer) if scored and config.sequences.judges_text else ()
    if same and not parallel:
        # A model that was tuned is no draft of what it was: see how it answers.
        words = *unseen_prompts(config.prompts), "--temperature", "0", *scorer, "--output", f"{config.output}-answers"
        return command("generate", "--target", config.output, *_shared(config, "target", "target_base"), *words)
    # A target that guesses several tokens has nothing to be compared with.
    compared = () if kept_start else ("--compare", config.draft)
    beside = () if same else compared if same_tokenizer else ("--engine", "transformers")
    # Only our decoder has guidance, and it takes drafts of the target's tokenizer.
    guidance = changed_flags(config, ("guidance", "negative_prompt")) if same_tokenizer else []
    measured = *guidance, *unseen_prompts(config.prompts), *scorer
    words = "--draft", config.output, *beside, *measured, "--html", f"{config.output}.html"
    return command("bench", *_shared(config), *words)


def after_check(config: CheckConfig, verdicts: Sequence[Verdict], own_head: OwnHeadVerdict) -> str:
    """Serves the pair in the first engine that loads it, or does what comes before; without a draft, gets one.

    Args:
        config: What was checked.
        verdicts: What each engine says of the pair.
        own_head: Whether the target has a head of its own.
    """
    for verdict in verdicts:
        if verdict.loads:
            return next(iter(verdict.first), verdict.command)
    if config.draft is not None:
        return command("bench", *_shared(config), "--draft", config.draft)
    if own_head.remedy is not None:
        return own_head.remedy
    if own_head.state == "here":
        return _own_head(config.target)
    return command("init-draft", *_shared(config), "--layers", "N", "--output", "cut")


def after_carry_head(config: CarryHeadConfig) -> str:
    """Measures the head."""
    return _own_head(config.output)


def after_export(config: ExportConfig, serve: str, trained_tokens: int | None = None) -> str:
    """Measures the exported draft in its engine; starts the server where bench has no such engine.

    Args:
        config: What was exported.
        serve: Command that starts the server.
        trained_tokens: Draft tokens that a head was trained for; None leaves the number to bench.
    """
    engine = _BENCH_ENGINES.get(config.format)
    if engine is None:
        return serve
    target = config.served_gguf if config.format == "gguf" else config.files.merged_target or config.target
    own = _shared(config) if target == config.target else ["--target", target]
    length = () if trained_tokens is None else ("--num-draft-tokens", str(trained_tokens))
    # Without a name bench measures the built-in prompts, for which few drafts are made.
    return command("bench", *own, "--draft", config.output, "--engine", engine, *length, "--prompts", "NEW_PROMPTS")


def _own_head(target: str) -> str:
    return command("bench", "--target", target, "--engine", "vllm", "--method", "mtp")


def _prompts(config: InitDraftConfig | GenerateConfig | AnnotateConfig) -> tuple[str, ...]:
    """The same prompts, where others than the default's were named."""
    return () if config.prompts == defaults(type(config))["prompts"] else ("--prompts", config.prompts)


def _answered(config: AnnotateConfig) -> list[str]:
    """Flags of the prompts whose answers were labelled, as the directory of the answers names them."""
    if config.rollouts is None:
        return list(_prompts(config))
    from specdistill.files import run_settings

    usual, words = defaults(type(config)), list[str]()
    # train-draft keeps its answers in a folder of its output.
    directories = Path(config.rollouts), Path(config.rollouts).parent
    made = next((run_settings.read(directory) for directory in directories if run_settings.exists(directory)), {})
    for name, value in made.items():
        if (name == "prompts" or name.startswith("self_")) and value not in (None, usual.get(name)):
            words += [flag(name), str(value)]
    return words


def _shared(config: Config, *left_out: str) -> list[str]:
    """Flags of the settings that the next command must share, where they are not the default's."""
    return changed_flags(config, set(PROJECT).difference(left_out))
