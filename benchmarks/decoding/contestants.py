"""Ways to decode one pair of models: plain, ours, transformers' assisted generation, FlashSpec."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
from flashspec.engine import HuggingFaceDrafter, TargetModel

from benchmarks.support.special_drafts import with_head_of
from specdistill.decoding import Generation, Sampling, SpeculativeDecoder, generate_plain
from specdistill.models import ModelPair, load_pair
from specdistill.models.packed import pack


class Decoded(NamedTuple):
    """Cost and length of one call."""

    tokens: int
    """Tokens that came out."""
    model_seconds: float
    """Seconds inside the two models where they are known, else 0."""


Decode = Callable[[list[list[int]], int], Decoded]
"""(prompts, seed) -> the answers' cost and length."""


@dataclass(frozen=True)
class Setup:
    """Models of one of our contestants."""

    trimmed: bool
    """Drafts from the trimmed head, which peers don't know."""
    packed: bool
    """Weights laid out for small passes (`--pack float32`)."""


OURS = {
    "specdistill": Setup(trimmed=False, packed=False),
    "specdistill-packed": Setup(trimmed=False, packed=True),
    "specdistill-trimmed": Setup(trimmed=True, packed=True),
}
PEERS = ("transformers", "flashspec")


class Contestants:
    """Every way to decode one pair.

    Args:
        target: Name of the target.
        draft: Name of the draft.
        max_new_tokens: Length of an answer.
    """

    def __init__(self, target: str, draft: str, max_new_tokens: int) -> None:
        self.max_new_tokens = max_new_tokens
        self._pairs = {name: _load(target, draft, setup) for name, setup in OURS.items()}
        self.target, self.draft = self._pairs["specdistill"].target, self._pairs["specdistill"].draft

    def plain(self, sampling: Sampling) -> Decode:
        """The target without a draft, by our own loop."""

        def decode(prompts, seed):
            seeds = [seed + row for row in range(len(prompts))]
            settings = {"max_new_tokens": self.max_new_tokens, "seeds": seeds}
            return _decoded(generate_plain(self.target, prompts, sampling=sampling, **settings))

        return decode

    def ours(self, name: str, num_draft_tokens: int, sampling: Sampling) -> Decode:
        """One of OURS."""
        pair = self._pairs[name]
        decoder = SpeculativeDecoder(pair.target, pair.draft, num_draft_tokens=num_draft_tokens, sampling=sampling)

        def decode(prompts, seed):
            seeds = [seed + row for row in range(len(prompts))]
            return _decoded(decoder.generate(prompts, max_new_tokens=self.max_new_tokens, seeds=seeds))

        return decode

    def transformers(self, num_draft_tokens: int | None, sampling: Sampling) -> Decode:
        """transformers' assisted generation; its plain generation where `num_draft_tokens` is None."""
        settings = {"max_new_tokens": self.max_new_tokens, "do_sample": not sampling.greedy}
        if not sampling.greedy:
            settings |= {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}

        def decode(prompts, seed):
            tokens = 0
            if num_draft_tokens is not None:
                generation = self.draft.model.generation_config
                assert generation is not None
                generation.num_assistant_tokens = num_draft_tokens
                generation.num_assistant_tokens_schedule = "constant"
                generation.assistant_confidence_threshold = 0.0
                settings["assistant_model"] = self.draft.model
            for row, ids in enumerate(prompts):
                torch.manual_seed(seed + row)
                prompt = torch.tensor([ids])
                output = self.target.model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)  # pyright: ignore
                tokens += output.shape[1] - len(ids)
            return Decoded(tokens, 0.0)

        return decode

    def flashspec(self, num_draft_tokens: int, sampling: Sampling) -> Decode:
        """FlashSpec with the draft model alone."""
        device = torch.device("cpu")
        target = TargetModel(self.target.name, device, torch.float32, model=self.target.model)
        drafter = HuggingFaceDrafter(self.draft.name, device, torch.float32, model=self.draft.model)
        config = FlashSpecConfig(
            device="cpu",
            drafter_strategy="bandit",
            bandit=BanditConfig(n_arms=1),
            sampling=SamplingConfig(temperature=sampling.temperature, gamma=num_draft_tokens),
            compile=False,
        )
        engine = SpeculativeEngine(config, [drafter], target)
        stops = self.target.eos_token_ids

        def decode(prompts, seed):
            torch.manual_seed(seed)
            tokens = 0
            for ids in prompts:
                result = engine.generate(torch.tensor([ids]), max_new_tokens=self.max_new_tokens)
                tokens += len(_until_stop(result.output_ids[0, : result.n_tokens_generated].tolist(), stops))
            return Decoded(tokens, 0.0)

        return decode


def _load(target: str, draft: str, setup: Setup) -> ModelPair:
    pair = load_pair(target, draft)
    if not setup.trimmed:
        pair = dataclasses.replace(pair, draft=with_head_of(pair.draft, None))
    if setup.packed:
        pack(pair.target, "float32")
        pack(pair.draft, "float32")
    return pair


def _decoded(answers: Sequence[Generation]) -> Decoded:
    # Rows of a batch share their passes.
    return Decoded(sum(len(answer.token_ids) for answer in answers), answers[0].model_seconds)


def _until_stop(ids: list[int], stops: frozenset[int]) -> list[int]:
    places = [place for place, token in enumerate(ids) if token in stops]
    return ids[: places[0] + 1] if places else ids
