"""vLLM with our verification in place of its own: one kernel pass from the head's logits to accepted tokens.

    python examples/verify_in_vllm.py TARGET DRAFT "Once upon a time" --temperature 0.8

vLLM has no plug for this, so the class that its (first) model runner makes is replaced before the engine starts. What
it hands over is the shape that `specdistill_kernels.verify` takes: the head's logits behind the last emitted token and
every draft token, int32 ids, and running sums. Temperature, top-k and top-p are applied while the logits are read;
vLLM's own path copies them to float32 for that. Requests that want more (penalties, log-probabilities, masks) take
vLLM's path.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.v1.outputs import SamplerOutput
from vllm.v1.sample.rejection_sampler import PLACEHOLDER_TOKEN_ID, RejectionSampler
from vllm.v1.worker import gpu_model_runner

from specdistill_kernels import verify


class Verifier(RejectionSampler):
    """vLLM's rejection sampler, deciding by our kernels."""

    calls = 0
    """Batches verified by us."""

    def forward(self, metadata: Any, draft_probs: Tensor | None, logits: Tensor, sampling_metadata: Any) -> Any:
        if self.synthetic_mode or not _plain(sampling_metadata):
            return super().forward(metadata, draft_probs, logits, sampling_metadata)
        Verifier.calls += 1
        batch, wanted = len(metadata.num_draft_tokens), sampling_metadata
        rule = "greedy" if wanted.all_greedy else "argmax_draft" if draft_probs is None else "sampled"
        decided = verify(
            logits,
            metadata.draft_token_ids,
            metadata.cu_num_draft_tokens,
            draft_probs=draft_probs,
            rule=rule,
            # A new seed for every step, drawn on the device; requests with a seed of their own would pass that, and
            # the number of tokens they have.
            seeds=torch.randint(2**62, (batch,), device=logits.device),
            positions=torch.zeros(batch, dtype=torch.int64, device=logits.device),
            temperature=0.0 if wanted.temperature is None else wanted.temperature,
            top_k=0 if wanted.top_k is None else wanted.top_k,
            top_p=1.0 if wanted.top_p is None else wanted.top_p,
        )
        return SamplerOutput(sampled_token_ids=_rows(metadata, decided), logprobs_tensors=None)


def _plain(wanted: Any) -> bool:
    return (
        wanted.no_penalties
        and wanted.max_num_logprobs is None
        and wanted.allowed_token_ids_mask is None
        and not wanted.bad_words_token_ids
        and not wanted.generators
    )


def _rows(metadata: Any, decided: Any) -> Tensor:
    """Accepted tokens, then the next one, then placeholders: int32 [batch, longest draft + 1]."""
    kept = decided.num_accepted[:, None]
    # One more, as a step may have drafted nothing at all.
    ids = torch.nn.functional.pad(metadata.draft_token_ids, (0, 1), value=PLACEHOLDER_TOKEN_ID)
    ends = metadata.cu_num_draft_tokens.long()
    first = torch.cat([ends.new_zeros(1), ends[:-1]])
    column = torch.arange(metadata.max_spec_len + 1, device=ids.device)
    drafted = ids[(first[:, None] + column).clamp(max=len(ids) - 1)]
    rows = torch.where(column < kept, drafted, PLACEHOLDER_TOKEN_ID)
    return torch.where(column == kept, decided.next_token[:, None], rows).int()


def engine(target: str, draft: str, num_draft_tokens: int = 4, **more: Any) -> LLM:
    """vLLM that drafts, and verifies by our kernels."""
    gpu_model_runner.RejectionSampler = Verifier  # pyright: ignore[reportPrivateImportUsage]
    speculative = {"method": "draft_model", "model": draft, "num_speculative_tokens": num_draft_tokens}
    return LLM(model=target, speculative_config=speculative, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("draft")
    parser.add_argument("prompt")
    parser.add_argument("--temperature", type=float, default=0.0)
    options = parser.parse_args()
    llm = engine(options.target, options.draft, max_model_len=1024)
    (answer,) = llm.generate([options.prompt], SamplingParams(temperature=options.temperature, max_tokens=64))
    print(answer.outputs[0].text)
    print(f"{Verifier.calls} batches were verified by specdistill_kernels")


if __name__ == "__main__":
    main()
