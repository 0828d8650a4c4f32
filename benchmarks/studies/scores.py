"""Alpha of a study's drafts on the target's sampled answers to held-out prompts, what compares them, and their speed.

What was written or scored once is kept beside the drafts: a study goes on for days, and scoring is its slowest reading.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from smollm2 import run

from specdistill.data.batch import Example, Provenance
from specdistill.data.prompts import encode, load_prompts
from specdistill.decoding import Sampling
from specdistill.decoding.answers import write_answers
from specdistill.distill.train_draft import SUMMARY_FILE
from specdistill.evaluation.acceptance import ALPHA_RULES, HiddenCache, alpha_sums, score
from specdistill.evaluation.statistics import paired_difference, ratio
from specdistill.files.atomic import write_text
from specdistill.models import LanguageModel, load_model
from specdistill.progress import Quiet

Columns = dict[str, np.ndarray]
"""Rule -> sum of alpha and number of tokens, [2, prompts]."""


class Scores:
    """Scores drafts on the target's answers to FOLDER/heldout.jsonl, which it writes once, from a seed."""

    def __init__(self, folder: Path, target: str, max_new_tokens: int) -> None:
        self.target, self.max_new_tokens = load_model(target), max_new_tokens
        self.prompts = load_prompts(str(folder / "heldout.jsonl"))
        self._encoded = [encode(prompt, self.target.tokenizer) for prompt in self.prompts]
        kept = folder / "heldout-answers.json"
        if not kept.exists():
            written = self.write(self.target, Sampling(), 1234)
            write_text(kept, json.dumps([list(each.answer_ids) for each in written]))
        self.answers = [
            Example(prompt.id, tuple(asked), tuple(ids), (int(Provenance.TARGET),) * len(ids))
            for prompt, asked, ids in zip(self.prompts, self._encoded, json.loads(kept.read_text()), strict=True)
        ]
        self._states: HiddenCache = {}

    @property
    def size(self) -> dict[str, int]:
        """What alpha was measured on."""
        return {
            "heldout_prompts": len(self.prompts),
            "heldout_tokens": sum(len(answer.answer_ids) for answer in self.answers),
        }

    def write(self, model: LanguageModel, sampling: Sampling, seed: int) -> list[Example]:
        """A model's answers to the held-out prompts."""
        return write_answers(model, self.prompts, self._encoded, sampling, self.max_new_tokens, seed, Quiet())

    def of(self, directory: Path, trimmed: bool = True) -> Columns:
        """One draft's, with its trimmed head or the whole one."""
        kept = directory / ("alpha.json" if trimmed else "alpha-whole-head.json")
        if not kept.exists():
            draft = load_model(str(directory), "draft")
            if not trimmed:
                draft.kept_ids = None
            found = score(self.target, draft, self.answers, Sampling(), target_cache=self._states)
            columns = {rule: [column.tolist() for column in alpha_sums(found, rule)] for rule in ALPHA_RULES}
            write_text(kept, json.dumps(columns))
            print(f"scored {directory.parent.name}/{directory.name}", flush=True)
        return {rule: np.array(pair) for rule, pair in json.loads(kept.read_text()).items()}


def finished(folder: Path, row: str) -> list[Path]:
    """The runs of a row from seed 0 on, up to the first unfinished one: equal places in two rows are equal seeds."""
    places = (folder / f"{row}-seed{seed}" for seed in count())
    return list(takewhile(lambda place: (place / SUMMARY_FILE).exists(), places))


def alpha(parts: Sequence[Columns]) -> dict:
    """Rule -> mean alpha of several seeds together, with its interval over prompts."""
    return {rule: ratio(*_summed(parts, rule)).to_json() for rule in ALPHA_RULES}


def alpha_by_seed(parts: Sequence[Columns]) -> dict[str, list[float]]:
    return {rule: [alpha([part])[rule]["mean"] for part in parts] for rule in ALPHA_RULES}


def over(parts: Sequence[Columns], base: Sequence[Columns]) -> dict:
    """Rule -> paired difference of as many seeds of each."""
    return {rule: paired_difference(_summed(parts, rule), _summed(base, rule)).to_json() for rule in ALPHA_RULES}


def _summed(parts: Sequence[Columns], rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Over seeds, prompt by prompt: prompts are what is resampled."""
    alphas, tokens = np.sum([part[rule] for part in parts], axis=0)
    return alphas, tokens


def bench_draft(folder: Path, target: str, row: str, pack: str, temperature: int, max_new_tokens: int) -> None:
    """`specdistill bench` of a row's first seed on held-out prompts, where that was trained and not yet benched."""
    draft, out = folder / f"{row}-seed0" / "last", folder / f"bench-{row}-{pack}-{temperature}.json"
    if draft.exists() and not out.exists():
        pair = ["--target", target, "--draft", str(draft), "--pack", pack, "--threads", "1"]
        size = ["--num-prompts", "12", "--latency-prompts", "10", "--max-new-tokens", str(max_new_tokens)]
        asked = ["--prompts", str(folder / "heldout.jsonl"), "--temperature", str(temperature)]
        run("bench", *pair, *size, *asked, "--json", str(out))


def bench_reports(folder: Path) -> dict[str, Any]:
    """What the tables and plots show of each bench report."""
    reports = {each.stem.removeprefix("bench-"): json.loads(each.read_text()) for each in folder.glob("bench-*.json")}
    return {
        name: {
            "num_draft_tokens": report["setup"]["num_draft_tokens"],
            "alpha": report["acceptance"]["alpha"][report["setup"]["predicting_rule"]],
            "mean_acceptance_length": report["acceptance"]["mean_acceptance_length"],
            "predicted_mean_acceptance_length": report["acceptance"]["predicted_mean_acceptance_length"],
            "cost_ratio": report["economics"]["cost_ratio"],
            "verify_cost": report["economics"]["verify_cost"],
            "predicted_speedup": report["economics"]["predicted_speedup"],
            "perfect_draft_speedup": report["economics"]["perfect_draft_speedup"],
            "speedup": report["latency"]["speedup"],
            "verdict": report["economics"]["verdict"],
            "greedy_identical": report["lossless"]["greedy_identical"],
        }
        for name, report in sorted(reports.items())
    }
