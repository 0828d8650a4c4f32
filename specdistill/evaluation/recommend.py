"""Picks what to serve, out of everything that was timed: the draft, a copy of the text, both, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from specdistill.evaluation.baseline_settings import LLAMA_CPP_SIZE
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.latency import TimedRun, speedup_of
from specdistill.evaluation.recommendation import AGAIN, MORE_PROMPTS, NO_TRAINING, Recommendation, way_name
from specdistill.evaluation.statistics import FEWEST_UNITS, Estimate
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.settings.command_line import changed_flags, command, new_prompts

_METHODS = {
    "ngram": ("vllm", "ngram"),
    "suffix": ("vllm", "suffix"),
    "ngram_transformers": ("transformers", "ngram"),
    "ngram_llama_cpp": ("llama-cpp", "ngram"),
}
"""Way -> the engine in which it is measured next, and its --method there."""
_LONGEST = 8
"""Default of --max-draft-tokens."""


@dataclass(frozen=True)
class TimedWay:
    """A way of decoding that was timed, beside the same plain answers as the others."""

    name: str
    """`draft`, or its key in `baselines`."""
    num_draft_tokens: int
    runs: Sequence[TimedRun]

    @property
    def effort(self) -> int:
        """Rank of what serving it takes: nothing, a draft, or a draft and an engine that takes both."""
        return 2 if "+" in self.name else int(self.name == "draft")

    @cached_property
    def speedup(self) -> Estimate:
        """Over the plain target, paired."""
        return speedup_of([run.plain for run in self.runs], [run.speculative for run in self.runs])

    def over(self, other: TimedWay) -> Estimate:
        """Ratio of its tokens per second to another's, paired."""
        return speedup_of([run.speculative for run in other.runs], [run.speculative for run in self.runs])


def same_answers(config: MeasureConfig) -> list[str]:
    """Words of the command line that the next bench must repeat, to measure the same answers."""
    return changed_flags(config, ("prompts", "num_prompts", "max_new_tokens", "temperature", "top_k", "top_p", "min_p"))


def training_flags(config: MeasureConfig, parallel: ParallelDrafting | None = None) -> list[str]:
    """Words of the command line that trains the draft on: prompts of one's own, as here, and the tokens it guesses.

    Args:
        config: The bench's settings.
        parallel: How the draft guesses several tokens in one pass; None for an ordinary one.
    """
    words = new_prompts(config.prompts)
    if parallel is not None and parallel.trained_tokens is not None:
        words += ["--parallel", str(parallel.trained_tokens)]
    return words


def recommend(
    ways: Sequence[TimedWay],
    target: str,
    draft: str | None,
    same: Sequence[str] = (),
    *,
    base: str | None = None,
    verdict: str = "",
    training: Sequence[str] = (),
    untimed: Mapping[str, float] | None = None,
) -> Recommendation | None:
    """Picks the fastest of the ways that pay; over one that takes less, only if its advantage is more than chance.

    Args:
        ways: Everything that was timed.
        target, draft: Names of the models, for the command; no draft where the method has none.
        same: Words of the command that the next one must repeat, such as `--prompts FILE`.
        base: Model that the target is an adapter of, where the user named one; for the command too.
        verdict: On the draft, as in `Economics`.
        training: Words of a command that trains the draft on.
        untimed: Ways that were not timed -> speed-up that is predicted of them.

    Returns:
        None where nothing was timed.
    """
    ways = [way for way in ways if way.runs]
    if not ways:
        return None
    if not all(way.speedup.has_interval for way in ways):
        few = f"an interval needs {FEWEST_UNITS} timed batches or more"
        return Recommendation(serve="undecided", num_draft_tokens=None, why=few, next=MORE_PROMPTS)
    if verdict == "undecided":
        why = f"More was measured than the costs of single steps allow: {_list(ways)}."
        return Recommendation(serve="undecided", num_draft_tokens=None, why=why, next=AGAIN)
    best: TimedWay | None = None
    for way in sorted(ways, key=lambda way: (way.effort, -way.speedup.mean)):
        if way.speedup.low > 1 and (best is None or (way.effort > best.effort and way.over(best).low > 1)):
            best = way
    if best is None:
        return Recommendation(
            serve="nothing",
            num_draft_tokens=None,
            why=f"Nothing that was timed pays: {_list(ways)}.{_predicted(untimed or {})}",
            next=_if_nothing(ways, _target(target, base), draft, verdict == "cannot pay", training),
        )
    others = [way for way in ways if way is not best]
    why = f"It is {_times(best.speedup)} as fast as the plain target."
    beside = _draft_beside(best, others) if best.name != "draft" else ""
    why += f" {beside}" if beside else ""
    rest = [way for way in others if way.name != "draft"]
    why += f" Beside it: {_list(rest)}." if rest else ""
    return Recommendation(
        serve=best.name,
        num_draft_tokens=best.num_draft_tokens,
        why=why,
        next=next_command(best.name, best.num_draft_tokens, _target(target, base), draft, same),
    )


def _draft_beside(best: TimedWay, others: Sequence[TimedWay]) -> str:
    """The draft's part, where something else is served."""
    draft = next((way for way in others if way.name == "draft"), None)
    if draft is None:
        return ""
    if best.effort > draft.effort:
        return f"The draft alone is {_times(draft.speedup)}."
    over = draft.over(best)
    speed = f"alone it is {_times(draft.speedup)}, {_times(over)} of the speed of {way_name(best.name)}"
    return f"The draft adds nothing: {speed}."


def _list(ways: Sequence[TimedWay]) -> str:
    return "; ".join(f"{way_name(way.name)} {_times(way.speedup)}" for way in ways)


def _predicted(untimed: Mapping[str, float]) -> str:
    paying = {name: speed for name, speed in untimed.items() if speed > 1}
    if not paying:
        return ""
    words = "; ".join(f"{way_name(name)} {speed:.2f}x" for name, speed in paying.items())
    return f" Predicted, and not timed: {words}; --baselines all times them."


def _times(value: Estimate) -> str:
    return f"{value.mean:.2f}x [{value.low:.2f}, {value.high:.2f}]"


def _target(name: str, base: str | None) -> tuple[str, ...]:
    """Flags that name the target."""
    return ("--target", name) if base is None else ("--target", name, "--target-base", base)


def _if_nothing(
    ways: Sequence[TimedWay], target: Sequence[str], draft: str | None, hopeless: bool, training: Sequence[str]
) -> str:
    # Of a draft that cannot pay, no measurement is close to call.
    if any(way.speedup.high > 1 for way in ways if not (hopeless and way.name == "draft")):
        return MORE_PROMPTS
    if hopeless:
        return NO_TRAINING
    if draft is None or not any(way.name == "draft" for way in ways):
        return command("init-draft", *target, "--layers", "2", "--output", "draft")
    return command("train-draft", *target, "--draft", draft, *training, "--output", "trained-draft")


def next_command(
    name: str, num_draft_tokens: int, target: Sequence[str], draft: str | None, same: Sequence[str]
) -> str:
    """Measures a way of drafting in an engine that has it; asks which engines load the draft where that is served.

    Args:
        name: `draft`, or a key of `baselines`.
        num_draft_tokens: Its draft length.
        target: Flags that name the target.
        draft: Name of the draft; None for none.
        same: Flags that the measurement must share.
    """
    engine, method = _METHODS.get(name, ("", ""))
    in_llama_cpp = engine == "llama-cpp"
    if not engine or (in_llama_cpp and not target[1].endswith(".gguf")):
        return command("check", *target, *(() if draft is None else ("--draft", draft)))
    length = str(num_draft_tokens)
    longer = ("--max-draft-tokens", length) if num_draft_tokens > _LONGEST else ()
    # The length of runs that was timed here; the engine's bench has vLLM's.
    size = ("--lookup-max", str(LLAMA_CPP_SIZE)) if in_llama_cpp else ()
    words = "--engine", engine, "--method", method, "--num-draft-tokens", length, *longer, *size
    return command("bench", *target, *words, *same)
