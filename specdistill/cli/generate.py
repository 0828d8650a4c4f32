"""`specdistill generate`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from specdistill.distill.generate_config import GenerateConfig


def command(config: Annotated[GenerateConfig, Parameter(name="*")]) -> None:
    """Let the target write answers to train on."""
    from specdistill.distill.generate import generate
    from specdistill.report.progress import TerminalProgress
    from specdistill.report.terminal import generation_table

    make_engine = None
    if config.rollout_engine == "vllm":
        from specdistill.serving.engines import vllm

        vllm.check_installed()
        make_engine = vllm.VllmEngine
    generation_table(generate(config, TerminalProgress(), make_engine))
