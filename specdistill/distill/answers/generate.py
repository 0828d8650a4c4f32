"""`specdistill generate`: the target's answers as a data set, and what a cheaper model gives for the same budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt, encode_all, load_prompts
from specdistill.decoding import Sampling
from specdistill.distill.answers import on_ray, scorers, shards
from specdistill.distill.answers.engine import MakeEngine, build_engine, check_make_engine
from specdistill.distill.answers.generate_config import GenerateConfig
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
) -> dict[str, Any]:
    """Writes answers shard by shard.

    Args:
        config: Who answers what, how often.
        progress: Where bars and remarks go.
        make_engine: Of --rollout-engine vllm: `specdistill.serving.engines.vllm.VllmEngine`.

    Returns:
        output, and for each model in `generators` (target, and other where there is one): name, parameters, prompts,
        rollouts, tokens, budget (FLOPs or price), and what they bought: see `_bought`.

    Raises:
        SpecdistillError: Bad input, before anything is generated.
    """
    check_make_engine(config, make_engine)
    if config.ray is not None:
        on_ray.check_installed()
    progress = progress or Quiet()
    for role, name in (("target", config.target), ("other", config.other)):
        if name is not None:
            load.check_exists(name, role)
    prompts = load_prompts(config.prompts)
    scorer = scorers.check_scorer(config.scorer, prompts) if config.other else None
    output = Path(config.output)
    run_settings.claim(output, _settings(config), "answers")
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.ray is not None:
        models = {"target": load.load_shell(load.find(config.target, "target", progress.say))}
    elif config.other is None:
        models = {"target": _load_target(config, progress.say)}
    else:
        pair = load_pair(config.target, config.other, device=config.device, dtype=config.dtype, say=progress.say)
        models = {"target": pair.target, "other": pair.draft}
    target = models["target"]
    room = min(model.max_context for model in models.values()) - config.max_new_tokens
    encoded = encode_all(prompts, target.tokenizer, room)
    run_settings.write(output, _settings(config))
    settings = _rollout_settings(config)
    engine = None if config.ray is not None else build_engine(config, make_engine, target, encoded)

    def write(role: str, copies: int) -> list[Example]:
        directory = output if config.other is None else output / role
        if config.ray is not None:
            _write_on_ray(config, make_engine, settings.num_shards(len(prompts), copies), len(prompts), progress)
        else:
            arguments = {"copies": copies, "directory": directory, "progress": progress, "name": f"{role} rollouts"}
            arguments["write"] = None if engine is None else engine.write
            shards.sample_rollouts(models[role], prompts, encoded, settings, **arguments)
        return shards.load_rollouts(directory, prompts, encoded, target.vocab_size, copies)

    found = {"target": write("target", config.rollouts_per_prompt)}
    if config.other is not None:
        first = write("other", 1)
        found["other"] = write("other", matched_copies(config, models, found["target"], first))
    generators = {}
    for role, sequences in found.items():
        bought = {} if config.other is None else _bought(sequences, prompts, target, scorer)
        generators[role] = {
            "name": models[role].name,
            "parameters": models[role].num_parameters,
            "prompts": len(prompts),
            "rollouts": len(sequences),
            "tokens": _tokens(sequences),
            "budget": _tokens(sequences) * token_cost(config, models[role], role),
            **bought,
        }
    return {"output": str(output), "match": config.match if config.other else None, "generators": generators}


class AnswerWriter:
    """Holds the target and writes one shard of answers at a time, in a Ray worker.

    Args:
        config: Its paths are absolute: a worker starts in another folder.
        make_engine: Makes the engine that answers, or None.
    """

    def __init__(self, config: GenerateConfig, make_engine: MakeEngine | None) -> None:
        model = _load_target(config, print)
        prompts = load_prompts(config.prompts)
        encoded = encode_all(prompts, model.tokenizer, model.max_context - config.max_new_tokens)
        engine = build_engine(config, make_engine, model, encoded)
        write = None if engine is None else engine.write
        self._job = shards.RolloutJob(model, prompts, encoded, _rollout_settings(config), Path(config.output), write)

    def write(self, number: int) -> int:
        """Writes a shard where it is missing; the tokens it may hold."""
        return self._job.write_shard(number, Quiet())


def _write_on_ray(
    config: GenerateConfig, make_engine: MakeEngine | None, num_shards: int, num_prompts: int, progress: Progress
) -> None:
    assert config.ray is not None
    local = {name: str(Path(getattr(config, name)).absolute()) for name in ("target", "prompts", "output")}
    found = {name: path for name, path in local.items() if Path(path).exists()}
    total = config.rollouts_per_prompt * num_prompts * config.max_new_tokens
    with progress.task("target rollouts", total, "tokens") as task:
        on_ray.write_shards(
            AnswerWriter,
            (config.replace(**found), make_engine),
            range(num_shards),
            address=config.ray,
            workers=config.ray_workers,
            on_done=task.advance,
        )


def _rollout_settings(config: GenerateConfig) -> shards.RolloutSettings:
    return shards.RolloutSettings(
        Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p),
        config.max_new_tokens,
        config.seed,
        config.batch_size if config.rollout_engine == "transformers" else config.shard_size,
        config.shard_size,
    )


def _load_target(config: GenerateConfig, say: Callable[[str], None]) -> LanguageModel:
    """The target; only its shell where an engine holds the weights."""
    source = load.find(config.target, "target", say)
    if config.rollout_engine != "transformers":
        return load.load_shell(source)
    device = resolve_device(config.device)
    return load.load_model(source, "target", device=device, dtype=resolve_dtype(config.dtype, device))


def token_cost(config: GenerateConfig, model: LanguageModel, role: str) -> float:
    """Of one sampled token: FLOPs (2 x parameters), or its price.

    Source: Bansal et al. 2024 (arXiv 2408.16737), compute-matched sampling.
    """
    if config.match == "cost":
        return config.target_price if role == "target" else config.other_price
    return 2.0 * model.num_parameters


def matched_copies(
    config: GenerateConfig,
    models: dict[str, LanguageModel],
    target_answers: Sequence[Example],
    first: Sequence[Example],
) -> int:
    """How often the other model may answer each prompt for what the target's answers cost; at least once.

    Args:
        config: What is matched.
        models: target and other.
        target_answers: All of the target's.
        first: The other model's first answers: how long its answers are is measured on them.
    """
    budget = _tokens(target_answers) * token_cost(config, models["target"], "target")
    once = _tokens(first) * token_cost(config, models["other"], "other")
    return max(1, int(budget / once))


def _bought(
    sequences: Sequence[Example], prompts: Sequence[Prompt], target: LanguageModel, scorer: scorers.Scorer | None
) -> dict[str, float]:
    """distinct_per_prompt: different answers a prompt. target_log_likelihood: mean per token, in nats, over answers.
    With a scorer also mean_score, and coverage: the share of prompts with an answer that scored above 0."""
    distinct = {(each.prompt_id, each.answer_ids) for each in sequences}
    likelihoods = scorers.mean_log_likelihoods(target, sequences)
    found = {
        "distinct_per_prompt": len(distinct) / len(prompts),
        "target_log_likelihood": sum(likelihoods) / len(likelihoods),
    }
    if scorer is not None:
        known = {prompt.id: prompt for prompt in prompts}
        texts = [target.decode(each.answer_ids) for each in sequences]
        scores = [scorer(known[each.prompt_id], text) for each, text in zip(sequences, texts, strict=True)]
        solved = {each.prompt_id for each, value in zip(sequences, scores, strict=True) if value > 0}
        found |= {"mean_score": sum(scores) / len(scores), "coverage": len(solved) / len(prompts)}
    return found


def _tokens(sequences: Sequence[Example]) -> int:
    return sum(len(each.answer_ids) for each in sequences)


def _settings(config: GenerateConfig) -> dict[str, Any]:
    return {key: value for key, value in dataclasses.asdict(config).items() if key not in _MAY_CHANGE}
