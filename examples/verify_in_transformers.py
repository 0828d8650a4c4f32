"""A plain transformers loop that lets specdistill_kernels draw and verify: nothing else of specdistill is used.

    python examples/verify_in_transformers.py TARGET DRAFT "Once upon a time" --temperature 0.8

Prints the answer and how many tokens each target call gave. Above temperature 0 the text depends on the seed alone and
follows the target's own distribution; at 0 it is what the target writes by itself.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from specdistill_kernels import noise, sample, verify


@torch.inference_mode()
def generate(
    target: Any,
    draft: Any,
    prompt: list[int],
    *,
    gamma: int = 4,
    tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
) -> tuple[list[int], int]:
    """The answer's ids, and how many target calls they took. Both models must have one vocabulary and one device."""
    device = target.device
    ids, caches, calls = list(prompt), {model: DynamicCache() for model in (target, draft)}, 0
    stop = target.generation_config.eos_token_id
    stops = set(stop if isinstance(stop, list) else [stop])

    def logits_behind(model: Any, sequence: list[int], count: int) -> Tensor:
        """Logits behind the last `count` tokens, [count, vocab]; the cache then holds the whole sequence."""
        cache = caches[model]
        # What was rejected since is cut off, and at least the tokens that are asked for are computed.
        surplus = cache.get_seq_length() - (len(sequence) - count)
        if surplus > 0:
            cache.crop(-surplus)
        new = torch.tensor([sequence[cache.get_seq_length() :]], device=device)
        return model(input_ids=new, past_key_values=cache, use_cache=True).logits[0, -count:]

    def number(value: int) -> Tensor:
        return torch.tensor([value], device=device)

    while len(ids) - len(prompt) < tokens and not stops & set(ids[len(prompt) :]):
        emitted = len(ids) - len(prompt)
        proposed, laws = [], []
        for index in range(gamma):
            row = logits_behind(draft, ids + proposed, 1)
            token = sample(
                row, seeds=number(seed), positions=number(emitted + index), rounds=number(emitted),
                stream=noise.DRAFT, temperature=temperature,
            )  # fmt: skip
            proposed.append(int(token))
            laws.append(row)
        calls += 1
        decided = verify(
            logits_behind(target, ids + proposed, gamma + 1),
            torch.tensor(proposed, device=device),
            number(gamma),
            torch.cat(laws),
            rule="sampled",
            seeds=number(seed),
            positions=number(emitted),
            temperature=temperature,
        )
        ids += [*proposed[: int(decided.num_accepted)], int(decided.next_token)]
    answer = ids[len(prompt) :][:tokens]
    ends = [index for index, token in enumerate(answer) if token in stops]
    return answer[: ends[0] + 1] if ends else answer, calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target")
    parser.add_argument("draft")
    parser.add_argument("prompt")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    target, draft = (AutoModelForCausalLM.from_pretrained(name) for name in (options.target, options.draft))
    prompt = tokenizer(options.prompt)["input_ids"]
    answer, calls = generate(target, draft, prompt, temperature=options.temperature, seed=options.seed)
    print(tokenizer.decode(answer))
    print(f"{len(answer)} tokens in {calls} target calls: {len(answer) / calls:.2f} a call")


if __name__ == "__main__":
    main()
