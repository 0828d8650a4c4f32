"""Adapters that drive real engines; the only place that imports them, and only inside functions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from specdistill.errors import ModelError
from specdistill.models import LanguageModel
from specdistill.models.pair import ModelPair, resolve_device, resolve_dtype
from specdistill.progress import Progress
from specdistill.servers.client import ModelServer
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.engine import Engine
from specdistill.serving.engine_table import Drafting, Launch
from specdistill.serving.gates import check
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


@contextlib.contextmanager
def engines(
    config: BenchConfig, pair: ModelPair, num_draft_tokens: int, context: int, progress: Progress
) -> Iterator[tuple[Engine, Engine]]:
    """Opens the engine that `bench --engine` names, without and with the draft; both are closed when the block ends.

    Args:
        config: Engine, models and settings.
        pair: Models with weights for transformers, which runs in this process; else shells.
        num_draft_tokens: Draft tokens per verification.
        context: Positions that the longest prompt and its answer need.
        progress: Where starts and waits are announced.

    Raises:
        ModelError: The engine's own conditions refuse the pair.
        ServerError: A server does not start, or is not there.
    """
    if config.engine_kind.place == "process":
        from specdistill.serving.engines.assisted import AssistedEngine

        yield (
            AssistedEngine(pair.target, None, 0),
            AssistedEngine(pair.target, pair.draft, num_draft_tokens, other_tokenizer=not pair.same_tokenizer),
        )
        return
    if config.engine_kind.checked:
        _refuse_by_gate(config, pair, num_draft_tokens, context)
    with contextlib.ExitStack() as stack:
        opened: list[Engine] = []
        for length in (0, num_draft_tokens):
            # One after the other: both would measure the memory that is free at the same time.
            engine = _serve(config, pair, length, context, progress)
            stack.callback(engine.close)
            opened.append(engine)
        yield opened[0], opened[1]


def _refuse_by_gate(config: BenchConfig, pair: ModelPair, num_draft_tokens: int, context: int) -> None:
    target, draft = _location(config.target, pair.target), _location(config.draft, pair.draft)
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
    config: BenchConfig, pair: ModelPair, num_draft_tokens: int, context: int, progress: Progress
) -> ServedEngine:
    settings = config.servers
    url = settings.url if num_draft_tokens else settings.baseline_url
    process = None
    if url is None:
        launch = _launch(config, pair, num_draft_tokens, context)
        url = f"http://127.0.0.1:{launch.port}"
        name = f"{config.engine} {'with the draft' if num_draft_tokens else 'without a draft'}"
        progress.say(f"starting {name}")
        module = config.engine_kind.launcher_module()
        process = ServerProcess(name, module.command(launch), module.environment(launch))
        with _stopping(process.stop):
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
    return ServedEngine(server, pair.target, num_draft_tokens, process, progress.say)


@contextlib.contextmanager
def _stopping(stop: Callable[[], None] | None) -> Iterator[None]:
    """Calls `stop` if the block fails or is interrupted."""
    try:
        yield
    except BaseException:
        if stop is not None:
            stop()
        raise


def _launch(config: BenchConfig, pair: ModelPair, num_draft_tokens: int, context: int) -> Launch:
    kind, device = config.engine_kind, resolve_device(config.machine.device)
    target, draft = config.target, config.draft
    if not kind.reads_gguf:
        target, draft = _location(target, pair.target), _location(draft, pair.draft)
    sampled = config.served_rule == "sampled"
    drafting = Drafting(draft=draft, num_draft_tokens=num_draft_tokens, sampled=sampled)
    return Launch(
        target=target,
        drafting=drafting if num_draft_tokens else None,
        port=free_port(),
        context=context,
        batch_size=config.timing.batch_size,
        device=device,
        dtype=str(resolve_dtype(config.weights.dtype, device)).removeprefix("torch."),
        threads=config.machine.threads,
        servers=2,
        engine_args=config.servers.engine_args,
    )
