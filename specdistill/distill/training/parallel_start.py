"""Turns the draft of a run into a parallel one: finds its mask token, and refuses what can't become such a draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specdistill.decoding.expanded_pass import prove_expanded, refuse_parallel_states
from specdistill.distill.training.parallel_settings import ParallelSettings
from specdistill.errors import ConfigError
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.checkpoint import is_fresh_cut
from specdistill.models.load import ModelSource
from specdistill.models.mask_token import choose_mask_token, install_mask_token
from specdistill.models.pair import FoundPair

_SLOW_FOR_MASKS = ("jsd", "tvd")
"""Divergences with which masks learned little in the study's steps."""


@dataclass(frozen=True)
class ParallelStart:
    """How a run's draft guesses several tokens, before it is loaded."""

    drafting: ParallelDrafting
    rows: int
    """Rows of the target's head."""
    token: str
    """Text of the mask token, for people; empty where the tokenizer has none."""
    before: ParallelDrafting | None
    """How the draft guessed before the run; None for an ordinary draft."""

    def install(self, draft: LanguageModel) -> None:
        """Makes a loaded model such a draft, in place."""
        install_mask_token(draft, self.drafting, self.rows)

    def announce(self, say: Callable[[str], None]) -> None:
        """Says which mask token was chosen, and what a row of its own does to engines."""
        mask_id = self.drafting.mask_id
        name = f" {self.token}" if self.token else ""
        say(f"parallel draft: {self.drafting.trained_tokens} tokens per pass, mask token {mask_id}{name}")
        if self.before is not None and self.before.mask_id != mask_id:
            say(
                f"warning: --mask-token {mask_id} is not the mask token that it learned, {self.before.mask_id}: its "
                "later guesses begin anew; leave --mask-token out to go on with them"
            )
        if mask_id >= self.rows:
            say(
                f"warning: no id of the vocabulary is free, so the draft gets row {mask_id} beyond the target's "
                f"{self.rows}: specdistill runs it, and vLLM, which takes drafts of the target's size only, refuses "
                "it; --mask-token names an id that your texts never hold"
            )


def plan_parallel(
    found: FoundPair, settings: ParallelSettings, encoded: Sequence[Sequence[int]], say: Callable[[str], None]
) -> ParallelStart | None:
    """Chooses the mask token. Needs no weights.

    Args:
        found: Configurations and tokenizers of the pair.
        settings: The run's.
        encoded: Prompts, whose ids are no mask tokens.
        say: Where it is said that a parallel draft is trained as an ordinary one.

    Returns:
        None for an ordinary draft.

    Raises:
        ConfigError: The tokenizers differ, or --mask-token is an ordinary token.
        ModelError: The draft has recurrent layers.
    """
    where = f"--{found.draft_role} {found.draft.name}"
    already = ParallelDrafting.of_config(found.draft.config, where)
    if not settings.wanted:
        if already is not None:
            tokens = already.trained_tokens or "K"
            say(
                f"warning: {where} guesses several tokens in one pass, and this run trains its first guess only: the "
                f"others get worse while config.json still names them; add --parallel {tokens} to train them too"
            )
        return None
    refuse_parallel_states(found.draft.config, where)
    if not found.same_tokenizer:
        raise ConfigError(
            f"--parallel needs a draft with the target's tokenizer, and {where} has another; 'specdistill init-draft "
            "--donor' gives it the target's"
        )
    used = {number for ids in encoded for number in ids}
    mask_id = choose_mask_token(found.target, found.draft, settings.mask_token, used)
    drafting = ParallelDrafting(mask_id, settings.parallel)
    return ParallelStart(drafting, found.target.rows, _text(found.target, mask_id), already)


def install_proven(pair: ModelPair, start: ParallelStart, divergence: str, say: Callable[[str], None]) -> None:
    """Proves that the pair's draft can be trained in one pass over many guesses, and makes it a parallel draft.

    Args:
        pair: Target and draft.
        start: How the draft is to guess.
        divergence: What the run minimises.
        say: Where hints go.

    Raises:
        ModelError: Its family can't.
    """
    prove_expanded(pair.draft, f"--draft {pair.draft.name}")
    start.install(pair.draft)
    start.announce(say)
    if is_fresh_cut(pair.draft):
        say(
            f"hint: {pair.draft.name} has not been trained yet, and --parallel learns far sooner from a draft that "
            "guesses one token well: train it without --parallel first, then its output with it"
        )
    if divergence in _SLOW_FOR_MASKS:
        say(
            f"hint: --divergence {divergence} is bounded and gives a guess that is all wrong little gradient, so that "
            "masks learn slowly; --divergence fkl learns them sooner (docs/parallel.md)"
        )


def _text(source: ModelSource, mask_id: int) -> str:
    return str(source.tokenizer.convert_ids_to_tokens(mask_id) or "") if mask_id < source.vocab_size else ""
