"""Makes an EAGLE-3 head of a target, ready to be trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt
from specdistill.decoding.answers import write_answers
from specdistill.distill.cutting.config import InitDraftConfig
from specdistill.distill.cutting.kept_ids import head_line, most_used_ids
from specdistill.errors import out_of_memory_named
from specdistill.evaluation.summaries import CutSummary
from specdistill.files import atomic
from specdistill.models import LanguageModel
from specdistill.models.checkpoint import CUT_RECORD_FILE, save_draft
from specdistill.models.eagle3 import head_from_target
from specdistill.models.head_draft import as_draft
from specdistill.progress import Progress
from specdistill.settings.sampling import Sampling

HEAD_IDS = 8192
"""Ids that a head can propose where --vocab-keep names no number: the output head is most of what a small one costs."""


def make_head(
    config: InitDraftConfig,
    target: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    output: Path,
    progress: Progress,
) -> CutSummary:
    """Chooses the head's ids on the target's own text, begins it as a copy of parts of the target, and writes it.

    Args:
        config: What to make.
        target: The model to be served.
        prompts, encoded: Prompts that the target answers for the choice.
        output: Directory of the head, which is claimed.
        progress: Where bars and remarks go.
    """
    choice = config.choice
    warn_about_prompts(prompts, encoded, target, progress.say)
    count = min(config.vocab_keep or HEAD_IDS, target.vocab_size)
    with out_of_memory_named("lower --calibration-tokens or shorten the longest prompts"):
        tokens, name = choice.calibration_tokens, "calibration answers"
        answers = write_answers(target, prompts, encoded, Sampling(), tokens, choice.seed, progress, name)
        ids, covered = most_used_ids(target, answers, count, progress)
    head = head_from_target(target, ids, config.own_embedding)
    draft = as_draft(head, target, f"head of {target.name}")
    draft.stored_dtype = target.stored_dtype
    progress.say(
        f"head: reads the states after layers {', '.join(map(str, head.aux_layers))}; "
        f"{draft.num_parameters:,} parameters"
    )
    progress.say(head_line(len(ids), covered, answers, target.vocab_size, f"0 stands for {HEAD_IDS}"))
    save_draft(draft, target, output)
    summary = CutSummary(
        config=config.to_flat(),
        kind=config.kind,
        layers=list(head.aux_layers),
        candidates={},
        parameters=draft.num_parameters,
        target_parameters=target.num_parameters,
        head_size=len(ids),
        head_covers=covered,
    )
    atomic.write_text(output / CUT_RECORD_FILE, json.dumps(summary.to_json(), indent=2) + "\n")
    return summary
