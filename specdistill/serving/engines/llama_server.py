"""llama.cpp's server, with and without a draft: the program `llama-server`, or the package xllamacpp that holds it.

python -m specdistill.serving.engines.llama_server SETTINGS.JSON     serves by xllamacpp until it is stopped
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
import shutil
import sys
import threading
from typing import Any

from specdistill.errors import ConfigError, ModelError


def check_installed(more: str) -> None:
    """Needs no model.

    Args:
        more: The user's own flags.

    Raises:
        ModelError: Neither of the two is there.
        ConfigError: Flags were given that only the program takes.
    """
    if shutil.which("llama-server"):
        return
    if importlib.util.find_spec("xllamacpp") is None:
        raise ModelError(
            "--engine llama-cpp needs the program llama-server on the PATH, or the package xllamacpp beside specdistill"
        )
    if more:
        raise ConfigError("--engine-args are flags of llama-server, which is not on the PATH; xllamacpp takes none")


def command(
    target: str,
    draft: str | None,
    *,
    port: int,
    num_draft_tokens: int,
    context: int,
    batch_size: int,
    threads: int,
    more: str,
) -> list[str]:
    """The command line; see `llama-server --help`.

    Args:
        target, draft: .gguf files; None serves the target alone.
        port: On the loopback address.
        num_draft_tokens: gamma.
        context: Positions of one request.
        batch_size: Requests at a time.
        threads: 0 leaves its default.
        more: The user's own flags, which win.
    """
    if not shutil.which("llama-server"):
        settings = {
            "target": target, "draft": draft, "port": port, "num_draft_tokens": num_draft_tokens,
            "context": context * batch_size, "parallel": batch_size, "threads": threads,
        }  # fmt: skip
        return [sys.executable, "-m", __name__, json.dumps(settings)]
    line = ["llama-server", "-m", target, "--host", "127.0.0.1", "--port", str(port)]
    line += ["-c", str(context * batch_size), "-np", str(batch_size)]
    if threads:
        line += ["-t", str(threads), "-tb", str(threads)]
    if draft is not None:
        line += ["-md", draft, "--spec-type", "draft-simple", "--spec-draft-n-max", str(num_draft_tokens)]
    return line + shlex.split(more)


def serve(settings: dict[str, Any]) -> None:
    """Runs xllamacpp's server in this process, and never returns.

    Args:
        settings: As `command` writes them.
    """
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = settings["target"]
    params.hostnames, params.port = ["127.0.0.1"], settings["port"]
    params.n_ctx, params.n_parallel, params.warmup = settings["context"], settings["parallel"], False
    if settings["threads"]:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    if settings["draft"] is not None:
        kind = xllamacpp.common_speculative_type
        params.speculative.types = [kind.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
        draft = params.speculative.draft
        draft.mparams.path, draft.n_max = settings["draft"], settings["num_draft_tokens"]
        if settings["threads"]:
            draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = settings["threads"]
    server = xllamacpp.Server(params)
    threading.Event().wait()
    del server


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
