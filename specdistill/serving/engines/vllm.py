"""vLLM in this process, as the writer of a model's answers."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from specdistill.decoding import Generation, Sampling
from specdistill.errors import ModelError, first_line
from specdistill.models import LanguageModel


def check_installed() -> None:
    """Looks for vLLM; needs no model.

    Raises:
        ModelError: vLLM is not there.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ModelError("--rollout-engine vllm needs vLLM installed next to specdistill: pip install vllm")


class VllmEngine:
    """Answers by vLLM, with weights that can be replaced while it runs.

    Args:
        model: Its files are loaded by vLLM; the weights of the model itself come by `push`.
        max_length: Tokens of the longest prompt and its answer.
        memory: Share of the GPU's memory that vLLM may take.

    Raises:
        ModelError: vLLM is not installed, or refuses the model.
    """

    def __init__(self, model: LanguageModel, *, max_length: int, memory: float = 0.3) -> None:
        check_installed()
        # In this process: only there do new weights arrive without a copy through a pipe.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        vllm: Any = importlib.import_module("vllm")
        self._model = model
        try:
            self._engine: Any = vllm.LLM(
                model=str(model.directory or model.name),
                dtype=str(model.model.dtype).removeprefix("torch."),
                max_model_len=max_length,
                gpu_memory_utilization=memory,
                # Cached keys and values would be those of the weights before.
                enable_prefix_caching=False,
                enforce_eager=True,
                disable_log_stats=True,
            )
        except Exception as error:
            raise ModelError(f"vLLM can't load {model.name}: {first_line(error)}") from error
        self._allowed = None if model.kept_ids is None else model.kept_ids.tolist()

    def write(
        self, prompts: list[list[int]], sampling: Sampling, max_new_tokens: int, seeds: list[int]
    ) -> list[Generation]:
        """Writes an answer to each prompt with its own seed; with a trimmed head, in its ids only."""
        vllm: Any = importlib.import_module("vllm")
        settings = [
            vllm.SamplingParams(
                temperature=sampling.temperature,
                top_k=sampling.top_k or -1,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                max_tokens=max_new_tokens,
                seed=seed % 2**63,
                stop_token_ids=sorted(self._model.eos_token_ids),
                allowed_token_ids=self._allowed,
                detokenize=False,
            )
            for seed in seeds
        ]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        written = self._engine.generate(asked, settings, use_tqdm=False)
        return [self._generation(list(answer.outputs[0].token_ids)) for answer in written]

    def push(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replaces the weights, named as transformers names them."""
        # vLLM packs weights for its kernels while it loads them; this undoes and redoes that.
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": list(weights)})

    def _generation(self, ids: list[int]) -> Generation:
        ended = bool(ids) and ids[-1] in self._model.eos_token_ids
        return Generation(token_ids=ids, finish_reason="eos" if ended else "length")
