"""Adapters that drive real engines; the only place that imports them, and only inside functions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from specdistill.errors import ModelError
from specdistill.evaluation.config import BenchConfig
from specdistill.models.pair import ModelPair, resolve_device, resolve_dtype
from specdistill.progress import Progress
from specdistill.servers.client import ModelServer
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.engine import Engine
from specdistill.serving.gates import check
from specdistill.serving.served_engine import ServedEngine
from specdistill.serving.server_process import ServerProcess, free_port


def maker_of(rollout_engine: str) -> Any:
    """What makes the engine that --rollout-engine names, for `train_draft` and `generate`; None for transformers.

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
    """The engine that `bench --engine` names, without and with the draft; both are gone when the block ends.

    Args:
        config: Which, and how.
        pair: With weights for transformers, which runs in this process; else shells.
        num_draft_tokens: gamma.
        context: Positions that the longest prompt and its answer need.
        progress: Where starts and waits are announced.

    Raises:
        ModelError: The engine's own gate refuses the pair.
        ServerError: A server does not start, or is not there.
    """
    if config.engine == "transformers":
        from specdistill.serving.engines.assisted import AssistedEngine

        yield AssistedEngine(pair.target, None, 0), AssistedEngine(pair.target, pair.draft, num_draft_tokens)
        return
    if config.engine == "vllm":
        _gate(config, pair, num_draft_tokens, context)
    with contextlib.ExitStack() as stack:
        both: list[Engine] = []
        for length in (0, num_draft_tokens):
            # One after the other: both would measure the memory that is free at the same time.
            engine = _serve(config, pair, length, context, progress, stack)
            stack.callback(engine.close)
            both.append(engine)
        yield both[0], both[1]


def _gate(config: BenchConfig, pair: ModelPair, num_draft_tokens: int, context: int) -> None:
    target, draft = _place(config.target, pair.target), _place(config.draft, pair.draft)
    asked = CheckConfig.flat(target=target, draft=draft, num_draft_tokens=num_draft_tokens, max_model_len=context)
    verdicts = check(asked)
    refusals = next(verdict.refusals for verdict in verdicts if verdict.engine == config.engine)
    if refusals:
        raise ModelError(f"{config.engine} refuses the pair: {refusals[0]}")


def _place(name: str, model: Any) -> str:
    """What the engine loads: of a .gguf the plain checkpoint that it was converted to."""
    return str(model.directory or name)


def _serve(
    config: BenchConfig,
    pair: ModelPair,
    num_draft_tokens: int,
    context: int,
    progress: Progress,
    stack: contextlib.ExitStack,
) -> ServedEngine:
    url = config.url if num_draft_tokens else config.baseline_url
    process = None
    if url is None:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        who = f"{config.engine} {'with the draft' if num_draft_tokens else 'without a draft'}"
        progress.say(f"starting {who}")
        process = _start(who, config, pair, num_draft_tokens, context, port)
        with _stopping(process.stop):
            process.wait_until_ready(url, config.server_timeout)
    with _stopping(process.stop if process else None):
        server = ModelServer(
            url,
            config.server_model,
            concurrency=config.batch_size,
            patience=config.server_patience,
            timeout=config.server_timeout,
            remedy="start it again, then the same command",
            say=progress.say,
        )
    return ServedEngine(server, pair.target, num_draft_tokens, process, progress.say)


@contextlib.contextmanager
def _stopping(stop: Callable[[], None] | None) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if stop is not None:
            stop()
        raise


def _start(
    who: str, config: BenchConfig, pair: ModelPair, num_draft_tokens: int, context: int, port: int
) -> ServerProcess:
    device = resolve_device(config.device)
    if config.engine == "vllm":
        from specdistill.serving.engines import vllm_server

        line = vllm_server.command(
            _place(config.target, pair.target),
            _place(config.draft, pair.draft) if num_draft_tokens else None,
            port=port,
            num_draft_tokens=num_draft_tokens,
            rule=config.served_rule,
            dtype=str(resolve_dtype(config.dtype, device)).removeprefix("torch."),
            max_model_len=context,
            batch_size=config.batch_size,
            device=device,
            more=config.engine_args,
        )
        return ServerProcess(who, line, vllm_server.environment(device))
    from specdistill.serving.engines import llama_server

    line = llama_server.command(
        config.target,
        config.draft if num_draft_tokens else None,
        port=port,
        num_draft_tokens=num_draft_tokens,
        context=context,
        batch_size=config.batch_size,
        threads=config.threads,
        more=config.engine_args,
    )
    return ServerProcess(who, line)
