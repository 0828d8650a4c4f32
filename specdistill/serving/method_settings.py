"""Settings of `bench --engine`: how the engine drafts, and what is timed beside it. Imports nothing heavy."""

# Without `from __future__ import annotations`: see `evaluation.config`.
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.errors import ConfigError
from specdistill.serving.engine_table import METHODS, EngineKind, methods_of

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
"""Formats of a KV cache that llama.cpp's servers take."""
_BASELINES: tuple[str, ...] = ("ngram",)


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """How a real engine drafts, and which of its free methods are timed in turn with it."""

    method: Literal[
        "draft",
        "ngram",
        "suffix",
        "ngram+draft",
        "mtp",
        "eagle3",
        "eagle",
        "dspark",
        "dflash",
        "ngram-simple",
        "ngram-map-k",
        "ngram-map-k4v",
        "ngram-mod",
        "ngram-cache",
    ] = "draft"
    """How the engine drafts. draft: by the model of --draft. ngram: it copies what followed the same tokens before
    (vLLM, llama.cpp, transformers); ngram-simple, -map-k, -map-k4v, -mod and -cache are llama.cpp's forms. suffix: vLLM
    with arctic-inference. ngram+draft: llama.cpp, n-grams first. mtp: the target's own head (vLLM, llama.cpp), or an
    assistant as --draft. eagle3, eagle, dflash, dspark: the head of --draft (vLLM, llama.cpp); eagle3 is taken by
    itself where --draft is such a head."""
    engine_baselines: Annotated[
        tuple[Literal["ngram", "suffix", "mtp", "ngram+draft", "none"], ...], Parameter(consume_multiple=True)
    ] = ("ngram",)
    """Methods to time in turn with the plain target and --method, one more server each: ngram, suffix, mtp,
    ngram+draft. none: no more servers, where memory is short. By default ngram, where the engine has it and it
    starts."""

    draft_kv: KvType | None = None
    """Number format of the draft's KV cache. For --engine llama-cpp, whose default is f16."""
    compare_kv: Annotated[tuple[KvType, ...], Parameter(consume_multiple=True)] = ()
    """Formats of the draft's KV cache to compare with that of --draft: a row of the leaderboard and a server each. For
    --engine llama-cpp."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "compare_kv", tuple(self.compare_kv))
        # A YAML file gives a list.
        object.__setattr__(self, "engine_baselines", tuple(self.engine_baselines))
        if not self.engine_baselines or ("none" in self.engine_baselines and len(self.engine_baselines) > 1):
            raise ConfigError("--engine-baselines takes methods, or none alone")
        if len(set(self.engine_baselines)) < len(self.engine_baselines):
            raise ConfigError("--engine-baselines names a method twice; leave one of the two away")

    @property
    def has_default_baselines(self) -> bool:
        """Whether the baselines are those that nobody asked for."""
        return self.engine_baselines == _BASELINES

    def baselines(self, engine: str, kind: EngineKind, draft: str | None) -> list[str]:
        """Methods that are timed besides --method.

        Args:
            engine: Value of --engine.
            kind: Its row in the table.
            draft: Value of --draft.
        """
        if kind.place not in ("process", "started"):
            return []
        asked = [name for name in self.engine_baselines if name != "none"]
        # An engine may have two names for one method.
        own = METHODS[self.method].names.get(engine)
        known = [name for name in asked if METHODS[name].names.get(engine, own) != own]
        has_model = draft is not None and METHODS[self.method].draft == "model"
        return [name for name in known if METHODS[name].draft != "model" or has_model]

    def check(self, engine: str, kind: EngineKind, draft: str | None) -> None:
        """Refuses a method or baseline that the engine does not have, and a draft that the method does not take.

        Args:
            engine, kind, draft: As for `baselines`.

        Raises:
            ConfigError: Names the setting and the remedy.
        """
        method = METHODS[self.method]
        if engine not in method.names:
            raise ConfigError(
                f"--method {self.method} is none of --engine {engine}, which takes {', '.join(methods_of(engine))}; it "
                f"goes with --engine {' or '.join(method.names)}"
            )
        if method.draft == "none" and draft is not None:
            raise ConfigError(f"--method {self.method} needs no draft; leave --draft {draft} away")
        if method.draft in ("model", "head") and draft is None:
            what = "the directory of the head" if method.draft == "head" else "the draft model"
            raise ConfigError(f"--draft is required: {what}; --method ngram and others need none")
        timed = self.baselines(engine, kind, draft)
        if (self.draft_kv or self.compare_kv) and not (engine == "llama-cpp" and draft is not None):
            raise ConfigError("--draft-kv and --compare-kv are for --engine llama-cpp with a --draft")
        if len({self.draft_kv or "f16", *self.compare_kv}) <= len(self.compare_kv):
            raise ConfigError("--compare-kv names a format twice, or that of --draft itself; leave one of the two away")
        if not self.has_default_baselines and self.engine_baselines != ("none",):
            wrong = [name for name in self.engine_baselines if name not in timed]
            if wrong:
                raise ConfigError(f"--engine-baselines {wrong[0]} is no method of --engine {engine} with these models")

    def copies(self, engine: str, kind: EngineKind, draft: str | None) -> bool:
        """Whether any engine looks up n-grams, so that their sizes matter.

        Args:
            engine, kind, draft: As for `baselines`.
        """
        names = self.method, *self.baselines(engine, kind, draft)
        return any(METHODS[name].copies and name != "suffix" for name in names)
