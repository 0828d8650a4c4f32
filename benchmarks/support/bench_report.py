"""Reads the JSON report of `specdistill bench`: the entries that tables and studies use, by name and type."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.support.results import load_result


class StoredEstimate(TypedDict):
    """An estimate as it stands in the report."""

    mean: float
    ci95: list[float]


@dataclass(frozen=True)
class BenchReport:
    """One report. Entries are read when they are asked for: `bench --engine` measures fewer than `bench` does."""

    content: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> BenchReport:
        """A report that `--json` wrote."""
        return cls(json.loads(path.read_text()))

    @classmethod
    def committed(cls, name: str) -> BenchReport:
        """A report in benchmarks/results."""
        return cls(load_result(name))

    @property
    def num_draft_tokens(self) -> int:
        return self.content["setup"]["num_draft_tokens"]

    @property
    def engine_version(self) -> str:
        return self.content["setup"].get("engine_version", "specdistill")

    @property
    def latency_prompts(self) -> int:
        return self.content["setup"]["latency_prompts"]

    @property
    def rule(self) -> str:
        """Rule by which the engine accepted."""
        return self.content["setup"]["rule"]

    @property
    def predicting_rule(self) -> str:
        """Rule whose alpha predicted the acceptance length."""
        return self.content["setup"]["predicting_rule"]

    @property
    def alpha(self) -> dict[str, StoredEstimate]:
        """Rule -> alpha."""
        return self.content["acceptance"]["alpha"]

    @property
    def mean_acceptance_length(self) -> StoredEstimate:
        return self.content["acceptance"]["mean_acceptance_length"]

    @property
    def predicted_mean_acceptance_length(self) -> dict[str, float]:
        """Draft length -> predicted tokens per target call."""
        return self.content["acceptance"]["predicted_mean_acceptance_length"]

    @property
    def measured_over_predicted_minus_1(self) -> float | None:
        return self.content["acceptance"].get("prediction", {}).get("measured_over_predicted_minus_1")

    @property
    def counters(self) -> dict[str, Any] | None:
        """The engine's own counters, where it has some."""
        return self.content["acceptance"].get("counters")

    @property
    def by_position(self) -> list[float]:
        return self.content["acceptance"]["by_position"]

    def latency(self, side: str) -> dict[str, float]:
        """Times of one side, in seconds: `baseline`, the plain target, or `speculative`."""
        return self.content["latency"][side]

    @property
    def speedup(self) -> StoredEstimate:
        return self.content["latency"]["speedup"]

    @property
    def baseline_tokens_per_second(self) -> float:
        return self.content["latency"]["baseline"]["tokens_per_second"]

    @property
    def speculative_tokens_per_second(self) -> float:
        return self.content["latency"]["speculative"]["tokens_per_second"]

    @property
    def cost_ratio(self) -> float:
        return self.content["economics"]["cost_ratio"]

    @property
    def verify_cost(self) -> dict[str, float]:
        """Tokens in a target pass -> cost in plain steps."""
        return self.content["economics"]["verify_cost"]

    @property
    def round_cost(self) -> dict[str, float]:
        """Draft length -> cost of a whole round in plain steps."""
        return self.content["economics"]["round_cost"]

    @property
    def predicted_speedup(self) -> dict[str, float]:
        """Draft length -> predicted speed-up."""
        return self.content["economics"]["predicted_speedup"]

    @property
    def perfect_draft_speedup(self) -> float:
        return self.content["economics"]["perfect_draft_speedup"]

    @property
    def verdict(self) -> str:
        return self.content["economics"]["verdict"]

    @property
    def greedy_identical(self) -> bool:
        return self.content["lossless"]["greedy_identical"]

    @property
    def differences(self) -> list[dict[str, Any]]:
        return self.content["lossless"]["differences"]

    @property
    def baselines(self) -> dict[str, dict[str, Any]]:
        """Way of drafting -> its entries; empty where none was asked for."""
        return self.content.get("baselines") or {}

    @property
    def overlap(self) -> dict[str, StoredEstimate]:
        """How much of the answers stands in their prompts."""
        return self.content["overlap"]

    @property
    def recommendation(self) -> dict[str, Any] | None:
        """The fastest way, where there is one to recommend."""
        return self.content.get("recommendation")

    @property
    def compared_alpha(self) -> dict[str, StoredEstimate]:
        """Rule -> alpha of the draft that `--compare` named."""
        return self.content["compare"]["alpha"]

    @property
    def alpha_over_compared(self) -> dict[str, StoredEstimate]:
        """Rule -> paired difference over the draft that `--compare` named."""
        return self.content["compare"]["difference"]
