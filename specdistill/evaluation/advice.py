"""Everything that `specdistill advise` found, as one tree of dataclasses whose field docstrings are the documentation.

Three kinds of numbers stand apart: `counted` on your answers, `timed` on this machine, and `known`, which was measured
for other targets. `options` puts them together. In JSON an `Estimate` is `{"mean": ..., "ci95": [low, high]}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specdistill.evaluation.answer_kind import AnswerKind
from specdistill.evaluation.recommendation import way_name
from specdistill.evaluation.report import Partial
from specdistill.evaluation.report_baselines import Baseline, Overlap
from specdistill.evaluation.report_setup import ModelFacts, Setup
from specdistill.evaluation.statistics import Estimate
from specdistill.evaluation.to_json import to_json

NOTHING, INDEPENDENT, PARALLEL, HEAD = "nothing", "independent", "parallel", "head"
"""Options without a way of copying: the plain target, and kinds of drafts."""
COUNTED, MEASURED, UNKNOWN, CERTAIN = "counted", "measured for another target", "not known", "certain"
APART = "measured for another target, in another study"
"""Grounds of an option's speed-up. `APART` compares with no other draft's: prompts and training of studies differ."""


def option_name(name: str) -> str:
    """An option in words, at the end of a sentence or in a cell."""
    kind, _, layers = name.partition("-")
    if kind == HEAD:
        return "EAGLE-3 head"
    if kind not in (INDEPENDENT, PARALLEL):
        return way_name(name)
    cut = f"cut of {layers} layer" + ("" if layers == "1" else "s")
    return cut if kind == INDEPENDENT else f"parallel {cut}"


@dataclass(frozen=True, kw_only=True)
class CountedAnswers:
    """Counts on the target's answers; nothing in it depends on any draft."""

    source: str
    """Value of --answers."""
    answers: int
    tokens: int
    """Answer tokens."""
    kind: AnswerKind
    """How much choice the answers leave."""
    overlap: Overlap
    """How much of the answers stands in the prompts."""
    ways: dict[str, Baseline]
    """Name -> a way of drafting without a model, at its best draft length."""
    head_size: int | None = None
    """Ids of the trimmed output head that drafts were timed with; absent where the head is whole."""
    head_covers: float | None = None
    """Share of the target's probability on those ids, on these answers: no such draft has a higher alpha."""


@dataclass(frozen=True, kw_only=True)
class TimedKind:
    """A draft of the shape that `init-draft` would make, timed untrained: costs depend on shapes only."""

    kind: str
    """`independent`, `parallel` or `head`."""
    layers: int | None
    """Layers of the target that it has; null for a head, which has one of its own."""
    parameters: int
    cost_ratio: float
    """Time of one draft step in plain target steps."""
    draft_step_seconds: float
    round_cost: dict[int, float]
    """Draft length -> time of drafting and checking in plain target steps, where all is accepted."""
    break_even_tokens: dict[int, float | None]
    """Draft length -> tokens per target call at which it neither gains nor loses; null where even a perfect draft is
    slower than none."""
    break_even_alpha: dict[int, float | None]
    """The same as the alpha of each draft token, if all were accepted alike. That of a parallel draft and of a head
    falls with the token's place in the round, so that their tokens per target call decide."""
    easiest_num_draft_tokens: int | None
    """Draft length that pays from the lowest alpha on; null where none pays."""
    perfect_draft_speedup: float
    """The best speed-up over all lengths if every draft token were accepted."""
    training_tokens_per_second: float | None = None
    """Answer tokens per second of training on text that the target has read; absent where it was not timed."""

    @property
    def falls(self) -> bool:
        """Whether its alpha falls with a token's place in the round."""
        return self.kind in (PARALLEL, HEAD)


@dataclass(frozen=True, kw_only=True)
class TimedHere:
    """Times of this machine, in our decoder."""

    target_step_seconds: float
    """Seconds of a plain target step."""
    verify_cost: dict[int, float]
    """Tokens in one target pass -> its time in plain target steps."""
    context: int
    """Tokens before each timed pass."""
    kinds: dict[str, TimedKind]
    """Name of an option -> its draft."""
    writing_tokens_per_second: float | None = None
    """Answer tokens per second that the target wrote; absent where the answers were given."""
    reading_tokens_per_second: float | None = None
    """Answer tokens per second that the target reads, with their prompts, to be learned from; absent where it was not
    timed."""


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """A draft of this kind that was trained for another target, and what its acceptance would bring here."""

    job: str
    """The job of its target."""
    target: str
    target_parameters: int
    source: str
    """Result file in benchmarks/results, and entry."""
    study: str
    """The result file. Rows of one study compare with each other, rows of two do not."""
    unlike: str | None
    """Why that says nothing of your target; null where target and answers are similar."""
    trained_tokens: int
    """Answer tokens that it was trained on."""
    ordinary_tokens: int
    """Those in which a parallel draft was still the ordinary one that it was made of; 0 for other kinds."""
    minutes: float | None
    """Minutes that so much training takes on this machine, with writing and reading the answers, and for a parallel
    draft with the ordinary training before it; null where training was not timed."""
    in_budget: bool
    """Whether that is within --training-minutes; false where it is not known."""
    alpha: Estimate
    """Its alpha under the served rule, on its own target; of a parallel draft and a head that of a round's first token
    alone, since it falls with the token's place."""
    num_draft_tokens: int
    """Draft length that pays most with it here."""
    tokens_per_call: float
    """At that length."""
    predicted_speedup: float
    """From those tokens and the costs that were timed here."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One thing to serve."""

    name: str
    """`nothing`, a key of `counted.ways`, or a key of `timed.kinds`."""
    ground: str
    """Ground of its speed-up: `counted` on your answers, `measured for another target` in the study that the drafts are
    compared by, `measured for another target, in another study`, `not known`, or `certain` for the plain target."""
    study: str | None
    """Result file that the speed-up rests on; null where none does."""
    predicted_speedup: float | None
    """Null where it is not known."""
    num_draft_tokens: int | None
    """Draft length of that speed-up; of a draft whose acceptance is not known, the one that is easiest to pay with."""
    why: str
    """The numbers behind it, in a sentence or two."""
    elsewhere: list[Elsewhere]
    """Drafts of this kind that were measured for other targets, similar ones first."""
    next: list[str]
    """The commands that make and measure it."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The whole advice."""

    schema: int = 1
    """Version of this schema; keys may be added within a version, never renamed."""
    target: ModelFacts
    """The model being served."""
    setup: Setup
    """Settings and versions."""
    training_minutes: float
    """The budget that trained drafts are compared at."""
    counted: CountedAnswers
    """Counted on the target's answers."""
    timed: TimedHere | None
    """Timed on this machine; null where the steps can't be timed here, or the run ended before."""
    options: list[Option]
    """Everything that could be served: known speed-ups first, the fastest first, those of trained drafts by one study;
    then drafts that only other studies measured; then those whose acceptance is not known, those that need the least
    of it first."""
    not_known: list[str]
    """Gaps of this advice, a sentence each."""
    partial: Partial | None = None
    """Present where the run ended early, or left something out."""

    @property
    def best(self) -> Option:
        """The first of the options."""
        return self.options[0]

    def to_json(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers."""
        return to_json(self)
