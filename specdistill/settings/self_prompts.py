"""Prompts that the target writes itself (`--prompts self:N`), as settings. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError
from specdistill.settings.checks import COLDEST, LARGEST_SEED, a_share, needs
from specdistill.settings.scoring import TEXT_SCORERS

Half = Literal["train", "heldout"]
_FORM = "write self:N, self:N:train or self:N:heldout, with N the number of prompts, such as self:1000"
_SETTINGS = ("self_system", "self_temperature", "self_top_p", "self_max_tokens", "self_seed")
_CHAT_TOKENS, _RAW_TOKENS = 256, 64


@dataclass(frozen=True)
class SelfSource:
    """The prompts that `--prompts self:N` asks for."""

    count: int
    """Number of prompts."""
    half: Half
    """Side of the fixed split that they are of."""


def self_source(source: str, half: Half) -> SelfSource | None:
    """Reads `self:N`, `self:N:train` or `self:N:heldout`.

    Args:
        source: --prompts.
        half: Side that is meant where none is named: heldout in bench, train in every other command.

    Returns:
        None where the prompts come from elsewhere.

    Raises:
        ConfigError: It begins with `self:` and goes on as something else.
    """
    if source != "self" and not source.startswith("self:"):
        return None
    match = re.fullmatch(r"self:([1-9][0-9]{0,8})(?::(train|heldout))?", source)
    if match is None:
        raise ConfigError(f"--prompts {source} is no number of prompts from the target itself; {_FORM}")
    named: Half = "heldout" if match[2] == "heldout" else "train"
    return SelfSource(int(match[1]), half if match[2] is None else named)


@dataclass(frozen=True, kw_only=True)
class SelfPromptSettings:
    """How the target writes the prompts of `--prompts self:N`; the same in every command of a project."""

    self_system: str | None = None
    """Text file with the system prompt under which the target writes its prompts; each prompt then begins with it.
    Set the one that you serve with."""
    self_temperature: float = 0.8
    """Temperature at which prompts are sampled. Lower ones repeat themselves more, higher ones ramble."""
    self_top_p: float = 1.0
    """Top-p with which prompts are sampled; 1 keeps all ids."""
    self_max_tokens: int | None = None
    """Longest prompt, in tokens; one that is longer is dropped. Left out: 256. Raw text (a model without chat template,
    or --raw-prompts) is cut there instead, at a whole word. Left out: 64."""
    self_seed: int = 0
    """Random seed of the prompts. It is apart from --seed, so that runs of several seeds share their prompts."""

    def __post_init__(self) -> None:
        if not self.self_temperature >= COLDEST:
            raise ConfigError(
                f"--self-temperature must be at least {COLDEST}, got {self.self_temperature}: at 0 all prompts are one"
            )
        a_share(self, "self_top_p")
        if self.self_max_tokens is not None and self.self_max_tokens < 2:
            raise ConfigError(f"--self-max-tokens must be at least 2, got {self.self_max_tokens}")
        if not 0 <= self.self_seed <= LARGEST_SEED:
            raise ConfigError(f"--self-seed must be in [0, {LARGEST_SEED}], got {self.self_seed}")

    def max_tokens(self, raw: bool) -> int:
        """Longest prompt in tokens, of raw text or of a user's words in a chat template."""
        return self.self_max_tokens or (_RAW_TOKENS if raw else _CHAT_TOKENS)

    def check(self, prompts: str, half: Half, answers: str | None = None) -> None:
        """Refuses what `--prompts self:N` can't give, and settings of it where it is not asked for.

        Args:
            prompts: --prompts.
            half: As in `self_source`.
            answers: Setting that reads the prompts' own answers; None where nothing does.

        Raises:
            ConfigError: Names the setting.
        """
        source = self_source(prompts, half)
        needs(self, source is not None, "--prompts self:N", *_SETTINGS)
        if source is not None and answers is not None:
            raise ConfigError(
                f"--prompts {prompts} has no answers, which {answers} reads; name a file whose rows have the field "
                "answer, or leave that setting away"
            )


def answers_read(scorers: tuple[str | None, ...], hint: str | None) -> str | None:
    """The setting, among those that several commands have, that reads the prompts' own answers; None if none does.

    Args:
        scorers: --scorer and --strict-scorer.
        hint: --target-hint.
    """
    named = [f"--scorer {scorer}" for scorer in scorers if scorer in TEXT_SCORERS]
    return next(iter([*named, *(["--target-hint"] if hint is not None else [])]), None)
