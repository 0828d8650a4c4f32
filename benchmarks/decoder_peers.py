"""Our decoder, transformers' assisted generation and FlashSpec over the plain target, at every draft length.

    python benchmarks/decoder_peers.py --target T --draft DIR           (30 minutes; nothing else may run meanwhile)
    python benchmarks/decoder_peers.py --target T --draft DIR --quick   (some minutes: lengths 1 and 4)

One pair, the same prompts, greedy and at temperature 1, batch 1, float32, one thread. Peers know no trimmed heads and
no packed weights, so `specdistill` does without here too; `specdistill-packed` has its weights laid out for small
passes (`--pack float32`: the same numbers), `specdistill-trimmed` drafts from its trimmed head too, as a user would.
FlashSpec drafts with the model alone (its default also looks in the prompt). Contestants take turns within each prompt
and who begins changes; tokens are counted alike, by what came out. At temperature 1 they answer differently, and who
is lucky gets more tokens a round: the intervals say how much of that there is. The plain target is our own loop;
`transformers-plain` tells how far apart the two are. Batch 8: the same prompts in batches, over one by one.
Engine efficiency is the part of `specdistill`'s time that it spends inside the two models.
Writes benchmarks/results/decoder_peers.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from flashspec import BanditConfig, FlashSpecConfig, SamplingConfig, SpeculativeEngine
from flashspec.engine import HuggingFaceDrafter, TargetModel
from smollm2 import RESULTS

from specdistill.data.prompts import encode_all, load_prompts, spread_over_categories
from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.evaluation.statistics import ratio
from specdistill.models import ModelPair, load_pair
from specdistill.models.packed import pack

TEMPERATURES = ("0", "1")
PROMPTS, NEW = 4, 32
Call = Callable[[list[list[int]], int], tuple[int, float]]
"""(prompts, seed) -> tokens that came out, and seconds inside the models where they are known."""


def total(results) -> tuple[int, float]:
    # Rows of a batch share their passes.
    return sum(len(each.token_ids) for each in results), results[0].model_seconds


class Contestants:
    """Every way to decode one pair.

    Args:
        target, draft: Of the pair, by name.
        new: Tokens per answer.
    """

    def __init__(self, target: str, draft: str, new: int) -> None:
        def models(trimmed: bool, packed: bool) -> ModelPair:
            pair = load_pair(target, draft)
            if not trimmed:
                pair.draft.kept_ids, pair.draft._head = None, None
            if packed:
                pack(pair.target, "float32")
                pack(pair.draft, "float32")
            return pair

        self.new = new
        self.pairs = {
            "specdistill": models(trimmed=False, packed=False),
            "specdistill-packed": models(trimmed=False, packed=True),
            "specdistill-trimmed": models(trimmed=True, packed=True),
        }
        self.target, self.draft = self.pairs["specdistill"].target, self.pairs["specdistill"].draft

    def plain(self, sampling: Sampling) -> Call:
        def call(prompts, seed):
            seeds = [seed + row for row in range(len(prompts))]
            return total(generate_plain(self.target, prompts, sampling=sampling, max_new_tokens=self.new, seeds=seeds))

        return call

    def ours(self, name: str, gamma: int, sampling: Sampling) -> Call:
        pair = self.pairs[name]
        decoder = SpeculativeDecoder(pair.target, pair.draft, num_draft_tokens=gamma, sampling=sampling)

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
            return tokens, 0.0

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
            return tokens, 0.0

        return call


def until_stop(ids: list[int], stops: list[int]) -> list[int]:
    places = [place for place, each in enumerate(ids) if each in stops]
    return ids[: places[0] + 1] if places else ids


def race(calls: dict[str, Call], batches: list[list[list[int]]]) -> dict:
    """Tokens per second of each over `plain`, contestants in turn, with a 95 % interval over batches."""
    per_token: dict[str, list[float]] = {name: [] for name in calls}
    names, inside, wall = list(calls), 0.0, 0.0
    for name in names:
        calls[name](batches[0][:1], 0)
    for number, batch in enumerate(batches):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            start = time.perf_counter()
            tokens, model_seconds = calls[name](batch, 1000 * number)
            seconds = time.perf_counter() - start
            per_token[name].append(seconds / tokens)
            if name == "specdistill":
                inside, wall = inside + model_seconds, wall + seconds
    found = {name: ratio(per_token["plain"], per_token[name]).to_json() for name in names if name != "plain"}
    peers = [name for name in ("transformers", "flashspec") if name in names]

    def over_peers(ours: str) -> dict:
        return {name: ratio(per_token[name], per_token[ours]).to_json() for name in peers}

    return {
        "over_plain": found,
        "over_peers": {name: over_peers(name) for name in names if name.startswith("specdistill")},
        "engine_efficiency": inside / wall,
        "plain_seconds_per_token": sum(per_token["plain"]) / len(batches),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--prompts", default="builtin:heldout")
    parser.add_argument("--what", default="", help="the pair in words, for the table")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--resume", action="store_true", help="measure what the result file lacks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / ("quick_decoder_peers.json" if options.quick else "decoder_peers.json")
    pair = options.what or Path(options.draft).name
    result: dict = {"pair": pair, "prompts": PROMPTS, "max_new_tokens": NEW, "torch": torch.__version__}
    result |= {"cpu": torch.backends.cpu.get_cpu_capability(), "batch_1": {}, "batch_8": {}}
    if options.resume and path.exists():
        known = json.loads(path.read_text())
        if any(known[key] != value for key, value in result.items() if not key.startswith("batch")):
            sys.exit(f"{path} is of another pair, torch or CPU; leave out --resume")
        result = known
    contestants = Contestants(options.target, options.draft, NEW)
    chosen = spread_over_categories(load_prompts(options.prompts), 16)
    prompts = encode_all(chosen, contestants.target.tokenizer, 4096)
    for temperature in TEMPERATURES:
        sampling = Sampling(temperature=float(temperature))
        # Quick looks at fewer lengths, each as in the full run: what it finds is comparable.
        lengths = ((1, 4) if temperature == "0" else (4,)) if options.quick else range(1, 9)
        done = result["batch_1"].setdefault(temperature, {})
        for gamma in (each for each in lengths if str(each) not in done):
            calls = {
                "plain": contestants.plain(sampling),
                **{name: contestants.ours(name, gamma, sampling) for name in contestants.pairs},
                "transformers": contestants.transformers(gamma, sampling),
                "flashspec": contestants.flashspec(gamma, sampling),
            }
            if gamma == lengths[0]:
                calls["transformers-plain"] = contestants.transformers(None, sampling)
            done[str(gamma)] = race(calls, [[ids] for ids in prompts[:PROMPTS]])
            print(temperature, gamma, json.dumps(done[str(gamma)]), flush=True)
            path.write_text(json.dumps(result, indent=1) + "\n")
        if temperature not in result["batch_8"] and not (options.quick and temperature == "1"):
            found = batches(contestants, prompts, sampling)
            result["batch_8"][temperature] = {"over_one_by_one": found["over_plain"]}
            print(temperature, "batch 8", json.dumps(found), flush=True)
            path.write_text(json.dumps(result, indent=1) + "\n")


def batches(contestants: Contestants, prompts: list[list[int]], sampling: Sampling) -> dict:
    """Two batches of eight over the same prompts one by one, by the same decoder."""
    ours = contestants.ours("specdistill", 4, sampling)

    def one_by_one(batch, seed):
        counts = [ours([ids], seed + row) for row, ids in enumerate(batch)]
        return sum(tokens for tokens, _ in counts), 0.0

    calls = {"plain": one_by_one, "specdistill": ours, "plain-8": contestants.plain(sampling)}
    return race(calls, [prompts[:8], prompts[8:]])


if __name__ == "__main__":
    main()
