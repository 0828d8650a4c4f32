"""Settings of `specdistill bench`; imports nothing heavy, so that --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError
from specdistill.servers.client import check_url
from specdistill.settings.checks import at_least
from specdistill.settings.parts import Config

ENGINE_RULES = {
    "specdistill": ("greedy", "sampled", "argmax_draft", "block", "lenient"),
    "transformers": ("greedy", "sampled"),
    "vllm": ("greedy", "argmax_draft", "sampled"),
    "llama-cpp": ("greedy", "argmax_draft"),
    "openai-server": ("greedy", "argmax_draft", "sampled"),
}
"""How each engine can accept: at temperature 0 by the first, above it by the second unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig(Config):
    """Measure what a draft is worth: acceptance under every rule, speed against the plain target, and a verdict."""

    target: str
    """The model being served: hub id, checkpoint directory or .gguf file."""
    draft: str
    """The small model that proposes: hub id, checkpoint directory or .gguf file."""
    engine: Literal["specdistill", "transformers", "vllm", "llama-cpp", "openai-server"] = "specdistill"
    """What decodes: our decoder, or a real engine in its place. transformers: generate(assistant_model=...), in this
    process. vllm, llama-cpp: two servers of it are started here, with and without the draft, and stopped after.
    openai-server: two that run already, --url and --baseline-url. All take the same prompts in turn, and the engine's
    own counters are read."""
    url: str | None = None
    """Of openai-server: the server that drafts, e.g. http://host:8000/v1. --draft and --num-draft-tokens must be those
    that it was started with; of --target configuration and tokenizer are read. A key is read from OPENAI_API_KEY."""
    baseline_url: str | None = None
    """Of openai-server: a server of the same target without a draft."""
    server_model: str | None = None
    """Of openai-server: the name under which both serve the target; left out where each serves one model."""
    server_patience: float = 60.0
    """Of servers: seconds to wait for one that is down or overloaded, before the run ends with what it has."""
    server_timeout: float = 300.0
    """Of servers: seconds that one answer may take, and that one started here may take until it answers."""
    engine_args: str = ""
    """Of vllm and llama-cpp: more of the engine's own flags for both servers, in one string behind an equals sign, such
    as --engine-args='--enforce-eager'. On a GPU both share its memory: vLLM gets --gpu-memory-utilization 0.42 here."""
    compare: str | None = None
    """A second draft (say, the one before training): its alpha and the paired difference are reported too."""
    prompts: str = "builtin:heldout"
    """builtin:train, builtin:heldout, humaneval, a .jsonl or .txt file, or a datasets name[:split]."""
    num_prompts: int = 32
    """Prompts to score, spread over the categories; 0 takes all."""
    latency_prompts: int = 0
    """How many of them to time against the plain target (the slow part); 0 takes all."""
    max_new_tokens: int = 128
    """Tokens per answer."""
    temperature: float = 0.0
    """Of the server; 0 is greedy."""
    top_k: int = 0
    """Keep the K most likely ids of both models; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of ids with this mass, in both models; 1 keeps all."""
    min_p: float = 0.0
    """Keep ids at least this fraction as likely as the likeliest, in both models; 0 keeps all."""
    rule: Literal["auto", "greedy", "sampled", "argmax_draft", "block", "lenient"] = "auto"
    """How the server accepts. auto: greedy at temperature 0; above it sampled for our decoder and transformers, and
    argmax_draft for vLLM, SGLang and llama.cpp, as is their default. block judges drafts as a whole (exact); lenient is
    lossy."""
    lenience: float = 1.0
    """Of the rule lenient, below 1: a token may come up as often as its probability divided by this. LOSSY."""
    num_draft_tokens: int = 0
    """Draft tokens per verification in the timed run; 0 takes the length with the highest predicted speed-up, and 4 in
    an engine whose single steps can't be timed."""
    max_draft_tokens: int = 8
    """Longest draft length that costs and predictions cover."""
    draft_length: Literal["fixed", "confidence", "auto"] = "fixed"
    """fixed: always num_draft_tokens. confidence: up to that many (0: max_draft_tokens), until the draft doubts. auto:
    whatever pays most by measured costs and the acceptance seen so far; plain decoding where drafting doesn't pay."""
    confidence: float = 0.4
    """Of draft_length confidence: draft until the product of the draft's probabilities falls under this."""
    batch_size: int = 1
    """Prompts decoded together in the timed run."""
    seed: int = 0
    """Of sampling."""
    device: str = "auto"
    """A torch device; auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    pack: Literal["none", "float32", "float16", "int8"] = "none"
    """Weights packed for small passes on an x86 CPU, of both models. float32 changes nothing but the order of sums and
    takes twice the memory; float16 rounds the weights and stays exact for the rounded model; int8 is faster and not
    exact: tokens that share a pass share a scale."""
    threads: int = 0
    """CPU threads of torch; 0 leaves its default. One thread gives the steadiest timings."""
    json: str | None = None
    """Write the report as JSON (schema: METRICS in the documentation)."""
    html: str | None = None
    """Write the report as one self-contained HTML page with plots."""

    def __post_init__(self) -> None:
        for name in ("num_prompts", "latency_prompts", "num_draft_tokens", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be 0 or more, got {getattr(self, name)}")
        for name, least in (("max_new_tokens", 2), ("max_draft_tokens", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")
        if self.num_draft_tokens > self.max_draft_tokens:
            raise ConfigError(
                f"--num-draft-tokens {self.num_draft_tokens} exceeds --max-draft-tokens {self.max_draft_tokens}"
            )
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or not 0 <= self.min_p < 1:
            raise ConfigError("--temperature and --top-k must be 0 or more, --top-p in (0, 1], --min-p in [0, 1)")
        if (self.rule == "lenient") != (self.lenience < 1) or not 0 < self.lenience <= 1:
            raise ConfigError("--rule lenient and --lenience go together; the lenience must be in (0, 1)")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"--confidence must be in (0, 1), got {self.confidence}")
        if self.pack != "none" and self.dtype not in ("auto", "float32"):
            raise ConfigError(f"--pack {self.pack} starts from float32 weights; leave out --dtype {self.dtype}")
        if self.rule != "auto" and (self.rule == "greedy") != (self.temperature == 0):
            raise ConfigError(f"--rule {self.rule} does not go with --temperature {self.temperature}")
        at_least(self, 0, "server_patience")
        at_least(self, 1, "server_timeout")
        self._check_engine()

    def _check_engine(self) -> None:
        served = self.engine == "openai-server"
        if served != (self.url is not None) or served != (self.baseline_url is not None):
            raise ConfigError("--engine openai-server, --url and --baseline-url go together")
        for url in (self.url, self.baseline_url):
            if url is not None:
                check_url(url)
        if self.engine == "specdistill":
            return
        if served and not self.num_draft_tokens:
            raise ConfigError("--engine openai-server needs --num-draft-tokens: what the server was started with")
        if self.rule != "auto" and self.rule not in ENGINE_RULES[self.engine]:
            known = ", ".join(ENGINE_RULES[self.engine])
            raise ConfigError(f"--rule {self.rule} is none of {self.engine}; it accepts by {known}")
        if self.pack != "none" or self.compare is not None or self.draft_length != "fixed":
            raise ConfigError(f"--pack, --compare and --draft-length are for our decoder, not for {self.engine}")
        if self.engine == "transformers" and self.batch_size > 1:
            raise ConfigError("transformers' assisted generation takes one prompt at a time; set --batch-size 1")
        if self.engine == "llama-cpp" and not self.target.endswith(".gguf"):
            raise ConfigError(f"--engine llama-cpp serves a .gguf file as --target, got {self.target}")
        if self.engine == "llama-cpp" and not self.draft.endswith(".gguf"):
            raise ConfigError(
                f"--engine llama-cpp takes a .gguf file as --draft, got {self.draft}; 'specdistill export --format "
                "gguf' writes one"
            )
        if self.engine_args and self.engine not in ("vllm", "llama-cpp"):
            raise ConfigError(f"--engine-args are for servers that bench starts, not for {self.engine}")

    @property
    def served_rule(self) -> str:
        """How the timed run accepts."""
        if self.rule != "auto":
            return self.rule
        return "greedy" if self.temperature == 0 else ENGINE_RULES[self.engine][1]

    @property
    def predicting_rule(self) -> str:
        """The rule that predictions are made for: block and lenient keep at least as much as sampled."""
        return "sampled" if self.served_rule in ("block", "lenient") else self.served_rule

    @property
    def lossy(self) -> bool:
        """Whether the rule gives up the target's distribution."""
        return self.served_rule == "lenient"

    @property
    def target_is_present(self) -> bool:
        """Whether the target's weights are loaded here: behind a user's own server only what samples needs them."""
        return self.engine != "openai-server" or self.served_rule == "sampled"
