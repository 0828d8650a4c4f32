"""The methods of train-draft in one table, from which help, refusals and docs/methods.md are made; no heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from specdistill.errors import ConfigError

MethodName = Literal["sft", "seqkd", "best-of-n", "supervised-kd", "gkd", "distillspec", "skd", "online"]
PlaceName = Literal["memory", "stored", "served"]


@dataclass(frozen=True)
class Method:
    """Who writes the text that a method trains on, which loss it minimises there, and which settings it takes."""

    name: MethodName
    text: str
    """Text that it trains on, for people."""
    loss: str
    """The divergence that --divergence auto stands for; `ce` is cross entropy on the text's own tokens."""
    places: tuple[PlaceName, ...] = ("memory",)
    """Where the target may be: in memory, stored as labels (--soft-labels), or served (--target-server)."""
    settings: frozenset[str] = frozenset()
    """Settings of `METHOD_SETTINGS` that it takes."""
    given_answers: bool = False
    """Whether the prompts must bring answers along, unless --text is trained on."""

    @property
    def learns_from_text(self) -> bool:
        """Whether text alone teaches it, so that the draft may have another tokenizer."""
        return self.loss == "ce"


METHOD_SETTINGS = {
    "divergence": "replaces the method's own loss",
    "text_block": "cuts raw text into blocks",
    "text": "trains on raw text",
    "rollouts": "brings answers of the target along",
    "score_threshold": "tells right answers from wrong ones",
    "keep_correct": "keeps every right answer",
    "strict_scorer": "judges right answers again",
    "lmbda": "mixes in the draft's own answers",
    "target_fraction": "says when the draft's own answers begin",
    "skd_top_k": "decides which draft tokens are replaced",
    "skd_num_draft_tokens": "counts draft tokens between checks",
    "skd_target_temperature": "samples the replacements of skd's target",
    "skd_target_top_p": "samples the replacements of skd's target",
    "online": "names a server's rejection log",
    "online_wait": "waits for a server's rejection log",
    "reward": "judges the draft's own answers",
    "distill_weight": "weighs the divergence against a reward",
    "rollout_engine": "writes the draft's own answers",
    "push_every": "hands weights to the engine that writes the draft's own answers",
    "engine_memory": "is for the engine that writes the draft's own answers",
    "capture_steps": "captures the steps that write answers",
    "ce_weight": "mixes in cross entropy",
    "reference": "selects tokens by the target's whole distribution",
    "guidance": "distils a target under guidance",
    "target_system": "adds to what the target sees",
    "target_examples": "adds to what the target sees",
    "target_hint": "adds to what the target sees",
}
"""Settings that only some methods take, and what each one does; every other setting is for all methods."""

_CONTEXT = frozenset({"target_system", "target_examples", "target_hint"})
_MIXING = frozenset({"divergence", "ce_weight", "reference", "guidance"})
_SAMPLED = frozenset({"rollouts", "capture_steps"})
_SKD = frozenset({"capture_steps", "skd_top_k", "skd_num_draft_tokens", "skd_target_temperature", "skd_target_top_p"})
_ON_POLICY = frozenset({"reward", "distill_weight", "rollout_engine", "push_every", "engine_memory"})

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            "sft",
            "given answers (field answer), or raw text",
            "ce",
            settings=frozenset({"text", "text_block", "guidance"}),
            given_answers=True,
        ),
        Method(
            "seqkd", "the target's answers", "ce", ("memory", "served"), frozenset({"guidance"}) | _SAMPLED | _CONTEXT
        ),
        Method(
            "best-of-n",
            "the best of N of the target's answers, or all right ones",
            "ce",
            settings=_MIXING | _SAMPLED | _CONTEXT | {"score_threshold", "keep_correct", "strict_scorer"},
        ),
        Method(
            "supervised-kd",
            "given answers (field answer), or raw text",
            "fkl",
            ("memory", "stored", "served"),
            _MIXING | _CONTEXT | {"text", "text_block"},
            given_answers=True,
        ),
        Method(
            "gkd",
            "a mixture of the draft's own answers and fixed ones (given, or the target's)",
            "jsd",
            ("memory", "served"),
            _MIXING | _SAMPLED | _CONTEXT | _ON_POLICY | {"lmbda"},
        ),
        Method(
            "distillspec",
            "the target's sampled answers, then the draft's own where --target-fraction asks for them",
            "fkl",
            ("memory", "stored", "served"),
            _MIXING | _SAMPLED | _CONTEXT | _ON_POLICY | {"target_fraction"},
        ),
        Method(
            "skd",
            "answers that draft and target write together (speculative KD)",
            "fkl",
            settings=_CONTEXT | _SKD | {"divergence", "ce_weight", "reference"},
        ),
        Method(
            "online",
            "tokens where a running server's target corrected the draft",
            "fkl",
            settings=frozenset({"divergence", "online", "online_wait"}),
        ),
    )
}

LOSS_NAMES = {"ce": "cross entropy", "fkl": "forward KL", "jsd": "JSD"}
"""Names of the methods' own losses, for people."""


def methods_with(setting: str) -> tuple[str, ...]:
    """Names of the methods that take a setting, or that allow a place of the target (its `PlaceName`)."""
    return tuple(name for name, method in METHODS.items() if setting in method.settings or setting in method.places)


def check_method(name: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> Method:
    """Finds a method and refuses settings that it does not take.

    Args:
        name: The method.
        settings: Flat settings of the run.
        defaults: Their defaults: a setting at its default was not asked for.

    Raises:
        ConfigError: There is no such method, or it does not take a setting that was changed.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown --method {name!r}; choose one of {', '.join(METHODS)}")
    for setting, purpose in METHOD_SETTINGS.items():
        if setting not in METHODS[name].settings and settings[setting] != defaults[setting]:
            flag = setting.replace("_", "-")
            raise ConfigError(
                f"--{flag} {purpose}: it goes with --method {', '.join(methods_with(setting))}, not with {name}"
            )
    return METHODS[name]


def method_help() -> str:
    """Help of --method: name, loss and text of every method."""
    lines = (f"{method.name}: {LOSS_NAMES[method.loss]} on {method.text}." for method in METHODS.values())
    return "Which loss is minimised on whose text. " + " ".join(lines)


def methods_table() -> str:
    """The table of docs/methods.md, in Markdown."""
    places = {"memory": "in memory", "stored": "stored labels", "served": "served"}
    lines = [
        "| method | trains on | its own loss | the target may be | settings that not every method takes |",
        "|---|---|---|---|---|",
    ]
    for method in METHODS.values():
        flags = " ".join(f"`--{name.replace('_', '-')}`" for name in METHOD_SETTINGS if name in method.settings)
        lines.append(
            f"| `{method.name}` | {method.text} | {LOSS_NAMES[method.loss]} | "
            f"{', '.join(places[place] for place in method.places)} | {flags} |"
        )
    return "\n".join(lines)
