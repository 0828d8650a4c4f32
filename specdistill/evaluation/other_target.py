"""A second target beside the first: what its quantisation, or another change of a target, costs the same draft.

Each target answers the same prompts with the same seeds, and the draft is scored on both sets: that is what serving
either target would see. On the first target's answers both targets are compared too: there the text is equal, and only
the distributions differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.decoding.answers import write_answers
from specdistill.errors import SHORTER_TEXTS, IncompatibleModelsError, ModelError, out_of_memory_named
from specdistill.evaluation import acceptance
from specdistill.evaluation.acceptance import PromptAcceptance
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.measured import Models
from specdistill.evaluation.report import TargetComparison
from specdistill.evaluation.report_setup import ModelFacts
from specdistill.evaluation.sections import alphas, alphas_at_1, difference, model_facts
from specdistill.evaluation.statistics import ratio
from specdistill.models import LanguageModel, families, load, stop_ids, vocabulary
from specdistill.models.eagle3 import is_head
from specdistill.models.eagle3.described import read_layers
from specdistill.models.head_draft import HeadModel
from specdistill.models.pair import FoundPair
from specdistill.progress import Progress

ROLE = "compare-target"


def find_other_target(config: MeasureConfig, found: FoundPair, progress: Progress) -> load.ModelSource | None:
    """Finds the target of --compare-target, and checks that it can take the first one's place; reads no weights.

    Raises:
        ModelError: It can't be found or loaded, or ends no answers.
        IncompatibleModelsError: Its tokenizer is another one, or it lacks what the draft, a head, reads.
    """
    if config.second.compare_target is None:
        return None
    source, target = load.find(config.second.compare_target, ROLE, progress.say), found.target
    rows = target.rows, source.rows
    if not vocabulary.same_tokens(target.tokenizer, source.tokenizer, *rows):
        raise IncompatibleModelsError(
            f"--{ROLE} {source.name} has another tokenizer than --target {target.name}; name a target with the same one"
        )
    if is_head(found.draft.config):
        _check_states(source, found)
    stop_ids.check_stop_ids(source.name, ROLE, source.location, source.config, source.tokenizer)
    load.check_loadable(source, ROLE)
    needed = found.max_context
    if source.max_context < needed:
        raise ModelError(
            f"--{ROLE} {source.name} takes {source.max_context} tokens, the pair {needed}; name one of the same length"
        )
    return source


def _check_states(source: load.ModelSource, found: FoundPair) -> None:
    """Refuses a second target without the hidden states that a head reads of the first one."""
    draft, first = found.draft, families.num_layers(found.target.config)
    where, layers = f"--{found.draft_role} {draft.name}", families.num_layers(source.config)
    read = read_layers(draft.config, first, where)
    if max(read) > layers:
        raise IncompatibleModelsError(
            f"--{ROLE} {source.name} has {layers} layers, and the head {where} reads the states after layers "
            f"{', '.join(map(str, read))}; name another form of --target {found.target.name}, which has {first}"
        )
    width, wanted = source.config.hidden_size, found.target.config.hidden_size
    if width != wanted:
        raise IncompatibleModelsError(
            f"--{ROLE} {source.name} has hidden states of {width} numbers, and the head {where} reads {wanted}; name "
            f"another form of --target {found.target.name}"
        )


@dataclass(frozen=True)
class OtherTarget:
    """The draft's scores against the second target."""

    facts: ModelFacts
    own: list[PromptAcceptance]
    """On the answers that the second target wrote."""
    same: list[PromptAcceptance]
    """On the first target's answers."""

    def section(self, records: Sequence[PromptAcceptance], rule: str, num_draft_tokens: int) -> TargetComparison:
        """`compare_target` of the report.

        Args:
            records: The draft's scores against the first target, on its answers.
            rule: The rule of predictions.
            num_draft_tokens: Draft length of predictions.
        """
        return TargetComparison(
            target=self.facts,
            tokens_scored=sum(record.num_tokens for record in self.own),
            alpha=alphas(self.own),
            alpha_at_temperature_1=alphas_at_1(self.own),
            predicted_mean_acceptance_length=ratio(*acceptance.predicted_tau(self.own, rule, num_draft_tokens)),
            difference=difference(records, self.own, rule, num_draft_tokens),
            difference_on_same_answers=difference(records, self.same, rule, num_draft_tokens),
        )


@contextlib.contextmanager
def _embedding_of(other: LanguageModel, models: Models) -> Iterator[None]:
    """Lets a head without an embedding of its own read the second target's, as a server of that target would."""
    if not isinstance(models.draft, HeadModel):
        yield
        return
    models.draft.head.use_embedding(cast(Tensor, other.model.get_input_embeddings().weight))
    try:
        yield
    finally:
        models.draft.head.use_embedding(cast(Tensor, models.target.model.get_input_embeddings().weight))


def score_other_target(
    source: load.ModelSource,
    config: MeasureConfig,
    models: Models,
    prompts: Sequence[Prompt],
    encoded: list[list[int]],
    answers: Sequence[Example],
    progress: Progress,
) -> OtherTarget:
    """Lets the second target answer, and scores the draft against it.

    Args:
        source: Result of `find_other_target`.
        config: Sampling, limits and seeds, which are the first target's.
        models: The first target's device and number format are the second one's too.
        prompts, encoded: The prompts.
        answers: The first target's answers to them.
        progress: Where bars go.
    """
    with out_of_memory_named(SHORTER_TEXTS):
        first = models.target
        other = load.load_model(source, ROLE, device=str(first.device), dtype=first.model.dtype)
        # The two heads may be padded differently; the tokens are the same.
        other.vocab_size = first.vocab_size
        limit, seed, name = config.max_new_tokens, config.timing.seed, f"{ROLE} writes answers"
        written = write_answers(other, prompts, encoded, config.sampling, limit, seed, progress, name)
        scores = []
        for examples, whose in ((written, "its answers"), (answers, "the target's")):
            title = f"scoring {models.draft.name} against {ROLE}, {whose}"
            with _embedding_of(other, models), progress.task(title, len(examples), "answers") as task:
                scores.append(
                    acceptance.score(
                        other,
                        models.draft,
                        examples,
                        config.sampling,
                        depths=config.acceptance.max_draft_tokens,
                        on_sequences=task.advance,
                    )
                )
    return OtherTarget(model_facts(other), *scores)
