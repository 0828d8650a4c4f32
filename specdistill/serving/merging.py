"""The target that an exported draft is served beside: as it is, or with its adapter merged."""

from __future__ import annotations

from pathlib import Path

import torch

from specdistill.errors import ConfigError
from specdistill.models import adapters, load
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.export_config import ExportConfig


def check_merging(config: ExportConfig, target: load.ModelSource) -> None:
    """Refuses --merged-target for a target that is no adapter, or that can't be loaded.

    Raises:
        ConfigError: The target is no adapter.
        ModelError: Its weights can't be loaded.
    """
    if config.files.merged_target is None:
        return
    if target.adapter is None:
        raise ConfigError(f"--merged-target merges an adapter, and --target {config.target} is none; leave it away")
    load.check_loadable(target, "target")


def served_pair(config: ExportConfig, target: load.ModelSource, changes: list[str]) -> CheckConfig:
    """The pair to check, with the merged target written where it was asked for.

    Args:
        config: The export.
        target: Its target.
        changes: Gets a line for what was written.
    """
    served = CheckConfig.flat(target=target.location, draft=config.output)
    if config.files.merged_target is not None:
        changes.append(f"the target with its adapter merged: {config.files.merged_target}")
        return served.replace(target=_write_merged(target, config.files.merged_target))
    if target.adapter is not None:
        # Its location holds no weights.
        return served.replace(target=config.target, target_base=config.adapter.target_base)
    return served


def _write_merged(source: load.ModelSource, directory: str) -> str:
    """Writes the merged target in the number format of its base, in which servers would load it."""
    dtype = getattr(source.config, "dtype", None)
    model = load.load_model(source, dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32)
    adapters.save_merged(model, Path(directory))
    return directory
