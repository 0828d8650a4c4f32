"""Stored soft labels of a study: which kinds there are, and how they are made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from benchmarks.studies.folders import StudyFolder
from benchmarks.support.paths import target_file
from specdistill import AnnotateConfig, annotate
from specdistill.report.progress import TerminalProgress


class LabelKind(Enum):
    """How the ids of a token's labels are chosen. The value begins the row's name."""

    TOP = "top"
    """The likeliest ids."""
    DRAWN = "drawn"
    """Draws from the target's distribution."""


@dataclass(frozen=True)
class StoredLabels:
    """Labels with so many ids or draws per token."""

    kind: LabelKind
    number: int

    @property
    def name(self) -> str:
        """Row in the result file, and folder of the labels."""
        return f"{self.kind.value}-{self.number}"

    def directory(self, folder: StudyFolder) -> Path:
        """Where the labels are stored."""
        return folder.root / "labels" / self.name


@dataclass(frozen=True)
class LabelSize:
    """Storage that labels take."""

    labels_per_token: float
    bytes_per_token: float
    planned_bytes_per_token: float
    """Estimate that `annotate` made before it began."""


def label_once(folder: StudyFolder, labels: StoredLabels) -> LabelSize:
    """Annotates the target's answers; `annotate` leaves finished labels as they are."""
    if labels.kind is LabelKind.TOP:
        choice = {"labels": "top-k", "top_k": labels.number}
    else:
        choice = {"labels": "sampled", "draws": labels.number}
    output, rollouts = str(labels.directory(folder)), str(folder.answers)
    config = AnnotateConfig.flat(target=str(target_file()), output=output, rollouts=rollouts, threads=1, **choice)
    summary = annotate(config, TerminalProgress())
    return LabelSize(summary.labels_per_token, summary.bytes_per_token, summary.planned_bytes_per_token)
