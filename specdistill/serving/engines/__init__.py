"""Adapters that drive real engines; the only place that imports them, and only inside functions."""

from __future__ import annotations

from typing import Any


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
