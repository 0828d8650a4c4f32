"""The README's plot: what was predicted for a draft, and what engines then counted and gained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ENGINES = {"vllm": "vLLM", "specdistill": "specdistill", "transformers": "transformers", "llama-cpp": "llama.cpp"}
"""Rows of engines.json that are drawn, and their names."""


@dataclass(frozen=True)
class Palette:
    """Colours of a plot on a light or on a dark page."""

    text: str
    faint: str
    measured: str
    predicted: str


LIGHT = Palette(text="#1f2328", faint="#b8c2cc", measured="#0b6e99", predicted="#c2571a")
DARK = Palette(text="#e6edf3", faint="#59636e", measured="#4db3dc", predicted="#f0955c")


def draw_front(figure: Figure, report: dict[str, Any], palette: Palette) -> None:
    """Tokens per target call, predicted and counted, and the measured speed-up, an engine a row."""
    rows = report["temperatures"]["0.0"]
    names = sorted((name for name in ENGINES if name in rows), key=lambda name: rows[name]["speedup"]["mean"])
    calls, speed = figure.subplots(1, 2, sharey=True)
    for height, name in enumerate(names):
        _draw_calls(calls, height, rows[name], palette)
        _draw_speed(speed, height, rows[name]["speedup"], palette)
    calls.set(
        xlabel="tokens per call of the target", yticks=range(len(names)), xlim=(0, report["num_draft_tokens"] + 1)
    )
    calls.set_yticklabels([ENGINES[name] for name in names])
    calls.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, labelcolor=palette.text)
    speed.set(xlabel="speed-up, measured", xlim=(0, 2.6))
    speed.axvline(1, color=palette.faint, linewidth=1.5, zorder=0)
    for axes in (calls, speed):
        axes.set_facecolor("none")
        axes.tick_params(colors=palette.text, length=0)
        axes.xaxis.label.set_color(palette.text)
        axes.spines[:].set_color(palette.faint)
        axes.spines[["top", "right"]].set_visible(False)
    figure.patch.set_alpha(0)


def _draw_calls(axes: Axes, height: int, row: dict[str, Any], palette: Palette) -> None:
    mean, (low, high) = row["mean_acceptance_length"]["mean"], row["mean_acceptance_length"]["ci95"]
    predicted, first = row["predicted_mean_acceptance_length"], height == 0
    axes.errorbar(
        [mean], [height], xerr=[[mean - low], [high - mean]], fmt="o", color=palette.measured, capsize=3,
        label="counted" if first else None,
    )  # fmt: skip
    axes.vlines(
        predicted, height - 0.38, height + 0.38, color=palette.predicted, linewidth=2.5,
        label="predicted" if first else None,
    )  # fmt: skip


def _draw_speed(axes: Axes, height: int, speedup: dict[str, Any], palette: Palette) -> None:
    mean, (low, high) = speedup["mean"], speedup["ci95"]
    axes.barh(height, mean, height=0.55, color=palette.measured)
    axes.errorbar([mean], [height], xerr=[[mean - low], [high - mean]], fmt="none", color=palette.text, capsize=3)
    axes.annotate(f"{mean:.2f}", (high, height), (6, 0), textcoords="offset points", va="center", color=palette.text)
