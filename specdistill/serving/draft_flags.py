"""Command lines that make each engine draft: `check` and `export` print what `bench` starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from specdistill.serving.engine_table import Drafting

LLAMA_LOOKUPS = {
    "ngram-simple": {"size_n": "lookup_max", "size_m": "num_draft_tokens"},
    "ngram-map-k": {"size_n": "lookup_max", "size_m": "num_draft_tokens"},
    "ngram-map-k4v": {"size_n": "lookup_max", "size_m": "num_draft_tokens"},
    "ngram-mod": {"n_match": "lookup_max", "n_max": "num_draft_tokens"},
}
"""llama.cpp's type of n-gram -> its setting -> ours. It looks for runs of one length; ngram-cache has no settings."""


def fitted(engine: str, drafting: Drafting) -> Drafting:
    """How an engine, by its value of --engine, looks for runs of tokens when it is asked for such and such.

    transformers goes down to one token. llama.cpp looks for one length; its ngram-simple drops proposals that are
    shorter than the run that it looked for (`common_ngram_simple_draft`), so that a longer one would never draft.
    """
    if engine == "transformers":
        return replace(drafting, lookup_min=1)
    if engine != "llama-cpp":
        return drafting
    longest = drafting.lookup_max
    if "ngram-simple" in llama_types(drafting):
        longest = min(longest, drafting.num_draft_tokens)
    return replace(drafting, lookup_max=longest, lookup_min=longest)


def llama_types(drafting: Drafting) -> list[str]:
    """Values of llama.cpp's --spec-type, in the order in which it asks them."""
    return drafting.kind.names["llama-cpp"].split(",")


def llama_lookups(drafting: Drafting) -> dict[str, dict[str, int]]:
    """llama.cpp's type of n-gram -> its settings."""
    found, drafting = {}, fitted("llama-cpp", drafting)
    for name in llama_types(drafting):
        if name in LLAMA_LOOKUPS:
            found[name] = {theirs: getattr(drafting, ours) for theirs, ours in LLAMA_LOOKUPS[name].items()}
        if name == "ngram-mod":
            # Its default throws away proposals of less than 48 tokens.
            found[name]["n_min"] = 1
    return found


def llama_cpp(drafting: Drafting) -> list[str]:
    """Flags of llama-server. Without --spec-type it loads the draft and never asks it."""
    words = [] if drafting.draft is None else ["-md", drafting.draft]
    words += ["--spec-type", ",".join(llama_types(drafting)), "--spec-draft-n-max", str(drafting.num_draft_tokens)]
    if drafting.draft_kv is not None:
        words += ["--cache-type-k-draft", drafting.draft_kv, "--cache-type-v-draft", drafting.draft_kv]
    for name, values in llama_lookups(drafting).items():
        for theirs, value in values.items():
            words += [f"--spec-{name}-{theirs.replace('_', '-')}", str(value)]
    return words


def vllm(drafting: Drafting) -> list[str]:
    """Flags of `vllm serve`."""
    settings: dict[str, str | int | bool] = {"method": drafting.kind.names["vllm"]}
    if drafting.draft is not None:
        settings["model"] = drafting.draft
    settings["num_speculative_tokens"] = drafting.num_draft_tokens
    if drafting.method == "ngram":
        settings |= {"prompt_lookup_max": drafting.lookup_max, "prompt_lookup_min": drafting.lookup_min}
    if drafting.in_one_pass:
        settings["parallel_drafting"] = True
    if drafting.sampled:
        settings["draft_sample_method"] = "probabilistic"
    return ["--speculative-config", json.dumps(settings)]


_SGLANG = {"draft": "STANDALONE", "eagle3": "EAGLE3", "mtp": "NEXTN"}


def sglang(drafting: Drafting) -> list[str]:
    """Flags of `sglang.launch_server`. Its number of draft tokens counts the target's own too."""
    words = ["--speculative-algorithm", _SGLANG[drafting.method]]
    if drafting.draft is not None:
        words += ["--speculative-draft-model-path", drafting.draft]
    return [
        *words,
        "--speculative-num-steps", str(drafting.num_draft_tokens),
        "--speculative-eagle-topk", "1",
        "--speculative-num-draft-tokens", str(drafting.num_draft_tokens + 1),
    ]  # fmt: skip


SERVERS: dict[str, tuple[list[str], Callable[[Drafting], list[str]]]] = {
    "vllm": (["vllm", "serve"], vllm),
    "sglang": (["python", "-m", "sglang.launch_server", "--model-path"], sglang),
    "llama.cpp": (["llama-server", "-m"], llama_cpp),
}
"""Engine, as `check` names it -> words before the target, and flags for the draft."""


def command(engine: str, target: str, drafting: Drafting) -> list[str]:
    """Words of the command line that serves a target and drafts.

    Args:
        engine: A key of `SERVERS`.
        target: Directory, hub id or .gguf file.
        drafting: How it drafts.
    """
    start, flags = SERVERS[engine]
    return [*start, target, *flags(drafting)]
