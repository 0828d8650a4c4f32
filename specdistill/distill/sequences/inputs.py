"""Everything that the builders of a method's sequences read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specdistill.data.prompts import Prompt
from specdistill.data.texts import TextCounts
from specdistill.decoding import Guidance
from specdistill.distill.answers.engine import RolloutEngine
from specdistill.distill.answers.selection import Judge
from specdistill.distill.methods import Method
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.sequences.settings import SequenceSettings
from specdistill.distill.target.place import OpenTarget
from specdistill.models import ModelPair
from specdistill.progress import Progress
from specdistill.settings.sampling import Sampling

ROLLOUTS_DIRECTORY = "rollouts"


@dataclass(frozen=True, kw_only=True)
class SequenceInputs:
    """Everything that a method needs to find or make its sequences."""

    method: Method
    settings: SequenceSettings
    pair: ModelPair
    target: OpenTarget
    """The pair's target, with whoever labels and answers in its place."""
    prompts: Sequence[Prompt]
    encoded: Sequence[list[int]]
    """The prompts in the target's ids."""
    sampling: Sampling
    batch_size: int
    steps: int
    seed: int
    output: Path
    """Directory of the run; answers of the target are kept in its folder rollouts."""
    progress: Progress
    guidance: Guidance | None = None
    engine: RolloutEngine | None = None
    """Writes the draft's own answers; None where transformers does."""
    push_every: int = 1
    needs_labels: bool = True
    """Whether the loss compares with the target's distributions: cross entropy needs its words only."""
    ranks: Ranks = ALONE
    documents: TextCounts | None = None
    """Documents of --text, where they were counted."""
    rewarded: bool = False
    """Whether a reward judges the draft's own answers."""
    judge: Judge | None = None
    """Chooses among the answers, for best-of-n."""
