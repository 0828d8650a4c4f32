"""Sample answers token by token in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from specdistill.evaluation.report_samples import Sample
from specdistill.report.wording_samples import rejected_text, sample_counts, shown


def print_samples(console: Console, samples: Sequence[Sample]) -> None:
    """Prints answers: accepted draft tokens green, rejected ones red and struck through before what replaced them.

    Where there is no colour (a pipe, NO_COLOR), accepted ones stand in brackets and rejected ones between ~~.
    """
    coloured = console.color_system is not None and not console.no_color
    marks = "green: draft tokens that were accepted; red: rejected" if coloured else "[accepted] ~~rejected~~"
    console.print(
        f"sample answers, token by token ({marks}, before the target's own token that replaced it)", soft_wrap=True
    )
    for sample in samples:
        console.print(Text(f"{shown(sample.prompt_id)} ({sample_counts(sample)})", style="bold"), soft_wrap=True)
        console.print(Text(shown(sample.prompt), style="dim"), soft_wrap=True)
        console.print(_coloured(sample) if coloured else Text(_plain(sample)), soft_wrap=True)
        console.print()


def _coloured(sample: Sample) -> Text:
    text = Text()
    for token in sample.tokens:
        rejected = rejected_text(token)
        if rejected is not None:
            text.append(rejected, "red strike")
        text.append(shown(token.text), "green" if token.by == "draft" else "")
    return text


def _plain(sample: Sample) -> str:
    """Accepted tokens in a row share their brackets."""
    text, inside = "", False
    for token in sample.tokens:
        accepted = token.by == "draft"
        if accepted != inside:
            text += "[" if accepted else "]"
            inside = accepted
        rejected = rejected_text(token)
        text += ("" if rejected is None else f"~~{rejected}~~") + shown(token.text)
    return text + ("]" if inside else "")
