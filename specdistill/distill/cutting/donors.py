"""A small model of another family as the start of a draft: found and checked, given the target's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specdistill.data.batch import Example
from specdistill.distill.cutting.config import InitDraftConfig
from specdistill.errors import ConfigError
from specdistill.evaluation.summaries import Covered, DonorSummary
from specdistill.models import LanguageModel, families, load, vocabulary
from specdistill.models.transplant import VocabularyMap, check_donor, is_tied, map_vocabulary, transplant
from specdistill.progress import Progress


@dataclass(frozen=True)
class Donor:
    """A donor whose weights are not loaded, and how the target's ids map to its own."""

    source: load.ModelSource
    same_tokenizer: bool
    mapping: VocabularyMap


def find_donor(config: InitDraftConfig, target: load.ModelSource, progress: Progress) -> Donor | None:
    """Finds the donor that a configuration names, and maps its vocabulary.

    Args:
        config: Names the donor and the layers to keep.
        target: The model whose vocabulary it gets.
        progress: Where remarks go.

    Returns:
        None if none is named.

    Raises:
        SpecdistillError: The donor can't be found or read, has the target's tokenizer and nothing to cut, has too few
            layers, or can't take another vocabulary.
    """
    if config.donor is None:
        return None
    source = load.find(config.donor, "donor", progress.say)
    load.check_loadable(source, "donor", plain=True)
    total = families.num_layers(source.config)
    if config.layers is not None and config.layers > total:
        raise ConfigError(f"--layers {config.layers} exceeds the donor's {total} layers; lower it, or leave it out")
    same = vocabulary.same_tokens(target.tokenizer, source.tokenizer, target.rows, source.rows)
    if same and config.layers in (None, total):
        raise ConfigError(
            f"--donor {config.donor} has the target's own tokenizer, so no transplant is needed: "
            f"'specdistill train-draft --draft {config.donor}' takes it as it is; --layers N would keep N of its layers"
        )
    if same:
        progress.say("donor and target have the same tokenizer: no transplant is needed, every row stays the donor's")
    check_donor(source, target, progress.say)
    return Donor(source, same, map_vocabulary(target, source, config.chat.template_arguments))


def give_vocabulary(
    donor: Donor, model: LanguageModel, target: LanguageModel, answers: Sequence[Example], progress: Progress
) -> tuple[LanguageModel, DonorSummary]:
    """Gives a loaded donor the target's vocabulary.

    Args:
        donor: Result of `find_donor`.
        model: Its weights; changed in place.
        target: Source of the vocabulary.
        answers: The target's answers, on which the mapping is judged.
        progress: Where remarks go.

    Returns:
        The donor as a draft of all its layers, and what became of its vocabulary.
    """
    parameters = model.num_parameters
    whole = transplant(model, target, donor.mapping)
    summary = DonorSummary(
        name=donor.source.name,
        parameters=parameters,
        same_tokenizer=donor.same_tokenizer,
        tied=is_tied(whole.model),
        vocabulary=_covered(donor.mapping, range(target.vocab_size)),
        text=_covered(donor.mapping, [token_id for answer in answers for token_id in answer.answer_ids]),
    )
    vocabulary, text = summary.vocabulary, summary.text
    progress.say(
        f"rows of one token of the donor: {vocabulary.whole:.1%} of the target's tokens, {text.whole:.1%} of its own "
        f"text; mean of several: {vocabulary.averaged:.1%}, {text.averaged:.1%}; "
        f"not covered: {vocabulary.mean_of_all:.1%}, {text.mean_of_all:.1%}"
    )
    return whole, summary


def _covered(mapping: VocabularyMap, token_ids: Sequence[int]) -> Covered:
    whole, averaged, mean_of_all = mapping.shares(token_ids)
    return Covered(whole=whole, averaged=averaged, mean_of_all=mean_of_all)
