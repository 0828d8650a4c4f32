"""Whether a run's start is good enough to train nothing, and in one sentence what a run with a preset has gained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from specdistill.distill.presets import PresetSettings
from specdistill.distill.processes.ranks import Ranks
from specdistill.distill.training.measures import HeldOutMeasures
from specdistill.errors import DataError
from specdistill.evaluation.statistics import Estimate
from specdistill.files import run_settings
from specdistill.models import LanguageModel

_LOW = 0.3
"""Alpha below which a draft that lost nothing is hardly worth serving."""
_SAME = (
    *("temperature", "top_k", "top_p", "min_p", "max_new_tokens", "chat_template_kwargs", "raw_prompts"),
    *("guidance", "negative_prompt"),
)
"""Settings that decide which answers a draft is judged on, besides its prompts."""


@dataclass(frozen=True)
class MadeFor:
    """The target that a draft was made for, by the files in the draft's directory."""

    target: str
    alpha: float
    """The draft's held-out alpha against it."""


def made_for(draft: str, settings: Mapping[str, object], prompts: str, rule: str) -> MadeFor | None:
    """Reads how good a draft was when it was made.

    Args:
        draft: Name of the draft.
        settings: This run's settings by their flat names.
        prompts: Hash of this run's prompts.
        rule: Acceptance rule.

    Returns:
        None where the directory does not say, or where it was judged on other prompts or answers of another sampling.
    """
    directory = Path(draft)
    summary, hashed = directory / run_settings.SUMMARY_FILE, directory / run_settings.PROMPTS_FILE
    if not (run_settings.exists(directory) and summary.is_file() and hashed.is_file()):
        return None
    try:
        before = run_settings.read(directory)
        alpha, target = json.loads(summary.read_text())["after"][rule], before["target"]
        same_prompts = hashed.read_text().strip() == prompts
    except (DataError, OSError, ValueError, KeyError, TypeError):
        # Files of another version, or damaged ones: the run does without them.
        return None
    same = all(before.get(name) == settings[name] for name in _SAME) and same_prompts
    return MadeFor(str(target), float(alpha)) if same and isinstance(alpha, int | float) else None


def reason_to_leave(start: Estimate, label: str, settings: PresetSettings, made: MadeFor | None) -> str | None:
    """Why nothing needs to be trained; None where something does, or where there are too few prompts to tell.

    Args:
        start: The draft's held-out alpha before training.
        label: Its name, for people.
        settings: What is good enough.
        made: The draft against the target that it was made for, on the same prompts.
    """
    if not start.has_interval:
        return None
    now = f"nothing to adapt: held-out {label} is {_shown(start)} before any training"
    if settings.enough_alpha and start.low >= settings.enough_alpha:
        return f"{now}, which is enough (--enough-alpha {settings.enough_alpha:g}; 0 trains all the same)"
    if settings.tolerated_drop and made is not None and start.mean >= made.alpha - settings.tolerated_drop:
        return (
            f"{now}, and was {made.alpha:.3f} on the same prompts against {made.target}, which the draft was made for "
            f"(--tolerated-drop {settings.tolerated_drop:g}; 0 trains all the same)"
            + (
                ""
                if start.mean >= _LOW
                else "; so low an alpha was so before: bench says whether such a draft pays at all"
            )
        )
    return None


def judge_start(
    measures: HeldOutMeasures,
    draft: LanguageModel,
    settings: PresetSettings,
    made: Callable[[str], MadeFor | None],
    ranks: Ranks,
    say: Callable[[str], None],
) -> str | None:
    """Measures the draft as it is, says how good it is, and decides whether to train at all.

    Args:
        measures: On the held-out prompts. Only alpha can be good enough.
        draft: Before training.
        settings: What is good enough.
        made: The draft against the target that it was made for, by the name of the rule.
        ranks: The main one's decision counts for all.
        say: Where the line goes.

    Returns:
        Why nothing needs to be trained, or None.
    """
    watched = measures.watched
    if not (settings.judges_start and measures.is_alpha(watched)):
        return None
    start, before = measures.watched_estimate(measures.score(draft)), made(watched)
    reason = ranks.gather([reason_to_leave(start, measures.label(watched), settings, before)])[0]
    say(reason or start_line(start, measures.label(watched), before))
    return reason


def start_line(start: Estimate, label: str, made: MadeFor | None) -> str:
    """How good the start is, for the log of a run that trains."""
    line = f"held-out {label} before training: {_shown(start)}"
    if not start.has_interval:
        line += "; these decide nothing, so it is trained"
    if made is None:
        return f"{line}; not comparable with a target before (no record of one, other prompts or other sampling)"
    return f"{line}; against {made.target}, which it was made for, {made.alpha:.3f}"


def gain_sentence(start: Estimate, after: float, gain: Estimate, label: str, steps: int, *, low_is_good: bool) -> str:
    """The plain answer of a run that has ended: whether adapting did anything.

    Args:
        start: The watched number before training.
        after: The kept draft's.
        gain: Paired difference.
        label: The number's name, for people.
        steps: Steps that were done.
        low_is_good: Whether less is better (a loss).
    """
    numbers = f"held-out {label} {_shown(start)} before, {after:.3f} after {steps} steps"
    if not gain.has_interval:
        return f"undecided: {numbers}; an interval needs more --heldout-prompts"
    change = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    if gain.high < 0 if low_is_good else gain.low > 0:
        return f"adapted: {numbers}, paired difference {change}"
    return (
        f"nothing gained: {numbers}, paired difference {change}; serve the draft as it was, or train longer than a "
        "preset does (--steps) where that is not enough"
    )


def _shown(estimate: Estimate) -> str:
    interval = f" [{estimate.low:.3f}, {estimate.high:.3f}]" if estimate.has_interval else " (too few prompts)"
    return f"{estimate.mean:.3f}{interval}"
