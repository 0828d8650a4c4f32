"""`specdistill generate`: the target's answers as a data set, and what a cheaper model gives for the same budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, load_prompts
from specdistill.data.target_context import TargetContext, TargetView
from specdistill.decoding.self_prompts import Weights, prompts_file
from specdistill.distill.answers import on_ray, shards
from specdistill.distill.answers.asked import Asked, ask
from specdistill.distill.answers.budget import matched_copies
from specdistill.distill.answers.engine import MakeEngine, build_engine, check_make_engine
from specdistill.distill.answers.generate_config import GenerateConfig
from specdistill.distill.answers.generate_summary import generate_summary
from specdistill.distill.answers.interrupts import reported_interrupt
from specdistill.distill.answers.same_context import check_same_context, write_context
from specdistill.distill.answers.selection import Judge, build_judge
from specdistill.distill.answers.shard_plan import ShardPlan, ShardWork, plan_shards
from specdistill.errors import out_of_memory_named, smaller_batch
from specdistill.evaluation.summaries import GenerateSummary
from specdistill.files import locks, run_settings
from specdistill.models import LanguageModel, load, load_pair
from specdistill.models.pair import FoundPair, find_pair, resolve_device, resolve_dtype
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
    "score_threshold",
    "strict_scorer",
    # Their content is compared, not their names.
    "target_system",
    "target_examples",
    "target_hint",
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
    config.machine.limit_threads()
    prompts, context, judge = _check_before_loading(config, make_engine, progress)
    found = _find(config, progress.say)
    # Prompts are checked before any weights are read.
    asked = ask(prompts, context, found.target, found.max_context - config.max_new_tokens)
    output = Path(config.output)
    size = f"{config.batches.shard_size} answers; a lower --shard-size loses less"
    with locks.output_lock(output, progress.say), reported_interrupt(output, "answers", size, progress):
        return _generate(config, found, asked, judge, output, progress, make_engine)


def _generate(
    config: GenerateConfig,
    found: FoundPair,
    asked: Asked,
    judge: Judge,
    output: Path,
    progress: Progress,
    make_engine: MakeEngine | None,
) -> GenerateSummary:
    run_settings.claim(output, _settings(config), "answers")
    if any(output.rglob("*.parquet")):
        check_same_context("--output", output, asked.context)
        run_settings.check_adapters(output, found.adapter_labels)
    if config.copies < config.rollouts_per_prompt:
        progress.say("at --temperature 0 all answers to a prompt are the same: one is written")
    models = _load(config, found, progress.say)
    prompts = asked.prompts
    warn_about_prompts(prompts, asked.encoded, models["target"], progress.say)
    run_settings.write(output, _settings(config))
    run_settings.keep_adapters(output, found.adapter_labels)
    write_context(output, asked.context)
    writer = _Writer(config, models, asked, make_engine, progress)
    answers = {"target": writer.write("target", config.copies)}
    if config.comparison.other is not None:
        first = writer.write("other", 1)
        copies = matched_copies(config.comparison, models, answers["target"], first)
        answers["other"] = writer.write("other", config.sampling.distinct_copies(copies))
    return generate_summary(config, models, answers, prompts, judge)


def _check_before_loading(
    config: GenerateConfig, make_engine: MakeEngine | None, progress: Progress
) -> tuple[list[Prompt], TargetContext, Judge]:
    """Finds what can be wrong without a model; the prompts, what only the target sees, and the report's judge."""
    resolve_device(config.machine.device)
    check_make_engine(config.engine, make_engine)
    if config.cluster.ray is not None:
        on_ray.check_installed()
    load.check_exists(config.target, "target", config.adapter.target_base)
    if config.comparison.other is not None:
        load.check_exists(config.comparison.other, "other")
    prompts = _prompts(config, Weights(config.machine.device, config.dtype), progress)
    judge = build_judge(config.comparison.judge, prompts, threshold_needed=True)
    return prompts, TargetContext.read(config.context), judge


def _prompts(config: GenerateConfig, weights: Weights | None, progress: Progress) -> list[Prompt]:
    own, base = config.self_prompts, config.adapter.target_base
    named = prompts_file(config.prompts, "train", own, config.chat, config.target, weights, progress, base=base)
    return load_prompts(named, config.chat)


def _find(config: GenerateConfig, say: Callable[[str], None]) -> FoundPair:
    """The models that answer; without another, the target stands for both."""
    if config.comparison.other is not None:
        other, base = config.comparison.other, config.adapter.target_base
        return find_pair(config.target, other, draft_role="other", say=say, target_base=base)
    source = load.find(config.target, "target", say, config.adapter.target_base)
    return FoundPair(source, source, same_tokenizer=True)


def _load(config: GenerateConfig, found: FoundPair, say: Callable[[str], None]) -> dict[str, LanguageModel]:
    """The models by role; of a target that Ray's workers load only the shell."""
    if config.cluster.ray is not None:
        return {"target": load.load_shell(found.target)}
    other, device = config.comparison.other, config.machine.device
    if other is None:
        return {"target": _load_target(config, found.target)}
    pair = load_pair(config.target, other, found=found, device=device, dtype=config.dtype, draft_answers=True, say=say)
    return {"target": pair.target, "other": pair.draft}


class _Writer:
    """Writes the answers of each model, here or on a Ray cluster."""

    def __init__(
        self,
        config: GenerateConfig,
        models: Mapping[str, LanguageModel],
        asked: Asked,
        make_engine: MakeEngine | None,
        progress: Progress,
    ) -> None:
        self._config, self._models, self._prompts, self._encoded = config, models, asked.prompts, asked.encoded
        self._make_engine, self._progress, self._view = make_engine, progress, asked.view
        self._settings = _rollout_settings(config, asked.view)
        self._engine = None
        if config.cluster.ray is None:
            self._engine = build_engine(config.engine, make_engine, models["target"], asked.seen, config.max_new_tokens)

    def write(self, role: str, copies: int) -> list[Example]:
        """Writes and reads back a model's answers, `copies` to each prompt."""
        config, output = self._config, Path(self._config.output)
        directory = output if config.comparison.other is None else output / role
        if config.cluster.ray is not None:
            plan = plan_shards(self._prompts, self._encoded, self._settings.shard_size, copies, directory)
            _write_on_ray(config, self._make_engine, plan, len(self._prompts), self._progress)
        else:
            uses_engine, batch_size = config.engine.uses_engine, config.batches.batch_size
            with out_of_memory_named("change --engine-memory" if uses_engine else smaller_batch(batch_size)):
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
        examples = shards.load_rollouts(directory, self._prompts, self._encoded, vocab_size, copies, self._view)
        return self._view.examples(examples)


class AnswerWriter:
    """Holds the target and writes one shard of answers at a time, in a Ray worker.

    Args:
        config: Its paths are absolute: a worker starts in another folder.
        make_engine: Makes the engine that answers, or None.
        work: All shards; `write` takes a place in this list.
    """

    def __init__(self, config: GenerateConfig, make_engine: MakeEngine | None, work: Sequence[ShardWork]) -> None:
        self._work = work
        source = load.find(config.target, "target", base=config.adapter.target_base)
        # The driver has let the target write prompts of its own; a worker finds them in the cache.
        prompts, context = _prompts(config, None, Quiet()), TargetContext.read(config.context)
        asked = ask(prompts, context, source, source.max_context - config.max_new_tokens)
        model = _load_target(config, source)
        engine = build_engine(config.engine, make_engine, model, asked.seen, config.max_new_tokens)
        write = None if engine is None else engine.write
        settings = _rollout_settings(config, asked.view)
        self._job = shards.RolloutJob(model, prompts, asked.encoded, settings, Path(config.output), write)

    def write(self, number: int) -> int:
        """Writes a shard where it is missing; the tokens it may hold."""
        return self._job.write_shard(self._work[number], Quiet())


def _write_on_ray(
    config: GenerateConfig, make_engine: MakeEngine | None, plan: ShardPlan, num_prompts: int, progress: Progress
) -> None:
    if remark := plan.remark(Path(config.output)):
        progress.say(remark)
    assert config.cluster.ray is not None
    named = config.to_flat()
    names = ("target", "target_base", "prompts", "output", "target_system", "target_examples", "self_system")
    local = {name: str(Path(named[name]).absolute()) for name in names if named[name] is not None}
    existing = {name: path for name, path in local.items() if Path(path).exists()}
    total = config.copies * num_prompts * config.max_new_tokens
    with progress.task("target rollouts", total, "tokens") as task:
        on_ray.write_shards(
            AnswerWriter,
            (config.replace(**existing), make_engine, plan.shards),
            range(len(plan.shards)),
            address=config.cluster.ray,
            workers=config.cluster.ray_workers,
            on_done=task.advance,
        )


def _rollout_settings(config: GenerateConfig, view: TargetView) -> shards.RolloutSettings:
    batches = config.batches
    return shards.RolloutSettings(
        config.sampling,
        config.max_new_tokens,
        batches.seed,
        batches.shard_size if config.engine.uses_engine else batches.batch_size,
        batches.shard_size,
        view=view,
    )


def _load_target(config: GenerateConfig, source: load.ModelSource) -> LanguageModel:
    """The target; only its shell where an engine holds the weights."""
    if config.engine.uses_engine:
        return load.load_shell(source)
    device = resolve_device(config.machine.device)
    return load.load_model(source, "target", device=device, dtype=resolve_dtype(config.dtype, device))


def _settings(config: GenerateConfig) -> run_settings.FlatSettings:
    return {key: value for key, value in config.to_flat().items() if key not in _MAY_CHANGE}
