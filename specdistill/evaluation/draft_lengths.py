"""Which draft length is timed, and whether decoding with the pair can be timed in this process at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specdistill.decoding import AutoLength, ConfidenceLength
from specdistill.decoding.costs import Costs
from specdistill.decoding.draft_length import DraftLength
from specdistill.decoding.proof import INSTEAD, prove
from specdistill.errors import ConfigError
from specdistill.evaluation.config import AcceptanceSettings, MeasureConfig
from specdistill.evaluation.measured import Models
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models.eagle3 import is_head
from specdistill.models.load import ModelSource
from specdistill.settings.parts import Unasked


def for_drafts(
    config: MeasureConfig, draft: ModelSource, compared: Sequence[ModelSource], say: Callable[[str], None]
) -> MeasureConfig:
    """Covers the lengths that parallel drafts were trained for, and says which of them is asked for more.

    Args:
        config: The settings.
        draft: The draft of --draft.
        compared: Those of --compare.
        say: Gets a line for each draft that is asked for more tokens than it was trained to guess.

    Returns:
        The settings, with a higher --max-draft-tokens where none was set and a draft was trained for more.

    Raises:
        ConfigError: --one-by-one, and none of the drafts is a parallel one.
        ModelError: A draft's config.json contradicts itself.
    """
    named = [("--draft", draft), *(("--compare", source) for source in compared)]
    found = {f"{flag} {source.name}": _parallel(source, flag) for flag, source in named}
    drafts = {name: parallel for name, parallel in found.items() if parallel is not None}
    if config.acceptance.one_by_one and not drafts:
        # A head is none either, and no ordinary draft.
        none = "the draft is none: it names" if len(found) == 1 else "none of the drafts is one: each names"
        raise ConfigError(
            f"--one-by-one is for parallel drafts, and {none} no mask token (pard_token) in config.json, and takes a "
            "pass for each token anyway; leave it out"
        )
    if not config.in_one_pass:
        return config
    for name, parallel in drafts.items():
        beyond = parallel.beyond(config.num_draft_tokens, "this bench")
        if beyond is not None:
            say(f"BEWARE: {name}: {beyond}")
    longest = config.acceptance.max_draft_tokens
    trained = max((parallel.trained_tokens or 0 for parallel in drafts.values()), default=0)
    if trained <= longest or not isinstance(longest, Unasked):
        return config
    return config.replace(max_draft_tokens=Unasked(trained))


def _parallel(source: ModelSource, flag: str) -> ParallelDrafting | None:
    return None if is_head(source.config) else ParallelDrafting.of_config(source.config, f"{flag} {source.name}")


def steps_are_real(models: Models) -> bool:
    """Whether both models decode with a cache here: steps that read everything again cost what no server pays."""
    return all(prove(model).decodes for model in (models.target, models.draft))


def why_untimed(models: Models) -> str | None:
    """Why the pair can't decode speculatively in this process; None where it can."""
    for model in (models.target, models.draft):
        proof = prove(model)
        if not proof.rolls_back:
            return f"{model.name} can't drop tokens again here: {proof.reason}; {INSTEAD}"
    return None


def of_settings(settings: AcceptanceSettings, asked: int, chosen: int, costs: Costs) -> int | DraftLength:
    """The decoder's draft length: fixed, or decided before each round.

    Args:
        settings: Say which.
        asked: Length that the user set; 0 for none.
        chosen: Length where it is fixed.
        costs: Costs that an automatic length weighs.
    """
    if settings.draft_length == "auto":
        return AutoLength(costs, settings.max_draft_tokens)
    if settings.draft_length == "confidence":
        return ConfidenceLength(asked or settings.max_draft_tokens, settings.confidence)
    return chosen
