"""A target whose hidden states are on disk, beside the labels of its answers: what a head is trained on without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from specdistill.data.batch import Batch, Example
from specdistill.data.features import STATES, FeatureStore, StatesOf, TextStates, read_states_of, target_tensors
from specdistill.data.soft_labels import LabelStore
from specdistill.distill.answers.shards import find_shards
from specdistill.distill.target.head_states import with_aux
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.target.place import OpenTarget, Stored, TargetPlace
from specdistill.errors import ConfigError, DataError
from specdistill.models import LanguageModel, families, load
from specdistill.models.content import content_hash
from specdistill.models.eagle3 import is_head
from specdistill.models.eagle3.described import read_layers
from specdistill.models.head_draft import HeadModel
from specdistill.models.outer_weights import OuterWeights
from specdistill.models.pair import FoundPair


class StoredStates(TargetStates):
    """Hidden states of the target as they lie on disk; they are read when they are asked for.

    Args:
        store: The states.
        target: The target with its embedding and output head, whose device and dtype the states get.
    """

    def __init__(self, store: FeatureStore, target: LanguageModel) -> None:
        super().__init__(target)
        self._store = store

    def hidden_states(self, sequences: Sequence[Example]) -> list[Tensor]:
        """[answer, hidden] of each sequence, in order."""
        head = self._target.head_weight
        return [self._read(one).predicting.to(head.device, head.dtype) for one in sequences]

    def with_features(self, batch: Batch, sequences: Sequence[Example]) -> Batch:
        """The batch with what the head reads (`aux`)."""
        dtype = self._target.head_weight.dtype
        return with_aux(batch, [self._read(one).aux.to(dtype) for one in sequences])

    def _read(self, one: Example) -> TextStates:
        if not one.answer_ids:
            # A rank without a text left runs one of weight zero.
            width = self._target.head_weight.shape[1]
            return TextStates(torch.zeros(0, width), torch.zeros(len(one.prompt_ids), STATES * width))
        return self._store.states_of(one)


def check_states(directory: Path, found: FoundPair) -> None:
    """Refuses labels without the states that a head reads, or with those of others. Needs no weights.

    Args:
        directory: --soft-labels.
        found: The target and the head.

    Raises:
        DataError: There are no states, or they are of another target.
        ConfigError: They are of other layers than the head reads.
    """
    states_of, target, draft = read_states_of(directory), found.target, found.draft
    where = f"--soft-labels {directory}"
    if states_of is None:
        raise DataError(
            f"{where} holds no hidden states of the target, and --draft {draft.name} is an EAGLE-3 head, which reads "
            "them; annotate again with --features auto and another --output"
        )
    _check_target(states_of, target, where)
    layers = read_layers(draft.config, families.num_layers(target.config), f"--draft {draft.name}")
    if layers != states_of.layers:
        theirs, own = (" ".join(map(str, one)) for one in (states_of.layers, layers))
        raise ConfigError(
            f"{where} holds the states after layers {theirs}, and --draft {draft.name} reads those after {own}; "
            f"annotate again with --feature-layers {own} and another --output"
        )


def _check_target(states_of: StatesOf, target: load.ModelSource, where: str) -> None:
    own = int(target.config.hidden_size), families.num_layers(target.config)
    here = target.adapter is not None or target.directory is None or any(target.directory.glob("*.safetensors"))
    # A checkpoint without its weights is known by its shape alone; a name says little, as files move.
    same = content_hash(target) == states_of.content if here else True
    if not same or own != (states_of.hidden_size, states_of.num_layers):
        raise DataError(
            f"{where} holds hidden states of {states_of.target} as its files were then, and --target {target.name} is "
            "another model; name that target, or annotate again with this one"
        )


def stored_outer_weights(place: TargetPlace, found: FoundPair) -> OuterWeights | None:
    """The embedding and output head of a head's target, where its states are stored; None for anything else.

    Args:
        place: Where the target is.
        found: The pair, which `check_states` has allowed.
    """
    if not (isinstance(place, Stored) and is_head(found.draft.config)):
        return None
    states_of = read_states_of(place.directory)
    assert states_of is not None, "check_states comes first"
    return OuterWeights(target_tensors(place.directory), states_of.logit_scale)


def with_states(target: OpenTarget, place: TargetPlace, draft: LanguageModel) -> OpenTarget:
    """The opened target with the states of its stored answers, where the draft is a head.

    Raises:
        DataError: States of a shard are missing or damaged.
    """
    if not (isinstance(place, Stored) and isinstance(draft, HeadModel)):
        return target
    return dataclasses.replace(target, states=stored_states(place.directory, target.model))


def stored_states(directory: Path, target: LanguageModel) -> StoredStates:
    """The states that lie with labels.

    Args:
        directory: --soft-labels.
        target: With its embedding and output head.
    """
    shards, states_of = find_shards(directory), read_states_of(directory)
    assert states_of is not None, "check_states comes first"
    return StoredStates(FeatureStore(shards, LabelStore(shards).rows(), states_of), target)
