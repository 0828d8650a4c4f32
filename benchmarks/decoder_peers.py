"""Our decoder, transformers' assisted generation and FlashSpec over the plain target, at every draft length.

    python benchmarks/decoder_peers.py --target T --draft DIR           (about an hour; nothing else may run meanwhile)
    python benchmarks/decoder_peers.py --target T --draft DIR --quick   (some minutes: two draft lengths, few prompts)

One pair, the same prompts, greedy and at temperature 1, batch 1, float32, one thread. Peers know no trimmed heads, so
the draft proposes from its full head here and, as `specdistill-trimmed`, once more from its own where it has one.
FlashSpec drafts with the model alone (its default also looks in the prompt). Contestants take turns within each prompt
and who begins changes; tokens are counted alike, by what came out. The plain target is our own loop;
`transformers-plain` tells how far apart the two are. Batch 8: the same prompts in batches, over one by one.
Writes benchmarks/results/decoder_peers.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
from flashspec.engine import HuggingFaceDrafter, TargetModel
from smollm2 import RESULTS

from specdistill.data.prompts import encode_all, load_prompts
from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.evaluation.bench import spread_over_categories
from specdistill.evaluation.statistics import ratio
from specdistill.models import LanguageModel, load_pair

Call = Callable[[list[list[int]], int], int]
"""(prompts, seed) -> tokens that came out."""


def total(results) -> int:
    return sum(len(each.token_ids) for each in results)


class Contestants:
    """Every way to decode one pair.

    Args:
        target, draft: The pair.
        new: Tokens per answer.
    """

    def __init__(self, target: LanguageModel, draft: LanguageModel, new: int) -> None:
        self.target, self.trimmed, self.new = target, draft, new
        self.draft = copy.copy(draft)
        self.draft.kept_ids, self.draft._head = None, None

    def plain(self, sampling: Sampling) -> Call:
        def call(prompts, seed):
            seeds = [seed + row for row in range(len(prompts))]
            return total(generate_plain(self.target, prompts, sampling=sampling, max_new_tokens=self.new, seeds=seeds))

        return call

    def ours(self, draft: LanguageModel, gamma: int, sampling: Sampling) -> Call:
        decoder = SpeculativeDecoder(self.target, draft, num_draft_tokens=gamma, sampling=sampling)

        def call(prompts, seed):
            seeds = [seed + row for row in range(len(prompts))]
            return total(decoder.generate(prompts, max_new_tokens=self.new, seeds=seeds))

        return call

    def transformers(self, gamma: int | None, sampling: Sampling) -> Call:
        settings = {"max_new_tokens": self.new, "do_sample": not sampling.greedy}
        if not sampling.greedy:
            settings |= {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}

        def call(prompts, seed):
            tokens = 0
            if gamma is not None:
                generation = self.draft.model.generation_config
                assert generation is not None
                generation.num_assistant_tokens, generation.num_assistant_tokens_schedule = gamma, "constant"
                generation.assistant_confidence_threshold = 0.0
                settings["assistant_model"] = self.draft.model
            for row, ids in enumerate(prompts):
                torch.manual_seed(seed + row)
                asked = torch.tensor([ids])
                output = self.target.model.generate(asked, attention_mask=torch.ones_like(asked), **settings)  # pyright: ignore
                tokens += output.shape[1] - len(ids)
            return tokens

        return call

    def flashspec(self, gamma: int, sampling: Sampling) -> Call:
        device = torch.device("cpu")
        target = TargetModel(self.target.name, device, torch.float32, model=self.target.model)
        drafter = HuggingFaceDrafter(self.draft.name, device, torch.float32, model=self.draft.model)
        config = FlashSpecConfig(
            device="cpu",
            drafter_strategy="bandit",
            bandit=BanditConfig(n_arms=1),
            sampling=SamplingConfig(temperature=sampling.temperature, gamma=gamma),
            compile=False,
        )
        engine = SpeculativeEngine(config, [drafter], target)
        stops = sorted(self.target.eos_token_ids)

        def call(prompts, seed):
            torch.manual_seed(seed)
            tokens = 0
            for ids in prompts:
                result = engine.generate(torch.tensor([ids]), max_new_tokens=self.new)
                tokens += len(until_stop(result.output_ids[0, : result.n_tokens_generated].tolist(), stops))
            return tokens

        return call


def until_stop(ids: list[int], stops: list[int]) -> list[int]:
    places = [place for place, each in enumerate(ids) if each in stops]
    return ids[: places[0] + 1] if places else ids


def race(calls: dict[str, Call], batches: list[list[list[int]]]) -> dict:
    """Tokens per second of each over `plain`, contestants in turn, with a 95 % interval over batches."""
    per_token: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for name in names:
        calls[name](batches[0], 0)
    for number, batch in enumerate(batches):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            start = time.perf_counter()
            tokens = calls[name](batch, 1000 * number)
            per_token[name].append((time.perf_counter() - start) / tokens)
    found = {name: ratio(per_token["plain"], per_token[name]).to_json() for name in names if name != "plain"}
    peers = [name for name in ("transformers", "flashspec") if name in names]
    return {
        "over_plain": found,
        "ours_over": {name: ratio(per_token[name], per_token["specdistill"]).to_json() for name in peers},
        "plain_seconds_per_token": sum(per_token["plain"]) / len(batches),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--prompts", default="builtin:heldout")
    parser.add_argument("--what", default="", help="the pair in words, for the table")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lengths, count, new = ((1, 4), 4, 32) if options.quick else (range(1, 9), 8, 64)
    pair = load_pair(options.target, options.draft)
    prompts = encode_all(
        spread_over_categories(load_prompts(options.prompts), max(count, 16)), pair.target.tokenizer, 4096
    )
    contestants = Contestants(pair.target, pair.draft, new)
    result: dict = {"pair": options.what or Path(options.draft).name, "prompts": count, "max_new_tokens": new}
    result["torch"], result["batch_1"], result["batch_8"] = torch.__version__, {}, {}
    for temperature in (0.0, 1.0):
        sampling = Sampling(temperature=temperature)
        for gamma in lengths:
            calls = {
                "plain": contestants.plain(sampling),
                "specdistill": contestants.ours(contestants.draft, gamma, sampling),
                "transformers": contestants.transformers(gamma, sampling),
                "flashspec": contestants.flashspec(gamma, sampling),
            }
            if pair.draft.kept_ids is not None:
                calls["specdistill-trimmed"] = contestants.ours(pair.draft, gamma, sampling)
            if gamma == lengths[0]:
                calls["transformers-plain"] = contestants.transformers(None, sampling)
            found = race(calls, [[ids] for ids in prompts[:count]])
            result["batch_1"].setdefault(str(temperature), {})[str(gamma)] = found
            print(temperature, gamma, json.dumps(found), flush=True)
        eights = [prompts[start : start + 8] for start in range(0, 8 if options.quick else 16, 8)]
        ours = contestants.ours(contestants.draft, 4, sampling)

        def one_by_one(batch, seed, ours=ours):
            return sum(ours([ids], seed) for ids in batch)

        # What it costs to do without batches: the same decoder, prompt by prompt.
        found = race({"plain": one_by_one, "specdistill": ours, "plain-8": contestants.plain(sampling)}, eights)
        result["batch_8"][str(temperature)] = {"over_one_by_one": found["over_plain"]}
        print(temperature, "batch 8", json.dumps(found), flush=True)
    name = "quick_decoder_peers.json" if options.quick else "decoder_peers.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
