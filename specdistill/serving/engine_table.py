"""Tables of engines and of the ways in which they draft. Imports no engine and nothing heavy."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """One row of the table."""

    rules: tuple[str, ...]
    """Acceptance rules. It uses the first at temperature 0, and the second above it unless told otherwise."""
    place: Literal["decoder", "process", "started", "running"]
    """decoder: our own `SpeculativeDecoder`. process: a library in this process. started: two servers that bench starts
    and stops. running: two servers that run already."""
    launcher: str = ""
    """Module that starts a server: `check_installed(engine_args)`, `command(launch)` and `environment(launch)`."""
    checked: bool = False
    """Whether `check` has a verdict of this name that bench asks before it starts a server."""
    reads_gguf: bool = False
    """Whether it loads .gguf files only."""
    in_one_pass: bool = False
    """Whether it lets a parallel draft guess all tokens of a round in one pass."""

    def launcher_module(self) -> ModuleType:
        """Imports the module that starts a server."""
        return importlib.import_module(self.launcher)


ENGINES = {
    "specdistill": EngineKind(
        rules=("greedy", "sampled", "argmax_draft", "block", "lenient"), place="decoder", in_one_pass=True
    ),
    "transformers": EngineKind(rules=("greedy", "sampled"), place="process"),
    "vllm": EngineKind(
        rules=("greedy", "argmax_draft", "sampled"),
        place="started",
        launcher="specdistill.serving.engines.vllm_server",
        checked=True,
        in_one_pass=True,
    ),
    "llama-cpp": EngineKind(
        rules=("greedy", "argmax_draft"),
        place="started",
        launcher="specdistill.serving.engines.llama_server",
        reads_gguf=True,
    ),
    "openai-server": EngineKind(rules=("greedy", "argmax_draft", "sampled"), place="running", in_one_pass=True),
}
"""Value of --engine -> what it is."""


@dataclass(frozen=True, kw_only=True)
class MethodKind:
    """One row of the table of methods."""

    meaning: str
    """How it drafts, in a few words."""
    draft: Literal["model", "head", "maybe", "none"]
    """Meaning of --draft. model: a language model, which is scored too. head: a head that was trained for this target.
    maybe: a head, or none where the target holds it. none: nothing."""
    names: Mapping[str, str]
    """Engine -> its own word for the method. The engines that are not listed don't have it."""
    copies: bool = False
    """Whether it proposes any number of tokens at a time, or none, and has no probabilities: it copies text."""
    baseline: str = ""
    """Key of the report's `baselines`; empty where it is no baseline."""

    @property
    def has_no_model(self) -> bool:
        """Whether there is no language model beside the target that could be scored."""
        return self.draft != "model"


_LLAMA_ONLY = {
    name: MethodKind(meaning=meaning, draft="none", names={"llama-cpp": name}, copies=True)
    for name, meaning in {
        "ngram-simple": "llama.cpp's word for ngram",
        "ngram-map-k": "n-grams of the text so far, kept in a map",
        "ngram-map-k4v": "the same with up to 4 continuations each",
        "ngram-mod": "n-grams of all requests, kept by hash",
        "ngram-cache": "n-grams of the text so far with counts",
    }.items()
}
METHODS = {
    "draft": MethodKind(
        meaning="the draft model of --draft",
        draft="model",
        names={
            "specdistill": "draft",
            "transformers": "assistant_model",
            "vllm": "draft_model",
            "llama-cpp": "draft-simple",
            "openai-server": "draft",
        },
    ),
    "ngram": MethodKind(
        meaning="what followed the same tokens earlier in the text (prompt lookup)",
        draft="none",
        names={
            "transformers": "prompt_lookup_num_tokens",
            "vllm": "ngram",
            "llama-cpp": "ngram-simple",
            "openai-server": "ngram",
        },
        copies=True,
        baseline="ngram",
    ),
    "suffix": MethodKind(
        meaning="suffix decoding, by the package arctic-inference",
        draft="none",
        names={"vllm": "suffix", "openai-server": "suffix"},
        copies=True,
        baseline="suffix",
    ),
    "ngram+draft": MethodKind(
        meaning="n-grams first, the draft model where they find nothing",
        draft="model",
        names={"llama-cpp": "ngram-simple,draft-simple"},
        copies=True,
        baseline="ngram+draft",
    ),
    "mtp": MethodKind(
        meaning="the target's own head, or the assistant of --draft",
        draft="maybe",
        names={"vllm": "mtp", "llama-cpp": "draft-mtp", "openai-server": "mtp"},
        baseline="own_head",
    ),
    "eagle3": MethodKind(
        meaning="the EAGLE-3 head of --draft",
        draft="head",
        names={"vllm": "eagle3", "llama-cpp": "draft-eagle3", "openai-server": "eagle3"},
    ),
    "eagle": MethodKind(
        meaning="the EAGLE head of --draft", draft="head", names={"vllm": "eagle", "openai-server": "eagle"}
    ),
    "dspark": MethodKind(
        meaning="the DSpark head of --draft",
        draft="head",
        names={"vllm": "dspark", "llama-cpp": "draft-dspark", "openai-server": "dspark"},
    ),
    "dflash": MethodKind(
        meaning="the DFlash head of --draft",
        draft="head",
        names={"vllm": "dflash", "llama-cpp": "draft-dflash", "openai-server": "dflash"},
    ),
    **_LLAMA_ONLY,
}
"""Value of --method -> what it is."""


def methods_of(engine: str) -> list[str]:
    """Values of --method that an engine takes."""
    return [name for name, kind in METHODS.items() if engine in kind.names]


DEFAULT_LENGTH = 4
"""Draft tokens where the user names none: steps inside an engine can't be timed, so no length can be chosen."""


def copied_length(num_draft_tokens: int) -> int:
    """Length of the copies that are timed beside a draft: they cost no draft step, so a weak draft's is too short."""
    return max(num_draft_tokens, DEFAULT_LENGTH)


@dataclass(frozen=True, kw_only=True)
class Drafting:
    """How an engine is asked to draft."""

    method: str = "draft"
    """A key of `METHODS`."""
    draft: str | None = None
    """Directory, hub id or .gguf file of the draft model or head; None where the method has none."""
    num_draft_tokens: int
    """Draft tokens per verification; at most, where the method copies text."""
    lookup_max: int = 4
    """Longest run of tokens that a copying method looks for."""
    lookup_min: int = 2
    """Shortest one."""
    in_one_pass: bool = False
    """Whether the draft guesses all tokens of a round in one pass behind its mask token."""
    sampled: bool = False
    """Whether the draft samples in place of taking its likeliest token."""
    draft_kv: str | None = None
    """llama.cpp's name of the number format of the draft's KV cache; None for the engine's default."""

    @property
    def kind(self) -> MethodKind:
        """The method's row in the table."""
        return METHODS[self.method]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One server to start, with or without a draft."""

    target: str
    """Directory, hub id or .gguf file."""
    drafting: Drafting | None
    """How it drafts; None serves the target alone."""
    port: int
    """Port of the loopback address."""
    context: int
    """Positions of one request: the longest prompt with its answer."""
    batch_size: int
    """Requests at a time."""
    device: str
    """Device, as torch names it."""
    dtype: str
    """Number format of the weights, as torch names it."""
    threads: int
    """CPU threads; 0 keeps the engine's default."""
    servers: int
    """Servers that share the machine."""
    engine_args: str
    """The user's own flags, which win over ours."""
