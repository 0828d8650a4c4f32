"""Real vLLM in this process, for tests that run in its environment."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def answers_and_proposals(
    monkeypatch: Any,
    target: Path,
    speculative_config: dict[str, Any],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    max_model_len: int,
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Greedy answers, one prompt after the other, and what the drafter proposed in each round of each.

    Args:
        monkeypatch: Undoes the environment and the recording.
        target: Checkpoint folder.
        speculative_config: As vLLM takes it.
        prompts: Token ids.
        max_new_tokens: Tokens of every answer; ends of text are ignored.
        max_model_len: Longest prompt with its answer.
    """
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"))
    module: Any = importlib.import_module("vllm.v1.spec_decode.llm_base_proposer")
    real, rounds = module.SpecDecodeBaseProposer.propose, []

    def propose(self, *arguments, **named):
        found = real(self, *arguments, **named)
        rounds[-1] += found.tolist()
        return found

    monkeypatch.setattr(module.SpecDecodeBaseProposer, "propose", propose)
    vllm: Any = importlib.import_module("vllm")
    # What is proposed while it warms up does not count.
    rounds.append([])
    engine = vllm.LLM(
        model=str(target),
        dtype="float32",
        max_model_len=max_model_len,
        max_num_seqs=1,
        enforce_eager=True,
        enable_prefix_caching=False,
        speculative_config=speculative_config,
    )
    rounds.clear()
    settings = vllm.SamplingParams(temperature=0.0, max_tokens=max_new_tokens, ignore_eos=True, detokenize=False)
    answers = []
    for prompt in prompts:
        rounds.append([])
        (written,) = engine.generate([{"prompt_token_ids": prompt}], settings, use_tqdm=False)
        answers.append(list(written.outputs[0].token_ids))
    return answers, rounds
