"""The bench report's `target`, `draft` and `setup`; see `report`."""

from __future__ import annotations

from dataclasses import dataclass

PARALLEL, HEAD = "parallel", "eagle3"
"""Kinds of drafts that our decoder runs, besides those that take a pass for each token. The guess of a token depends on
where its round started, and alpha is that of the first."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A model, as it was loaded."""

    name: str
    """Hub id, directory or file."""
    parameters: int
    """Number of parameters, tied ones counted once."""
    vocab_size: int
    """Rows of the embedding."""
    dtype: str
    """Number format of the weights."""
    adapter_of: str | None = None
    """Base that its adapter was merged into; absent for a whole model."""
    head_size: int | None = None
    """Ids that a trimmed output head can propose; absent where the head is whole."""
    mask_id: int | None = None
    """Id of the mask token of a parallel draft, which guesses all tokens of a round in one pass; absent for others, and
    where it was used one token per pass."""
    parallel_draft_tokens: int | None = None
    """Number of tokens that a parallel draft was trained to guess in one pass, by its config.json; absent like
    `mask_id`, and where that does not say."""
    kind: str | None = None
    """How a draft proposes that does not take a pass of a plain language model for each token: `parallel`, `ngram`,
    `suffix`, `mtp`, `eagle3`, ...; absent for one that does."""

    @property
    def is_model(self) -> bool:
        """Whether it is a language model, ordinary or parallel, that can be scored."""
        return self.kind in (None, PARALLEL)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings and versions of the run."""

    device: str
    """torch device; `server` where the engine runs elsewhere."""
    threads: int
    """CPU threads of torch."""
    torch: str
    """Version of torch."""
    transformers: str
    """Version of transformers."""
    engine: str
    """Value of --engine."""
    temperature: float
    """Sampling temperature; 0 is greedy."""
    top_k: int
    """Ids kept by top-k; 0 keeps all."""
    top_p: float
    """Probability kept by top-p."""
    min_p: float
    """Threshold of min-p, relative to the likeliest id."""
    batch_size: int
    """Prompts decoded together in the timed run."""
    max_new_tokens: int
    """Tokens per answer at most."""
    seed: int
    """Random seed for sampling."""
    rule: str
    """How the timed run accepted: `greedy`, `sampled`, `argmax_draft`, `block` or `lenient`."""
    predicting_rule: str
    """The rule that predictions are made for: `sampled` for `block` and `lenient`."""
    lossy: bool
    """Whether the rule or packed weights give up the target's exact distribution."""
    num_draft_tokens: int
    """Draft tokens per verification; the most where the length varies."""
    prompts: int
    """Prompts scored."""
    latency_prompts: int
    """Prompts timed."""
    prompt_source: str
    """Value of --prompts."""
    chat_template_kwargs: str | None = None
    """Value of --chat-template-kwargs, as JSON text; absent without one."""
    raw_prompts: bool | None = None
    """Present, and true, with --raw-prompts: no chat template was used."""
    one_by_one: bool | None = None
    """Present, and true, with --one-by-one: parallel drafts guessed one token per pass."""
    guidance: float | None = None
    """Weight of the target's guidance; present with --guidance. The plain target is then the guided one too."""
    negative_prompt: str | None = None
    """User's turn that the target is pushed away from; present with --guidance."""


@dataclass(frozen=True, kw_only=True)
class DecoderSetup(Setup):
    """Further keys where our decoder was measured (`engine` is `specdistill`)."""

    lenience: float
    """A token was accepted as often as its probability divided by this number; 1 keeps the distribution."""
    draft_length: str
    """`fixed`, `confidence` or `auto`."""
    pack: str
    """How weights were packed: `none`, `float32`, `float16` or `int8`."""
    packing_seconds: float | None
    """Seconds that packing took; null without packing."""


@dataclass(frozen=True, kw_only=True)
class EngineSetup(Setup):
    """Further keys where a real engine was measured."""

    engine_version: str
    """Name and version, as the engine tells them."""
    engine_args: str
    """The user's own flags for the servers."""
