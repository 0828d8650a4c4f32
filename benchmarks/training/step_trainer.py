"""Our trainer outside of `train-draft`, one step at a time. The only file here that knows the trainer's parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.support.paths import target_file
from specdistill.data import Example
from specdistill.data.prompts import Prompt, encode, encode_all, load_prompts
from specdistill.decoding import Sampling
from specdistill.distill.config import TrainConfig
from specdistill.distill.sequences.on_policy import OnPolicy
from specdistill.distill.sequences.skd import Skd
from specdistill.distill.sequences.sources import Source
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training.heldout import HeldOut
from specdistill.distill.training.measures import HeldOutMeasures
from specdistill.distill.training.trainer import DraftTrainer
from specdistill.models import ModelPair, load_pair
from specdistill.progress import Quiet

BATCH, MAX_PROMPT_TOKENS, MAX_NEW_TOKENS = 8, 200, 64
SEED = 1


@dataclass(frozen=True)
class StepTrainer:
    """A trainer, where its examples come from, and the target's hidden states of them."""

    trainer: DraftTrainer
    source: Source
    states: TargetStates
    pair: ModelPair

    def write_examples(self, step: int) -> list[Example]:
        """The answers of one step, written now."""
        self.pair.draft.model.train()
        return self.source.next_batch(step)

    def train_on(self, examples: list[Example]) -> int:
        """One optimiser step; the number of tokens that its loss counts."""
        self.pair.draft.model.train()
        return self.trainer.train_step(examples).tokens


def short_prompts(tokenizer) -> list[Prompt]:
    """The HumanEval problems of at most MAX_PROMPT_TOKENS tokens."""
    prompts = load_prompts("humaneval")
    return [prompt for prompt in prompts if len(encode(prompt, tokenizer)) <= MAX_PROMPT_TOKENS]


def load_step_trainer(draft: str, method: Literal["distillspec", "skd"], output: Path) -> StepTrainer:
    """SmolLM2 and a draft, ready for single on-policy (`distillspec`) or SKD steps.

    Args:
        draft: Directory of the draft.
        method: Who writes the answers.
        output: Directory of the run; single steps write nothing there.
    """
    pair = load_pair(str(target_file()), draft, say=lambda text: None)
    prompts = short_prompts(pair.target.tokenizer)
    encoded = encode_all(prompts, pair.target.tokenizer, 1000)
    return make_step_trainer(pair, prompts, encoded, method, output)


def make_step_trainer(
    pair: ModelPair,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    method: Literal["distillspec", "skd"],
    output: Path,
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> StepTrainer:
    """A pair in memory, ready for single steps over `BATCH` prompts.

    Args:
        pair: Target and draft; the draft's weights change.
        prompts, encoded: The prompts, and their token ids.
        method: Who writes the answers.
        output: Directory of the run; single steps write nothing there.
        max_new_tokens: Limit of each answer.
        precision: Precision of the draft's forward pass.
    """
    pair.target.model.requires_grad_(False)
    config = TrainConfig.flat(
        target=pair.target.name,
        draft=pair.draft.name,
        output=str(output),
        method=method,
        divergence="jsd" if method != "skd" else "auto",
        batch_size=BATCH,
        max_new_tokens=max_new_tokens,
        precision=precision,
    )
    if method == "skd":
        source = Skd(
            pair,
            prompts,
            encoded,
            Sampling(),
            top_k=config.sequences.skd_top_k,
            num_draft_tokens=config.sequences.skd_num_draft_tokens,
            max_new_tokens=max_new_tokens,
            batch_size=BATCH,
            seed=SEED,
        )
    else:
        source = OnPolicy(pair.draft, prompts, encoded, Sampling(), max_new_tokens, BATCH, SEED)
    states = TargetStates(pair.target)
    heldout = HeldOut(pair.target, [], Sampling(), "sampled")
    settings = (config.objective, config.optimiser, config.evaluation)
    trainer = DraftTrainer(pair, source, states, HeldOutMeasures(heldout), *settings, output, Quiet())
    return StepTrainer(trainer, source, states, pair)
