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
from specdistill.serving import draft_flags
from specdistill.serving.engine_table import Drafting, Launch


def check_installed(engine_args: str) -> None:
    """Looks for either of the two; needs no model.

    Args:
        engine_args: The user's own flags.

    Raises:
        ModelError: Neither of the two is there.
        ConfigError: Flags were given that only the program takes.
    """
    if shutil.which("llama-server"):
        return
    if importlib.util.find_spec("xllamacpp") is None:
        raise ModelError(
            "--engine llama-cpp needs the program llama-server on the PATH, or the package xllamacpp installed next to "
            "specdistill"
        )
    if engine_args:
        raise ConfigError("--engine-args are flags of llama-server, which is not on the PATH; xllamacpp takes none")


def check_method(method: str) -> None:
    """All methods are built in."""


def command(launch: Launch) -> list[str]:
    """The command line that serves .gguf files; see `llama-server --help`."""
    size, threads = str(launch.context * launch.batch_size), launch.threads
    if not shutil.which("llama-server"):
        settings = {
            "target": launch.target, "port": launch.port, "context": launch.context * launch.batch_size,
            "parallel": launch.batch_size, "threads": threads, "drafting": _drafting(launch.drafting),
        }  # fmt: skip
        return [sys.executable, "-m", __name__, json.dumps(settings)]
    line = ["llama-server", "-m", launch.target, "--host", "127.0.0.1", "--port", str(launch.port)]
    line += ["-c", size, "-np", str(launch.batch_size)]
    if threads:
        line += ["-t", str(threads), "-tb", str(threads)]
    if launch.drafting is not None:
        line += draft_flags.llama_cpp(launch.drafting)
    return line + shlex.split(launch.engine_args)


def environment(launch: Launch) -> dict[str, str]:
    """Variables for the server: none."""
    return {}


def serve(settings: dict[str, Any]) -> None:
    """Runs xllamacpp's server in this process, and never returns.

    Args:
        settings: Settings as `command` writes them.
    """
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = settings["target"]
    params.hostnames, params.port = ["127.0.0.1"], settings["port"]
    params.n_ctx, params.n_parallel, params.warmup = settings["context"], settings["parallel"], False
    if settings["threads"]:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    if settings["drafting"] is not None:
        _draft(xllamacpp, params.speculative, settings["drafting"], settings["threads"])
    server = xllamacpp.Server(params)
    threading.Event().wait()
    del server


def _drafting(drafting: Drafting | None) -> dict[str, Any] | None:
    if drafting is None:
        return None
    return {
        "types": draft_flags.llama_types(drafting),
        "model": drafting.draft,
        "n_max": drafting.num_draft_tokens,
        "kv": drafting.draft_kv,
        "lookups": draft_flags.llama_lookups(drafting),
    }


def _draft(xllamacpp: Any, speculative: Any, asked: dict[str, Any], threads: int) -> None:
    """Does what `draft_flags.llama_cpp` asks of the program."""
    names = ["COMMON_SPECULATIVE_TYPE_" + name.upper().replace("-", "_") for name in asked["types"]]
    speculative.types = [getattr(xllamacpp.common_speculative_type, name) for name in names]
    draft = speculative.draft
    draft.n_max = asked["n_max"]
    if asked["model"] is not None:
        draft.mparams.path = asked["model"]
    if asked["kv"] is not None:
        draft.cache_type_k = draft.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{asked['kv'].upper()}")
    if threads:
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = threads
    for name, values in asked["lookups"].items():
        for setting, value in values.items():
            setattr(getattr(speculative, name.replace("-", "_")), setting, value)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
