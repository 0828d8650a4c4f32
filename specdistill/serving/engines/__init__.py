"""Adapters that drive real engines; the only place that imports them, and only inside functions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from specdistill.errors import ModelError, ServerError
from specdistill.models import LanguageModel
from specdistill.models.pair import resolve_device, resolve_dtype
from specdistill.progress import Progress
from specdistill.servers.client import ModelServer
from specdistill.serving import draft_flags
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.engine import Engine
from specdistill.serving.engine_models import EngineModels
from specdistill.serving.engine_table import METHODS, Drafting, Launch, copied_length
from specdistill.serving.gates import check
from specdistill.serving.own_head import require_own_head
from specdistill.serving.served_engine import ServedEngine
from specdistill.serving.server_process import ServerProcess, free_port


def maker_of(rollout_engine: str) -> Any:
    """Returns the constructor of the engine that --rollout-engine names, for `train_draft` and `generate`.

    None for transformers.

    Raises:
        ModelError: The engine is not installed.
    """
    if rollout_engine == "transformers":
        return None
    from specdistill.serving.engines import vllm

    vllm.check_installed()
    return vllm.VllmEngine


@dataclass(frozen=True)
class Opened:
    """One engine, decoding in several ways."""

    plain: Engine
    """The target alone."""
    drafting: Engine
    """With --method."""
    baselines: dict[str, Engine]
    """Method of --engine-baselines -> with that one."""


def drafting_of(config: BenchConfig, method: str, num_draft_tokens: int) -> Drafting:
    """How an engine is asked for one method: --method, or one of --engine-baselines."""
    kind, own = METHODS[method], method == config.drafting.method
    if not own and kind.copies and kind.draft == "none":
        num_draft_tokens = copied_length(num_draft_tokens)
    asked = Drafting(
        method=method,
        draft=config.draft if kind.draft == "model" or own else None,
        num_draft_tokens=num_draft_tokens,
        lookup_max=config.beside.lookup_max,
        lookup_min=config.beside.lookup_min,
        sampled=config.served_rule == "sampled" and not kind.copies,
        draft_kv=config.drafting.draft_kv if kind.draft == "model" or own else None,
    )
    return draft_flags.fitted(config.engine, asked)


def check_methods(config: BenchConfig) -> None:
    """Checks that the engine is there, and what its methods need besides; no model is loaded.

    Raises:
        ModelError: Something is not installed, or the target has no head of its own.
        ConfigError: Flags were given that the engine, as it is installed, does not take.
    """
    methods = [config.drafting.method, *config.engine_baselines]
    if config.engine_kind.launcher:
        module = config.engine_kind.launcher_module()
        module.check_installed(config.servers.engine_args)
        for method in methods:
            module.check_method(method)
    if config.engine_kind.place == "started" and "mtp" in methods and (config.draft is None or methods[0] != "mtp"):
        require_own_head(config.target)


@contextlib.contextmanager
def engines(
    config: BenchConfig, models: EngineModels, num_draft_tokens: int, context: int, progress: Progress
) -> Iterator[Opened]:
    """Opens the engine that `bench --engine` names, with and without drafts; all are closed when the block ends.

    Args:
        config: Engine, models, methods and settings.
        models: Models with weights for transformers, which runs in this process; else shells.
        num_draft_tokens: Draft tokens per verification.
        context: Positions that the longest prompt and its answer need.
        progress: Where starts and waits are announced.

    Raises:
        ModelError: The engine's own conditions refuse the pair.
        ServerError: A server does not start, or is not there.
    """
    methods = config.drafting.method, *config.engine_baselines
    asked = [_in_one_pass(models, drafting_of(config, each, num_draft_tokens)) for each in methods]
    if config.engine_kind.place == "process":
        opened = [_assisted(models, each) for each in (None, *asked)]
        yield Opened(opened[0], opened[1], dict(zip(config.engine_baselines, opened[2:], strict=True)))
        return
    if config.engine_kind.checked and config.draft is not None:
        _refuse_by_gate(config, models, num_draft_tokens, context)
    with contextlib.ExitStack() as stack:

        def serve(drafting: Drafting | None) -> Engine:
            # One after the other: all would measure the memory that is free at the same time.
            engine = _serve(config, models, drafting, context, progress)
            stack.callback(engine.close)
            return engine

        plain, drafting = serve(None), serve(asked[0])
        baselines: dict[str, Engine] = {}
        for each in asked[1:]:
            try:
                baselines[each.method] = serve(each)
            except ServerError as error:
                if not config.drafting.has_default_baselines:
                    raise
                # Nobody asked for it: the bench goes on as it would have without it.
                progress.say(f"BEWARE: measuring without {each.method}: {error}")
        yield Opened(plain, drafting, baselines)


def _in_one_pass(models: EngineModels, drafting: Drafting) -> Drafting:
    parallel = drafting.method == "draft" and models.draft is not None and models.draft.parallel is not None
    return dataclasses.replace(drafting, in_one_pass=parallel)


def _assisted(models: EngineModels, drafting: Drafting | None) -> Engine:
    from specdistill.serving.engines.assisted import AssistedEngine

    if drafting is None:
        return AssistedEngine(models.target, None, 0)
    length = drafting.num_draft_tokens
    if drafting.kind.copies:
        return AssistedEngine(models.target, None, length, lookup_max=drafting.lookup_max)
    return AssistedEngine(models.target, models.draft, length, other_tokenizer=not models.same_tokenizer)


def _refuse_by_gate(config: BenchConfig, models: EngineModels, num_draft_tokens: int, context: int) -> None:
    target, draft = _location(config.target, models.target), config.drafter
    draft = draft if models.draft is None else _location(draft, models.draft)
    asked = CheckConfig.flat(target=target, draft=draft, num_draft_tokens=num_draft_tokens, max_model_len=context)
    refusals = next(verdict.refusals for verdict in check(asked) if verdict.engine == config.engine)
    if refusals:
        raise ModelError(f"{config.engine} refuses the pair: {refusals[0]}")


def _location(name: str, model: LanguageModel) -> str:
    """The name that the engine loads: for a .gguf file the plain checkpoint that it was converted to."""
    if model.adapter is not None:
        raise ModelError(
            f"{name} is an adapter, and this engine is started with whole checkpoints; write them with 'specdistill "
            "export' (--merged-target DIRECTORY for the target), then bench those"
        )
    return str(model.directory or name)


def _serve(
    config: BenchConfig, models: EngineModels, drafting: Drafting | None, context: int, progress: Progress
) -> ServedEngine:
    settings = config.servers
    url = settings.url if drafting else settings.baseline_url
    process = None
    if url is None:
        launch = _launch(config, models, drafting, context)
        url = f"http://127.0.0.1:{launch.port}"
        name = f"{config.engine} {_way(drafting)}"
        progress.say(f"starting {name}")
        module = config.engine_kind.launcher_module()
        process = ServerProcess(name, module.command(launch), module.environment(launch))
        with _stopping(process.stop), _fewer_named(config):
            process.wait_until_ready(url, settings.server_timeout)
    with _stopping(process.stop if process else None):
        server = ModelServer(
            url,
            settings.server_model,
            concurrency=config.timing.batch_size,
            patience=settings.server_patience,
            timeout=settings.server_timeout,
            remedy="start it again, then the same command",
            say=progress.say,
        )
    length, copies = (drafting.num_draft_tokens, drafting.kind.copies) if drafting else (0, False)
    return ServedEngine(server, models.target, length, process, progress.say, copies)


def _way(drafting: Drafting | None) -> str:
    if drafting is None:
        return "without a draft"
    return "with the draft" if drafting.method == "draft" else f"with {drafting.method}"


@contextlib.contextmanager
def _fewer_named(config: BenchConfig) -> Iterator[None]:
    """Names the flag that starts fewer servers, where one does not start beside those of baselines."""
    try:
        yield
    except ServerError as error:
        if not config.engine_baselines:
            raise
        raise ServerError(f"{error}; --engine-baselines none starts fewer servers") from error


@contextlib.contextmanager
def _stopping(stop: Callable[[], None] | None) -> Iterator[None]:
    """Calls `stop` if the block fails or is interrupted."""
    try:
        yield
    except BaseException:
        if stop is not None:
            stop()
        raise


def _launch(config: BenchConfig, models: EngineModels, drafting: Drafting | None, context: int) -> Launch:
    kind, device = config.engine_kind, resolve_device(config.machine.device)
    target = config.target
    if not kind.reads_gguf:
        target = _location(target, models.target)
        if drafting is not None and drafting.draft is not None and models.draft is not None:
            drafting = dataclasses.replace(drafting, draft=_location(drafting.draft, models.draft))
    return Launch(
        target=target,
        drafting=drafting,
        port=free_port(),
        context=context,
        batch_size=config.timing.batch_size,
        device=device,
        dtype=str(resolve_dtype(config.weights.dtype, device)).removeprefix("torch."),
        threads=config.machine.threads,
        servers=2 + len(config.engine_baselines),
        engine_args=config.servers.engine_args,
    )
