"""The README.md of a trained draft: its purpose, how to serve it, and the numbers that were measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specdistill.distill import model_card_texts as texts
from specdistill.evaluation.statistics import Estimate
from specdistill.evaluation.summaries import TrainSummary, measure_label
from specdistill.files.head_record import HeadRecord
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.eagle3 import Eagle3Head
from specdistill.models.head_draft import HeadModel
from specdistill.settings.target_context import ContextSettings


def model_card(settings: Mapping[str, Any], pair: ModelPair, summary: TrainSummary) -> str:
    """Writes the card.

    Args:
        settings: Flat settings of the run, with the divergence that was minimised.
        pair: Target and trained draft.
        summary: Result of the run.

    Returns:
        Markdown with a front matter.
    """
    is_head = isinstance(pair.draft, HeadModel)
    student = not is_head and _is_student(settings, summary)
    template = _template(student, is_head, pair.same_tokenizer)
    is_gguf = settings["target"].endswith(".gguf")
    return template.format(
        **{name: settings[name] for name in ("target", "output", "temperature", "max_new_tokens", "method")},
        # transformers takes no heads.
        library="" if is_head else "library_name: transformers\n",
        loss=settings["divergence"],
        served="TARGET" if is_gguf else settings["target"] if pair.target.adapter is None else "merged-target",
        gguf=texts.GGUF.format(target=settings["target"]) if is_gguf else "",
        caveat="" if summary.caveat is None else f"\nHere {summary.caveat}.\n",
        whose="the target's" if pair.same_tokenizer else "its own",
        parameters=pair.draft.num_parameters,
        share=pair.draft.num_parameters / pair.target.num_parameters,
        trimmed=_proposes(pair.draft),
        context=_context(settings, pair),
        rows=_rows(summary),
        left_out=_left_out(summary, settings["max_new_tokens"]),
        ended=" (interrupted)" if summary.interrupted else "",
        heldout_prompts=summary.heldout_prompts,
        trained_on=f"{summary.training_prompts} prompts from `{settings['prompts']}`"
        if settings["text"] is None
        else f"raw text from `{settings['text']}`",
        kept_step=summary.kept_step,
        why=summary.why,
        watched=summary.watched,
        disagreement="".join(
            f"\nBeware: {each}.\n"
            for each in (_refused(pair, summary), summary.unlearned, summary.forgotten, summary.disagreement)
            if each
        ),
        others=_others(summary, f"{summary.heldout_prompts} held-out prompts" if student else "the same prompts"),
        score=_score(summary),
        preset=_preset(summary),
        steps=summary.steps,
        engine=_engine_settings(settings, summary, is_head),
        guesses=_guesses(summary.tokens_per_pass),
        learning_rate=summary.learning_rate,
    )


def _template(student: bool, is_head: bool, same_tokenizer: bool) -> str:
    """The card's text, with names in braces."""
    measured = texts.ALPHA if same_tokenizer else texts.TEXT
    serving = texts.HEAD_SERVING if is_head else texts.SERVING if same_tokenizer else texts.OTHER_TOKENIZER
    if student:
        serving = serving.replace("## Serving", "### Serving")
    card = texts.STUDENT if student else texts.DRAFT
    named = {"{training}": texts.TRAINING, "{measured}": measured, "{serving}": serving}
    for name, text in named.items():
        card = card.replace(name, text)
    return card


def _proposes(draft: LanguageModel) -> str:
    """Paragraph on a head, or on a trimmed output head; empty for any other draft."""
    if isinstance(draft, HeadModel):
        return _head_paragraph(draft.head)
    if draft.kept_ids is None:
        return ""
    return (
        f"\nspecdistill runs it with an output head of {len(draft.kept_ids):,} ids (`draft_vocabulary.json`); "
        "the weights hold the full head for engines that demand it.\n"
    )


def _preset(summary: TrainSummary) -> str:
    """The preset's line, and what the run has gained; empty without a preset."""
    name = "" if summary.preset == "none" else f"Preset `{summary.preset}`. "
    verdict = "" if summary.verdict is None else f"{summary.verdict[0].upper()}{summary.verdict[1:]}."
    return f"\n{name}{verdict}\n" if name or verdict else ""


def _head_paragraph(head: Eagle3Head) -> str:
    """Paragraph on a head: which states it reads, and what it proposes."""
    layers = ", ".join(map(str, head.aux_layers))
    return (
        f"\nAn EAGLE-3 head: one layer that reads the target's hidden states after layers {layers}, and proposes "
        f"{head.draft_vocab_size:,} ids.\n"
    )


def _engine_settings(settings: Mapping[str, Any], summary: TrainSummary, is_head: bool) -> str:
    """JSON of vLLM's --speculative-config."""
    if is_head:
        # As it was written: where nothing was learned that is the start, with a length of its own.
        tokens = HeadRecord.read(Path(settings["output"])).draft_tokens or 4
        return json.dumps({"method": "eagle3", "model": settings["output"], "num_speculative_tokens": tokens})
    in_parallel = summary.tokens_per_pass > 1 and summary.unlearned is None
    drafting: dict[str, object] = {"method": "draft_model", "model": settings["output"]}
    drafting |= {"num_speculative_tokens": summary.tokens_per_pass if in_parallel else 4}
    return json.dumps(drafting | ({"parallel_drafting": True} if in_parallel else {}))


def _refused(pair: ModelPair, summary: TrainSummary) -> str | None:
    """Says that vLLM takes no draft with a mask token beyond the target's rows; None where its row is among them."""
    parallel, rows = pair.draft.parallel, pair.target.head_weight.shape[0]
    if parallel is None or summary.tokens_per_pass == 1 or parallel.mask_id < rows:
        return None
    return (
        f"vLLM refuses this draft, since its mask token {parallel.mask_id} lies beyond the target's {rows} rows; train "
        "it again with --mask-token, an id that your texts never hold"
    )


def _guesses(tokens: int) -> str:
    """Paragraph on the tokens that a parallel draft guesses per pass; empty for an ordinary one."""
    return (
        f"\nA parallel draft (PARD): it guesses up to {tokens} tokens in one pass behind mask tokens (`pard_token` in "
        "config.json), and serves as an ordinary draft too.\n"
        if tokens > 1
        else ""
    )


def _context(settings: Mapping[str, Any], pair: ModelPair) -> str:
    """Paragraphs on what the target saw, and on what it is."""
    seen = texts.CONTEXT if any(settings[name] for name in ContextSettings.__dataclass_fields__) else ""
    adapter = pair.target.adapter
    return seen if adapter is None else seen + texts.ADAPTER.format(target=settings["target"], base=adapter.base)


def _left_out(summary: TrainSummary, max_new_tokens: int) -> str:
    """Answers that were not trained on as they were given; empty where all were."""
    sentences = []
    if summary.answers_cut:
        sentences.append(f"Answers cut at {max_new_tokens} tokens: {summary.answers_cut}.")
    if summary.answers_empty:
        sentences.append(f"Empty answers or documents, left out: {summary.answers_empty}.")
    return f"\n{' '.join(sentences)}\n" if sentences else ""


def _rows(summary: TrainSummary) -> str:
    return "\n".join(_row(summary, rule, rule) for rule in summary.before if measure_label(rule) is None)


def _is_student(settings: Mapping[str, Any], summary: TrainSummary) -> bool:
    """Whether the model was trained for its own answers, and not to be a draft."""
    itself = settings["draft"] == settings["target"] and summary.tokens_per_pass == 1
    return summary.watched in ("score", "reward") or itself


def _score(summary: TrainSummary) -> str:
    """Sentence on the score or the reward; empty without either."""
    name = next((name for name in (summary.watched, "score", "reward") if name in summary.before), None)
    label = None if name is None else summary.row_label(name)
    if name is None or label is None:
        return ""
    after = f"{summary.after[name]:.3f}" if name in summary.after else "not measured"
    return f"{label[0].upper()}{label[1:]}: **{after}**, before training {summary.before[name]:.3f}. "


def _others(summary: TrainSummary, on: str) -> str:
    """The table of what was measured beside alpha, on these prompts; empty without such numbers."""
    names = [name for name in summary.before if measure_label(name) is not None]
    if not names:
        return ""
    rows = "\n".join(_row(summary, name, summary.row_label(name) or name) for name in names)
    head = f"| on {on} | before | after | paired difference [95 % interval] |\n|---|---|---|---|"
    return f"\n{head}\n{rows}\n"


def _row(summary: TrainSummary, name: str, label: str) -> str:
    if name not in summary.gain:
        # Stopped before the first evaluation: the weights were trained, but nobody measured them.
        return f"| {label} | {summary.before[name]:.3f} | not measured (interrupted) | |"
    gain = summary.gain[name]
    numbers = f"{summary.before[name]:.3f} | {summary.after[name]:.3f} | {gain.mean:+.3f}{_interval(gain)}"
    return f"| {label} | {numbers} |"


def _interval(gain: Estimate) -> str:
    return f" [{gain.low:+.3f}, {gain.high:+.3f}]" if gain.has_interval else " (too few prompts for an interval)"
