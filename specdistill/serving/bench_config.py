"""Settings of `specdistill bench`: a measurement, and the engine that decodes. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.errors import ConfigError
from specdistill.evaluation.config import MeasureConfig
from specdistill.servers.urls import check_url, same_server
from specdistill.serving.engine_table import ENGINES, METHODS, EngineKind, MethodKind
from specdistill.serving.method_settings import MethodSettings
from specdistill.settings.checks import at_least, needs
from specdistill.settings.parts import ESSENTIALS, box


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Servers of a real engine: which ones, and how long to wait for them."""

    url: str | None = None
    """URL of a running server that drafts, e.g. http://host:8000/v1. For --engine openai-server. Set --draft and
    --num-draft-tokens to those that it was started with; of --target only configuration and tokenizer are read. A key
    is read from OPENAI_API_KEY."""
    baseline_url: str | None = None
    """URL of a running server of the same target without a draft. For --engine openai-server."""
    server_model: str | None = None
    """Name under which both servers serve the target. For --engine openai-server; leave it out where each serves one
    model."""
    server_patience: float = 60.0
    """Seconds to wait for a server that is down or overloaded. Then the run ends with the prompts it has."""
    server_timeout: float = 300.0
    """Seconds that one answer may take, and that a server started here may take until it answers."""
    engine_args: str = ""
    """More of the engine's own flags for both servers, in one string behind an equals sign, such as
    --engine-args='--enforce-eager'. For vllm and llama-cpp. On a GPU both servers share its memory: vLLM gets
    --gpu-memory-utilization 0.42 here."""

    def __post_init__(self) -> None:
        at_least(self, 0, "server_patience")
        at_least(self, 1, "server_timeout")
        for url in (self.url, self.baseline_url):
            if url is not None:
                check_url(url)
        if self.url is not None and self.baseline_url is not None and same_server(self.url, self.baseline_url):
            raise ConfigError(
                f"--url and --baseline-url both name {self.url}: the speed-up would be that of a server over itself; "
                "start a second server of the same target without a draft for --baseline-url"
            )


@dataclass(frozen=True, kw_only=True)
class BenchConfig(MeasureConfig):
    """Measure what a draft is worth: acceptance under every rule, speed against the plain target, and a verdict."""

    engine: Annotated[
        Literal["specdistill", "transformers", "vllm", "llama-cpp", "openai-server"], Parameter(group=ESSENTIALS)
    ] = "specdistill"
    """Decoder to measure: ours, or a real engine. transformers: generate(assistant_model=...), in this process, also
    for a draft of another tokenizer. vllm, llama-cpp: servers are started here, with and without the draft and one
    for each baseline, and stopped afterwards. openai-server: the servers of --url and --baseline-url, which run
    already. All get the same prompts in turn, and the engine's own counters are read."""
    drafting: Annotated[MethodSettings, box("Method of a real engine")] = field(default_factory=MethodSettings)
    servers: Annotated[ServerSettings, box("Servers of a real engine")] = field(default_factory=ServerSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        running = self.engine_kind.place == "running"
        if running != (self.servers.url is not None) or running != (self.servers.baseline_url is not None):
            raise ConfigError("--engine openai-server, --url and --baseline-url go together")
        started = self.engine_kind.place == "started"
        needs(self.servers, started, "servers that bench starts: --engine vllm or llama-cpp", "engine_args")
        needs(self.servers, running, "--engine openai-server", "server_model")
        served = "--engine vllm, llama-cpp or openai-server"
        needs(self.servers, running or started, served, "server_patience", "server_timeout")
        self._check_load()
        self.drafting.check(self.engine, self.engine_kind, self.draft)
        timed = self.engine_kind.place in ("process", "started")
        needs(
            self.drafting, timed, "--engine transformers, vllm or llama-cpp; ours has --baselines", "engine_baselines"
        )
        self._check_lookup()
        if self.engine_kind.place != "decoder":
            self._check_engine()

    def _check_lookup(self) -> None:
        """Refuses sizes of n-grams, and the choice of our own, where nothing reads them."""
        decoder = self.engine_kind.place == "decoder"
        needs(self.beside, decoder, "our decoder; real engines have --engine-baselines", "baselines")
        copies = self.drafting.copies(self.engine, self.engine_kind, self.draft)
        copies = self.beside.baselines != "none" if decoder else copies
        needs(self.beside, copies, "n-grams, which are not looked up here", "lookup_max")
        needs(self.beside, copies and (decoder or self.engine == "vllm"), "vLLM's n-gram", "lookup_min")

    def _check_load(self) -> None:
        place, load = self.engine_kind.place, self.load
        if place != "decoder" and load.batch_sizes:
            raise ConfigError(f"--batch-sizes is for our decoder; for --engine {self.engine} set --concurrency")
        if load.concurrency and place in ("decoder", "process"):
            other = "set --batch-sizes for our decoder" if place == "decoder" else "it takes one prompt at a time"
            raise ConfigError(f"--concurrency has no effect with --engine {self.engine}: {other}")

    def _check_engine(self) -> None:
        kind, rule = self.engine_kind, self.acceptance.rule
        if kind.place == "running" and not self.num_draft_tokens:
            raise ConfigError(
                f"--engine {self.engine} needs --num-draft-tokens: the number that the server was started with"
            )
        if rule != "auto" and rule not in self._rules:
            method = "" if self.drafting.method == "draft" else f" with --method {self.drafting.method}"
            raise ConfigError(f"--rule {rule} is none of {self.engine}{method}; it accepts by {', '.join(self._rules)}")
        if self.score.scorer is not None and self.method_kind.has_no_model:
            raise ConfigError(
                f"--scorer scores the draft's own answers too, and --method {self.drafting.method} has no draft model; "
                "leave one of the two away"
            )
        if self.guided.guidance:
            raise ConfigError(
                f"--guidance is for our decoder: --engine {self.engine} would answer without it; leave one of the two "
                "away"
            )
        if self.acceptance.lenience_sweep:
            raise ConfigError(f"--lenience-sweep is for our decoder, not for {self.engine}")
        if self.timing.capture_steps:
            raise ConfigError(f"--capture-steps is for our decoder, not for {self.engine}, which has its own steps")
        if self.samples.show:
            raise ConfigError(f"--show is for our decoder: {self.engine} does not say which tokens the draft wrote")
        if self.second.compare_target is not None:
            raise ConfigError(f"--compare-target is for our decoder, not for {self.engine}")
        if self.weights.pack != "none" or self.acceptance.draft_length != "fixed":
            raise ConfigError(f"--pack and --draft-length are for our decoder, not for {self.engine}")
        other = next((name for name in self.compare if not (kind.reads_gguf and name.endswith(".gguf"))), None)
        if other is not None:
            raise ConfigError(
                f"--compare {other}: with a real engine it takes the .gguf files of --engine llama-cpp only; compare "
                "other drafts in our decoder"
            )
        if kind.place == "process" and self.timing.batch_size > 1:
            raise ConfigError(f"--engine {self.engine} takes one prompt at a time; set --batch-size 1")
        if kind.reads_gguf and not self.target.endswith(".gguf"):
            raise ConfigError(f"--engine {self.engine} serves a .gguf file as --target, got {self.target}")
        if kind.reads_gguf and self.draft is not None and not self.draft.endswith(".gguf"):
            raise ConfigError(
                f"--engine {self.engine} takes a .gguf file as --draft, got {self.draft}; 'specdistill export --format "
                "gguf' writes one"
            )

    @property
    def engine_kind(self) -> EngineKind:
        """The engine's row in the table."""
        return ENGINES[self.engine]

    @property
    def in_one_pass(self) -> bool:
        """Whether parallel drafts guess all tokens of a round in one pass, which not every engine can."""
        return self.engine_kind.in_one_pass and not self.acceptance.one_by_one

    @property
    def method_kind(self) -> MethodKind:
        """The method's row in the table."""
        return METHODS[self.drafting.method]

    @property
    def _rules(self) -> tuple[str, ...]:
        """Rules of the engine; copied tokens have no probabilities, and are accepted as the target's own sample."""
        return ("greedy", "argmax_draft") if self.method_kind.copies else self.engine_kind.rules

    @property
    def default_rule(self) -> str:
        """How the engine accepts unless --rule says otherwise."""
        return self._rules[0 if self.sampling.greedy else 1]

    @property
    def engine_baselines(self) -> list[str]:
        """Methods of the engine that are timed besides --method."""
        return self.drafting.baselines(self.engine, self.engine_kind, self.draft)

    @property
    def target_is_present(self) -> bool:
        """Whether the target's weights are loaded here. Behind a user's own server only the rule `sampled` needs
        them."""
        return self.engine_kind.place != "running" or self.served_rule == "sampled"
