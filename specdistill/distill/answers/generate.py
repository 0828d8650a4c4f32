"""`specdistill generate`: the target's answers as a data set, and what a cheaper model gives for the same budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode_all, load_prompts
from specdistill.distill.answers import on_ray, scorers, shards
from specdistill.distill.answers.engine import MakeEngine, build_engine, check_make_engine
from specdistill.distill.answers.generate_config import ComparisonSettings, GenerateConfig
from specdistill.evaluation.summaries import GenerateSummary, GeneratorSummary
from specdistill.files import run_settings
from specdistill.models import LanguageModel, load, load_pair
from specdistill.models.pair import resolve_device, resolve_dtype
from specdistill.progress import Progress, Quiet

_MAY_CHANGE = {
    "rollouts_per_prompt",
    "rollout_engine",
    "ray",
    "ray_workers",
    "engine_memory",
    "batch_size",
    "device",
    "dtype",
    "threads",
    "output",
    "scorer",
}
"""Settings under which finished answers stay as good as new ones."""


def generate(
    config: GenerateConfig, progress: Progress | None = None, make_engine: MakeEngine | None = None
) -> GenerateSummary:
    """Writes answers shard by shard.

    Args:
        config: Who answers what, how often.
        progress: Where bars and remarks go.
        make_engine: Engine of --rollout-engine vllm: `specdistill.serving.engines.vllm.VllmEngine`.

    Returns:
        Answers, tokens and budget of each model, and with a second model what each budget bought.

    Raises:
        SpecdistillError: Bad input, before anything is generated.
    """
    progress = progress or Quiet()
    prompts, scorer = _check_before_loading(config, make_engine)
    output = Path(config.output)
    run_settings.claim(output, _settings(config), "answers")
    config.machine.limit_threads()
    models = _load(config, progress.say)
    target = models["target"]
    room = min(model.max_context for model in models.values()) - config.max_new_tokens
    encoded = encode_all(prompts, target.tokenizer, room)
    warn_about_prompts(prompts, encoded, target, progress.say)
    run_settings.write(output, _settings(config))
    writer = _Writer(config, models, prompts, encoded, make_engine, progress)
    answers = {"target": writer.write("target", config.rollouts_per_prompt)}
    if config.comparison.other is not None:
        first = writer.write("other", 1)
        copies = matched_copies(config.comparison, models, answers["target"], first)
        answers["other"] = writer.write("other", copies)
    generators = {role: _summary(config, role, models, examples, prompts, scorer) for role, examples in answers.items()}
    match = config.comparison.match if config.comparison.other else None
    return GenerateSummary(output=str(output), match=match, generators=generators)


def _check_before_loading(
    config: GenerateConfig, make_engine: MakeEngine | None
) -> tuple[list[Prompt], scorers.Scorer | None]:
    """Finds what can be wrong without looking at a model; the prompts, and the scorer of a comparison."""
    check_make_engine(config.engine, make_engine)
    if config.cluster.ray is not None:
        on_ray.check_installed()
    for role, name in (("target", config.target), ("other", config.comparison.other)):
        if name is not None:
            load.check_exists(name, role)
    prompts = load_prompts(config.prompts, config.chat)
    return prompts, scorers.check_scorer(config.comparison.scorer, prompts) if config.comparison.other else None


def _load(config: GenerateConfig, say: Callable[[str], None]) -> dict[str, LanguageModel]:
    """The models by role; of a target that Ray's workers load only the shell."""
    if config.cluster.ray is not None:
        return {"target": load.load_shell(load.find(config.target, "target", say))}
    if config.comparison.other is None:
        return {"target": _load_target(config, say)}
    pair = load_pair(config.target, config.comparison.other, device=config.machine.device, dtype=config.dtype, say=say)
    return {"target": pair.target, "other": pair.draft}


class _Writer:
    """Writes the answers of each model, here or on a Ray cluster."""

    def __init__(
        self,
        config: GenerateConfig,
        models: Mapping[str, LanguageModel],
        prompts: Sequence[Prompt],
        encoded: Sequence[list[int]],
        make_engine: MakeEngine | None,
        progress: Progress,
    ) -> None:
        self._config, self._models, self._prompts, self._encoded = config, models, prompts, encoded
        self._make_engine, self._progress = make_engine, progress
        self._settings = _rollout_settings(config)
        self._engine = None
        if config.cluster.ray is None:
            self._engine = build_engine(config.engine, make_engine, models["target"], encoded, config.max_new_tokens)

    def write(self, role: str, copies: int) -> list[Example]:
        """Writes and reads back a model's answers, `copies` to each prompt."""
        config, output = self._config, Path(self._config.output)
        directory = output if config.comparison.other is None else output / role
        if config.cluster.ray is not None:
            num_shards = self._settings.num_shards(len(self._prompts), copies)
            _write_on_ray(config, self._make_engine, num_shards, len(self._prompts), self._progress)
        else:
            shards.sample_rollouts(
                self._models[role],
                self._prompts,
                self._encoded,
                self._settings,
                copies=copies,
                directory=directory,
                progress=self._progress,
                name=f"{role} rollouts",
                write=None if self._engine is None else self._engine.write,
            )
        vocab_size = self._models["target"].vocab_size
        return shards.load_rollouts(directory, self._prompts, self._encoded, vocab_size, copies)


class AnswerWriter:
    """Holds the target and writes one shard of answers at a time, in a Ray worker.

    Args:
        config: Its paths are absolute: a worker starts in another folder.
        make_engine: Makes the engine that answers, or None.
    """

    def __init__(self, config: GenerateConfig, make_engine: MakeEngine | None) -> None:
        model = _load_target(config, print)
        prompts = load_prompts(config.prompts, config.chat)
        encoded = encode_all(prompts, model.tokenizer, model.max_context - config.max_new_tokens)
        engine = build_engine(config.engine, make_engine, model, encoded, config.max_new_tokens)
        write = None if engine is None else engine.write
        self._job = shards.RolloutJob(model, prompts, encoded, _rollout_settings(config), Path(config.output), write)

    def write(self, number: int) -> int:
        """Writes a shard where it is missing; the tokens it may hold."""
        return self._job.write_shard(number, Quiet())


def _write_on_ray(
    config: GenerateConfig, make_engine: MakeEngine | None, num_shards: int, num_prompts: int, progress: Progress
) -> None:
    assert config.cluster.ray is not None
    local = {name: str(Path(getattr(config, name)).absolute()) for name in ("target", "prompts", "output")}
    existing = {name: path for name, path in local.items() if Path(path).exists()}
    total = config.rollouts_per_prompt * num_prompts * config.max_new_tokens
    with progress.task("target rollouts", total, "tokens") as task:
        on_ray.write_shards(
            AnswerWriter,
            (config.replace(**existing), make_engine),
            range(num_shards),
            address=config.cluster.ray,
            workers=config.cluster.ray_workers,
            on_done=task.advance,
        )


def _rollout_settings(config: GenerateConfig) -> shards.RolloutSettings:
    batches = config.batches
    return shards.RolloutSettings(
        config.sampling,
        config.max_new_tokens,
        batches.seed,
        batches.shard_size if config.engine.uses_engine else batches.batch_size,
        batches.shard_size,
    )


def _load_target(config: GenerateConfig, say: Callable[[str], None]) -> LanguageModel:
    """The target; only its shell where an engine holds the weights."""
    source = load.find(config.target, "target", say)
    if config.engine.uses_engine:
        return load.load_shell(source)
    device = resolve_device(config.machine.device)
    return load.load_model(source, "target", device=device, dtype=resolve_dtype(config.dtype, device))


def token_cost(settings: ComparisonSettings, model: LanguageModel, role: str) -> float:
    """Cost of one sampled token: FLOPs (2 x parameters), or its price.

    Source: Bansal et al. 2024 (arXiv 2408.16737), compute-matched sampling.
    """
    if settings.match == "cost":
        return settings.token_price(role)
    return 2.0 * model.num_parameters


def matched_copies(
    settings: ComparisonSettings,
    models: Mapping[str, LanguageModel],
    target_answers: Sequence[Example],
    first: Sequence[Example],
) -> int:
    """How often the other model may answer each prompt for what the target's answers cost; at least once.

    Args:
        settings: What is matched.
        models: target and other.
        target_answers: All of the target's.
        first: The other model's first answers: how long its answers are is measured on them.
    """
    budget = _tokens(target_answers) * token_cost(settings, models["target"], "target")
    once = _tokens(first) * token_cost(settings, models["other"], "other")
    return max(1, int(budget / once))


def _summary(
    config: GenerateConfig,
    role: str,
    models: Mapping[str, LanguageModel],
    examples: Sequence[Example],
    prompts: Sequence[Prompt],
    scorer: scorers.Scorer | None,
) -> GeneratorSummary:
    model, tokens = models[role], _tokens(examples)
    summary = GeneratorSummary(
        name=model.name,
        parameters=model.num_parameters,
        prompts=len(prompts),
        rollouts=len(examples),
        tokens=tokens,
        budget=tokens * token_cost(config.comparison, model, role),
    )
    if config.comparison.other is None:
        return summary
    target = models["target"]
    likelihoods = scorers.mean_log_likelihoods(target, examples)
    summary = dataclasses.replace(
        summary,
        distinct_per_prompt=len({(row.prompt_id, row.answer_ids) for row in examples}) / len(prompts),
        target_log_likelihood=sum(likelihoods) / len(likelihoods),
    )
    if scorer is None:
        return summary
    by_id = {prompt.id: prompt for prompt in prompts}
    scores = [scorer(by_id[row.prompt_id], target.decode(row.answer_ids)) for row in examples]
    solved = {row.prompt_id for row, score in zip(examples, scores, strict=True) if score > 0}
    return dataclasses.replace(summary, mean_score=sum(scores) / len(scores), coverage=len(solved) / len(prompts))


def _tokens(examples: Sequence[Example]) -> int:
    return sum(len(example.answer_ids) for example in examples)


def _settings(config: GenerateConfig) -> run_settings.FlatSettings:
    return {key: value for key, value in config.to_flat().items() if key not in _MAY_CHANGE}
