"""The kinds of drafts beside each other in `plan`: trained on the same text, for the same target in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from specdistill.data.features import STATES, feature_bytes
from specdistill.data.soft_labels import bytes_per_token
from specdistill.evaluation.plan_config import PlanConfig
from specdistill.evaluation.plan_sizes import (
    ACTIVATIONS,
    ADAMW_BYTES,
    KEPT_STATES,
    Accelerator,
    TokenCounts,
    largest_micro_batch,
    loss_bytes,
    state_bytes,
    target_pass_bytes,
    target_shape,
    token_counts,
    working_bytes,
)

_PARALLEL_TOKENS = 8
"""Tokens that the parallel draft guesses where --parallel names no number and answers are long enough."""
STORED_NUMBER = 2
"""Bytes of a number of a stored state, as 'specdistill annotate --features auto' writes them."""


@dataclass(frozen=True, kw_only=True)
class PlannedKind:
    """Training one kind of draft."""

    parameters: float
    """Parameters that are trained."""
    labels: float
    """Accelerator hours in which the target reads the text."""
    trains: float
    """Accelerator hours in which the draft is trained."""
    memory: float
    """Bytes of one accelerator while training, with the whole target beside the draft."""
    fits: bool
    """Whether that leaves 8 % of the accelerator free."""
    largest_micro_batch: int | None
    """Largest --micro-batch-size, up to the planned one, with which it fits; null where none does."""
    state_bytes_per_token: float
    """Bytes of the target's hidden states that training reads for each token of an answer; a head's prompts have some
    too."""
    states: float
    """Bytes of those of all text."""
    states_are_kept: bool
    """Whether training keeps them in memory; beyond 2 GiB the target reads the text again in each epoch."""
    disk: float
    """Bytes on disk that training without the target in memory reads: stored labels, and for a head its states too, of
    16 bits a number, with the target's embedding and output head."""


@dataclass(frozen=True)
class HeadSize:
    """Parameters of an EAGLE-3 head by the rule of `plan_sizes.shape_of`: an MLP of 8 w^2, and a key for each query."""

    width: float
    ids: int
    """Rows of the output head."""

    @property
    def fused(self) -> float:
        """Parameters that make one feature of three states."""
        return STATES * self.width**2

    @property
    def keys(self) -> float:
        """Parameters of keys and values, which read the feature and the embedding side by side."""
        return 4 * self.width**2

    @property
    def step(self) -> float:
        """Parameters that a step of a round multiplies: the layer and the output head."""
        return 15 * self.width**2 + self.ids * self.width

    @property
    def parameters(self) -> float:
        """All that is trained."""
        return self.fused + self.step

    @property
    def attention_heads(self) -> float:
        """Heads of 128, and of 64 in narrow models."""
        return self.width / (128 if self.width >= 2048 else 64)


def planned_kinds(config: PlanConfig, gpu: Accelerator) -> dict[str, PlannedKind]:
    """Estimates an independent draft of --draft-params, a parallel one of the same size, and a head of the target.

    Args:
        config: The plan; whether labels are stored is left out of account. Answers of one token have no parallel draft.
        gpu: The accelerator.
    """
    ordinary = {"labels": "live", "parallel": 0, "parallel_keep": 0.5, "parallel_keep_least": 0.1}
    guessed = parallel_tokens(config)
    kinds = {"independent": _model(config.replace(**ordinary), gpu)}
    if guessed > 1:
        kinds["parallel"] = _model(config.replace(labels="live", parallel=guessed), gpu)
    return {**kinds, "head": _head(config, gpu)}


def parallel_tokens(config: PlanConfig) -> int:
    """Tokens that the parallel draft beside the others guesses in one pass; 1 where answers are too short for one."""
    return config.training.parallel or min(_PARALLEL_TOKENS, config.text.answer_tokens)


def _model(config: PlanConfig, gpu: Accelerator) -> PlannedKind:
    written = config.text.prompts * config.text.rollouts_per_prompt * config.text.answer_tokens
    one = state_bytes(config)
    tokens = token_counts(config.text, config.training.rows_per_token, labelled_once=written * one <= KEPT_STATES)
    return _planned(
        config,
        gpu,
        tokens,
        parameters=config.draft,
        flops=6 * config.draft * tokens.trained_with_prompts,
        working=working_bytes,
        state_bytes_per_token=one,
        states=written * one,
        disk=label_bytes(config),
    )


def _head(config: PlanConfig, gpu: Accelerator) -> PlannedKind:
    size, one = head_size(config), state_bytes(config)
    # The text is the target's: a head writes none alone.
    text = replace(config.text, on_policy_fraction=0.0)
    answers, steps = text.prompts * text.rollouts_per_prompt, config.head.unroll
    texts = answers * (text.prompt_tokens + text.answer_tokens), answers * text.answer_tokens
    states = feature_bytes(*texts, size.width, config.models.weight_bytes)
    outer = 2 * config.models.vocab_size * size.width * config.models.weight_bytes
    tokens = token_counts(text, labelled_once=states <= KEPT_STATES)
    # The text's keys serve the first step of all rounds.
    multiplied = tokens.trained_with_prompts * (size.fused + size.keys) + tokens.trained * (
        steps * size.step - size.keys
    )
    return _planned(
        config,
        gpu,
        tokens,
        parameters=size.parameters,
        flops=6 * multiplied,
        working=head_working_bytes,
        state_bytes_per_token=(STATES + 1) * one,
        states=states,
        disk=label_bytes(config) + feature_bytes(*texts, size.width, STORED_NUMBER) + outer,
    )


def label_bytes(config: PlanConfig) -> float:
    """Bytes of stored labels over the target's answers."""
    each = bytes_per_token(config.training.label_top_k, config.models.vocab_size, "float16", with_draws=False)
    return config.text.prompts * config.text.rollouts_per_prompt * config.text.answer_tokens * each


def _planned(
    config: PlanConfig,
    gpu: Accelerator,
    tokens: TokenCounts,
    *,
    flops: float,
    working: Callable[[PlanConfig], float],
    **facts: float,
) -> PlannedKind:
    """Hours and memory from a kind's own counts."""
    kept = facts["states"] <= KEPT_STATES
    target = config.target_resident * config.models.weight_bytes
    held = facts["parameters"] * ADAMW_BYTES + target + (facts["states"] if kept else 0.0)
    memory = held + working(config)
    return PlannedKind(
        labels=gpu.hours(2 * config.target * tokens.labelled, config.machine),
        trains=gpu.hours(flops, config.machine),
        memory=memory,
        fits=gpu.holds(memory),
        largest_micro_batch=largest_micro_batch(config, gpu, lambda smaller: held + working(smaller)),
        states_are_kept=kept,
        **facts,
    )


def head_size(config: PlanConfig) -> HeadSize:
    """Size of a head of the plan's target."""
    return HeadSize(target_shape(config)[1], min(config.head.head_ids, config.models.vocab_size))


def head_working_bytes(config: PlanConfig) -> float:
    """Bytes of a head's micro-batch: the states that it reads, its activations, and the loss or the target's pass."""
    text, steps, answers = config.text, config.head.unroll, config.training.micro_batch_size
    length = text.prompt_tokens + text.answer_tokens
    rows = answers * (text.prompt_tokens + steps * text.answer_tokens)
    guesses, ids = answers * steps * text.answer_tokens, head_size(config).ids
    read = answers * length * (STATES + 1) * state_bytes(config)
    # What the target says of the head's ids, in float32: of each token once, and beside each guess of it.
    wanted = 4 * ids * (answers * text.answer_tokens + guesses)
    return (
        read
        + wanted
        + rows * ACTIVATIONS * state_bytes(config)
        + head_attention_bytes(config, steps)
        + max(target_pass_bytes(config), loss_bytes(config, guesses, ids))
    )


def head_attention_bytes(config: PlanConfig, steps: int) -> float:
    """Bytes of the float32 shares of attention that the steps keep for backward, and of three more while they run."""
    text = config.text
    pairs = text.answer_tokens * (text.prompt_tokens + text.answer_tokens)
    return 4 * config.training.micro_batch_size * head_size(config).attention_heads * pairs * (steps + 3)
