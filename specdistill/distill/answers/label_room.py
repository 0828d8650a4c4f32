"""Disk space of labels and of a head's states, said and refused before anything is written."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from specdistill.data import soft_labels
from specdistill.data.features import STATES, StatesOf, feature_bytes, feature_file_bytes, read_states_of
from specdistill.distill.answers.annotate_config import FeatureSettings, LabelSettings
from specdistill.errors import ConfigError, OutputError
from specdistill.models import LanguageModel, families, load
from specdistill.models.content import content_hash
from specdistill.models.eagle3 import default_aux_layers
from specdistill.models.outer_weights import outer_weights
from specdistill.progress import Progress


@dataclass(frozen=True, kw_only=True)
class TextSizes:
    """Counts of the text that is labelled."""

    answers: int
    """Answers, or blocks of raw text."""
    answer_tokens: int
    """Tokens of answers."""
    tokens: int
    """Tokens that the target reads: of prompts and answers."""


@dataclass(frozen=True)
class PlannedFeatures:
    """States that will be stored for a head."""

    states_of: StatesOf
    """Whose they are; the factor on the output head is not known before the weights are."""
    dtype: str
    """float16, bfloat16, float32, or auto, which follows the weights."""

    @property
    def number_bytes(self) -> int:
        """Bytes of a number."""
        return 4 if self.dtype == "float32" else 2


def planned_features(
    settings: FeatureSettings, source: load.ModelSource, shell: LanguageModel
) -> PlannedFeatures | None:
    """States that the settings ask for; None where they ask for none. Needs no weights.

    Args:
        settings: Whether, of which layers, in which format.
        source: The target.
        shell: The target without weights.

    Raises:
        ConfigError: The target has no such layers.
        ModelError: Its layers can't be found.
    """
    if settings.features is None:
        return None
    count = families.num_layers(shell.config)
    families.decoder_layers(shell.base_model, shell.config)
    if settings.feature_layers is None and count < 2:
        raise ConfigError(
            f"--features: --target {source.name} has {count} layer, and a head reads three hidden states, for which 2 "
            "layers are needed; leave --features away"
        )
    layers = settings.feature_layers or default_aux_layers(count)
    if not all(0 <= layer <= count for layer in layers):
        asked = " ".join(map(str, layers))
        raise ConfigError(f"--feature-layers {asked}: --target {source.name} has {count} layers; name 0 to {count}")
    size = shell.head_weight.shape[1]
    return PlannedFeatures(
        StatesOf(shell.label, content_hash(source), tuple(layers), size, count, 1.0), settings.features
    )


def refuse_other_states(features: PlannedFeatures | None, output: Path) -> None:
    """Refuses to go on with states of a target whose files have changed.

    Raises:
        OutputError: They have.
    """
    before = None if features is None else read_states_of(output)
    if features is not None and before is not None and before.content != features.states_of.content:
        raise OutputError(
            f"{output} holds hidden states of --target {features.states_of.target} as it was before its files changed; "
            "choose another --output"
        )


def plan_room(
    settings: LabelSettings,
    features: PlannedFeatures | None,
    output: Path,
    sizes: TextSizes,
    shell: LanguageModel,
    progress: Progress,
) -> float:
    """Says what will be written at most, and stops where the disk has no room for it.

    Args:
        settings: The labels.
        features: The states; None without.
        output: Directory of both.
        sizes: The text.
        shell: The target without weights.
        progress: Where the lines go.

    Returns:
        Bytes of labels per token.

    Raises:
        OutputError: There is no room.
    """
    kept, vocab_size = min(settings.kept, shell.vocab_size), shell.vocab_size
    each = soft_labels.bytes_per_token(kept, vocab_size, settings.precision, with_draws=settings.drawn)
    labels, free = each * sizes.answer_tokens, shutil.disk_usage(output).free
    progress.say(
        f"{sizes.answer_tokens} answer tokens; labels take at most {each:.0f} bytes per token, "
        f"{labels / 1e6:.1f} MB in all"
    )
    if labels > free:
        raise OutputError(
            f"the labels may take {_size(labels)}, but {output} has {_size(free)} free; lower --top-k, or "
            "take --labels sampled"
        )
    if features is None:
        return each
    width, numbers = features.states_of.hidden_size, features.number_bytes
    states = feature_bytes(sizes.tokens, sizes.answer_tokens, width, numbers)
    outer = sum(weight.numel() for weight in outer_weights(shell).values()) * 4
    progress.say(
        f"states for a head take {states / 1e6:.1f} MB: {STATES + 1} of each answer token and {STATES} of each prompt "
        f"token, of {width} numbers of {numbers} bytes; the target's embedding and output head at most "
        f"{outer / 1e6:.1f} MB"
    )
    # What an earlier try has written is on the disk already.
    missing = labels + states + outer - feature_file_bytes(output)
    if missing > free:
        raise OutputError(
            f"labels and states may take {_size(missing)} more, but {output} has {_size(free)} free; label "
            "fewer answers, name an --output with more room, or leave --features away and train the head with the "
            "target in memory"
        )
    return each


def _size(count: float) -> str:
    """Bytes in the unit in which two numbers that differ look different."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
