"""Settings of a measurement in our decoder, in parts. Imports nothing heavy, so that --help stays fast."""

# Without `from __future__ import annotations`: `BenchConfig` inherits these fields in another module, where cyclopts
# could not evaluate annotations that are strings.
from dataclasses import dataclass, field, replace
from os.path import abspath
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.errors import ConfigError
from specdistill.evaluation.baseline_settings import BaselineSettings
from specdistill.evaluation.load_settings import LoadSettings
from specdistill.settings.adapter import AdapterSettings
from specdistill.settings.chat import ChatSettings
from specdistill.settings.checks import LONGEST_DRAFT, at_least, check_seed, needs
from specdistill.settings.guidance import GuidanceSettings
from specdistill.settings.machine import Machine
from specdistill.settings.parts import ESSENTIALS, MACHINE, Config, Unasked, box
from specdistill.settings.sampling import Sampling
from specdistill.settings.scoring import check_name
from specdistill.settings.self_prompts import SelfPromptSettings, answers_read


@dataclass(frozen=True, kw_only=True)
class ServedSampling(Sampling):
    """How the server samples; greedy unless told otherwise."""

    temperature: float = 0.0
    """Sampling temperature of the server; set it to the one that you serve with. 0 is greedy."""


@dataclass(frozen=True, kw_only=True)
class AcceptanceSettings:
    """How the server accepts draft tokens, and how many it asks for."""

    rule: Literal["auto", "greedy", "sampled", "argmax_draft", "block", "lenient"] = "auto"
    """How the server accepts draft tokens. Set it where your server is not started with its engine's default. auto:
    greedy at temperature 0; above it sampled for our decoder and transformers, argmax_draft for vLLM, SGLang and
    llama.cpp. block judges whole drafts (exact); lenient is lossy."""
    lenience: float = 1.0
    """LOSSY: accept a token as often as its probability divided by this number. Below 1, with --rule lenient only."""
    lenience_sweep: Annotated[tuple[float, ...], Parameter(consume_multiple=True)] = ()
    """Also measure the rule lenient with each of these values, such as 0.9 0.7 0.5, beside the exact rule: speed-up,
    acceptance, changed tokens. Needs --temperature above 0; each value decodes all timed prompts once more."""
    max_draft_tokens: int = Unasked(8)
    """Longest draft length that costs and predictions cover. Left out, it is 8, or more where --num-draft-tokens is, or
    the number of tokens that a parallel draft was trained to guess."""
    draft_length: Literal["fixed", "confidence", "auto"] = "fixed"
    """How the decoder chooses the length of each draft. fixed: always --num-draft-tokens. confidence: up to that many
    (0: --max-draft-tokens), until the draft is unsure. auto: the length that pays most by measured costs and the
    acceptance so far; plain decoding where drafting doesn't pay."""
    confidence: float = 0.4
    """Stop drafting when the product of the draft's probabilities falls below this. For --draft-length confidence."""
    one_by_one: bool = False
    """Let a parallel draft (pard_token in its config.json) guess one token per pass, as engines do that know nothing of
    its mask token. By default it guesses all tokens of a round in one pass, where the engine can."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_draft_tokens")
        if self.max_draft_tokens > LONGEST_DRAFT:
            raise ConfigError(f"--max-draft-tokens must be at most {LONGEST_DRAFT}, got {self.max_draft_tokens}")
        if (self.rule == "lenient") != (self.lenience < 1) or not 0 < self.lenience <= 1:
            raise ConfigError("--rule lenient and --lenience go together; the lenience must be in (0, 1)")
        # A YAML file gives a list.
        object.__setattr__(self, "lenience_sweep", tuple(self.lenience_sweep))
        for value in self.lenience_sweep:
            if not 0 < value < 1:
                raise ConfigError(
                    f"--lenience-sweep takes numbers in (0, 1), got {value}; the exact rule is always measured"
                )
        if len(set(self.lenience_sweep)) < len(self.lenience_sweep):
            raise ConfigError("--lenience-sweep names a number twice; leave one of the two away")
        if self.lenience_sweep and self.draft_length != "fixed":
            raise ConfigError(
                f"--lenience-sweep compares rules at one draft length; leave out --draft-length {self.draft_length}"
            )
        if not 0 < self.confidence < 1:
            raise ConfigError(f"--confidence must be in (0, 1), got {self.confidence}")
        needs(self, self.draft_length == "confidence", "--draft-length confidence", "confidence")


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """How finished answers are judged."""

    scorer: str | None = None
    """Also score the finished answers of the target alone, the draft alone and speculative decoding: exact-match,
    number (the last number in the text) or json (equal values) compare with the prompts' field answer; module:function
    is your own function(prompt, text) -> float. Shows what a lossy rule costs, and how good the draft is by itself."""

    def __post_init__(self) -> None:
        if self.scorer is not None:
            check_name(self.scorer, likelihood=False)


@dataclass(frozen=True, kw_only=True)
class TimedRunSettings:
    """How speculative and plain decoding are timed against each other."""

    latency_prompts: int = 0
    """How many of the prompts to time against the plain target, the slow part; 0 times all."""
    batch_size: int = 1
    """Prompts decoded together; set it to the batch that you serve with."""
    seed: int = 0
    """Random seed for sampling."""
    capture_steps: bool = False
    """Run both models' steps as CUDA graphs on a GPU, or compiled by torch.compile on a CPU, where they give the same
    states faster. Use it on a GPU, where eager steps of a small model cost more than a server's. Compiling takes
    minutes. A head and its target run eagerly."""

    def __post_init__(self) -> None:
        at_least(self, 0, "latency_prompts")
        at_least(self, 1, "batch_size")
        check_seed(self.seed)

    def prompt_seeds(self, numbers: range) -> list[int]:
        """One seed for each prompt, from its number in the prompt set."""
        return [self.seed * 100_003 + number for number in numbers]


@dataclass(frozen=True, kw_only=True)
class WeightSettings:
    """Number format of both models' weights."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto is bfloat16 on a GPU and float32 on a CPU."""
    pack: Literal["none", "float32", "float16", "int8"] = "none"
    """Repack both models' weights for short passes on an x86 CPU. float32 changes only the order of sums. float16
    rounds the weights and is exact for the rounded model. int8 is faster but not exact: tokens of one pass share a
    scale."""

    def __post_init__(self) -> None:
        if self.pack != "none" and self.dtype not in ("auto", "float32"):
            raise ConfigError(f"--pack {self.pack} starts from float32 weights; leave out --dtype {self.dtype}")


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Which answers are shown token by token."""

    show: int = 0
    """Print this many answers of the timed run token by token: accepted draft tokens green, rejected ones red and
    struck through before what replaced them. The report holds three of them in any case."""

    def __post_init__(self) -> None:
        at_least(self, 0, "show")


@dataclass(frozen=True, kw_only=True)
class SecondTargetSettings:
    """A second target beside the first."""

    compare_target: str | None = None
    """A second target, such as the full-precision one of a quantised --target: the draft's alpha against it on its own
    answers and on the target's, with paired differences, says what quantisation costs the draft."""


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(Config):
    """Everything that a measurement in our decoder needs; `BenchConfig` adds real engines."""

    target: Annotated[str, Parameter(group=ESSENTIALS)]
    """The model being served: hub id, checkpoint or adapter directory, or .gguf file."""
    draft: Annotated[str | None, Parameter(group=ESSENTIALS)] = None
    """The small model that proposes tokens: hub id, checkpoint or adapter directory, or .gguf file. Leave it out only
    where a real engine drafts without one."""
    compare: Annotated[tuple[str, ...], Parameter(group=ESSENTIALS, consume_multiple=True)] = ()
    """Other drafts, such as the one before training: a leaderboard with alpha, costs, predicted speed-up and paired
    differences to --draft, on the same answers. They are loaded one after another."""
    prompts: Annotated[str, Parameter(group=ESSENTIALS)] = "builtin:heldout"
    """builtin:train, builtin:heldout, humaneval, a .jsonl, .json, .csv, .parquet or .txt file, a datasets name[:split],
    or self:N for N that the target writes itself: held-out ones, which training with self:N never sees. Prompts that
    you serve are best."""
    num_prompts: Annotated[int, Parameter(group=ESSENTIALS)] = 32
    """Prompts to score, spread over the categories; 0 takes all."""
    num_draft_tokens: Annotated[int, Parameter(group=ESSENTIALS)] = 0
    """Draft tokens per verification in the timed run. 0 takes the length with the highest predicted speed-up; in a real
    engine, whose single steps can't be timed, 0 means the number that an EAGLE-3 head, or for vLLM a parallel draft,
    was trained for, and else 4."""
    max_new_tokens: Annotated[int, Parameter(group=ESSENTIALS)] = 128
    """Tokens per answer."""
    json: Annotated[str | None, Parameter(group=ESSENTIALS)] = None
    """Write the report as JSON to this file (schema: the page 'The report' of the documentation)."""
    html: Annotated[str | None, Parameter(group=ESSENTIALS)] = None
    """Write the report as one self-contained HTML page with plots to this file."""
    adapter: Annotated[AdapterSettings, box("Adapter")] = field(default_factory=AdapterSettings)
    second: Annotated[SecondTargetSettings, box("Second target")] = field(default_factory=SecondTargetSettings)
    chat: Annotated[ChatSettings, box("Chat template")] = field(default_factory=ChatSettings)
    self_prompts: Annotated[SelfPromptSettings, box("Prompts from the target itself")] = field(
        default_factory=SelfPromptSettings
    )
    sampling: Annotated[ServedSampling, box("Sampling")] = field(default_factory=ServedSampling)
    guided: Annotated[GuidanceSettings, box("Guidance of the target")] = field(default_factory=GuidanceSettings)
    acceptance: Annotated[AcceptanceSettings, box("Acceptance rule and draft length")] = field(
        default_factory=AcceptanceSettings
    )
    beside: Annotated[BaselineSettings, box("Drafting without a model, beside the draft")] = field(
        default_factory=BaselineSettings
    )
    score: Annotated[ScoreSettings, box("Score of the answers")] = field(default_factory=ScoreSettings)
    timing: Annotated[TimedRunSettings, box("Timed run")] = field(default_factory=TimedRunSettings)
    load: Annotated[LoadSettings, box("Load")] = field(default_factory=LoadSettings)
    samples: Annotated[SampleSettings, box("Sample answers")] = field(default_factory=SampleSettings)
    weights: Annotated[WeightSettings, box("Weights")] = field(default_factory=WeightSettings)
    machine: Annotated[Machine, box(MACHINE)] = field(default_factory=Machine)

    def __post_init__(self) -> None:
        # A single name may be given as it is.
        compare = (self.compare,) if isinstance(self.compare, str) else tuple(self.compare or ())
        object.__setattr__(self, "compare", compare)
        super().__post_init__()
        places = {abspath(name) for name in compare}
        if len(places) < len(compare):
            raise ConfigError("--compare names a draft twice; leave one of the two away")
        if self.draft is not None and abspath(self.draft) in places:
            raise ConfigError(f"--compare names --draft {self.draft} itself; it is in the leaderboard without that")
        self.sampling.refuse_idle_filters()
        self.self_prompts.check(self.prompts, "heldout", answers_read((self.score.scorer,), None))
        at_least(self, 0, "num_prompts", "num_draft_tokens")
        at_least(self, 2, "max_new_tokens")
        self._cover_length()
        rule = self.acceptance.rule
        if self.acceptance.lenience_sweep and self.sampling.greedy:
            raise ConfigError("--lenience-sweep needs --temperature above 0, where tokens are accepted by chance")
        if rule != "auto" and (rule == "greedy") != self.sampling.greedy:
            raise ConfigError(f"--rule {rule} does not go with --temperature {self.sampling.temperature}")
        if self.load.batch_sizes and self.acceptance.draft_length != "fixed":
            raise ConfigError(
                f"--batch-sizes needs fixed draft lengths; leave out --draft-length {self.acceptance.draft_length}"
            )
        if self.second.compare_target is not None and (self.guided.guidance or self.weights.pack != "none"):
            raise ConfigError("--compare-target compares plain targets; leave --guidance and --pack away")
        if self.json is not None and self.html is not None and abspath(self.json) == abspath(self.html):
            raise ConfigError(f"--json and --html both name {self.json}; choose two files")

    def _cover_length(self) -> None:
        """Raises --max-draft-tokens to --num-draft-tokens where it was left out."""
        length, longest = self.num_draft_tokens, self.acceptance.max_draft_tokens
        if length <= longest:
            return
        if not isinstance(longest, Unasked):
            raise ConfigError(f"--num-draft-tokens {length} exceeds --max-draft-tokens {longest}")
        if length > LONGEST_DRAFT:
            raise ConfigError(f"--num-draft-tokens must be at most {LONGEST_DRAFT}, got {length}")
        object.__setattr__(self, "acceptance", replace(self.acceptance, max_draft_tokens=Unasked(length)))

    @property
    def drafter(self) -> str:
        """Name of the draft.

        Raises:
            ConfigError: There is none.
        """
        if self.draft is None:
            raise ConfigError("--draft is required: the model that proposes tokens")
        return self.draft

    @property
    def in_one_pass(self) -> bool:
        """Whether parallel drafts guess all tokens of a round in one pass."""
        return not self.acceptance.one_by_one

    @property
    def default_rule(self) -> str:
        """How our decoder accepts unless --rule says otherwise."""
        return "greedy" if self.sampling.greedy else "sampled"

    @property
    def served_rule(self) -> str:
        """How the timed run accepts."""
        return self.default_rule if self.acceptance.rule == "auto" else self.acceptance.rule

    @property
    def predicting_rule(self) -> str:
        """The rule that predictions are made for: block and lenient keep at least as much as sampled."""
        return "sampled" if self.served_rule in ("block", "lenient") else self.served_rule

    @property
    def lossy(self) -> bool:
        """Whether the rule gives up the target's distribution."""
        return self.served_rule == "lenient"
