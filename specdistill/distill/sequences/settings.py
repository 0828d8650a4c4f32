"""Settings of the text that a run trains on. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

# cyclopts reads the annotations of inherited settings in this module, so their names must be known here too.
from specdistill.distill.answers.settings import EngineSettings, check_text_block
from specdistill.distill.answers.settings import RolloutEngineName as RolloutEngineName
from specdistill.errors import DataError
from specdistill.settings.chat import ChatSettings
from specdistill.settings.checks import at_least, needs, within_one
from specdistill.settings.parts import ESSENTIALS


@dataclass(frozen=True, kw_only=True)
class SequenceSettings:
    """Where a run's sequences come from."""

    max_new_tokens: Annotated[int, Parameter(group=ESSENTIALS)] = 128
    """Tokens per answer, in rollouts and on the held-out prompts. Longer given answers are cut and counted."""
    heldout_prompts: int = 16
    """Prompts kept out of training to judge the draft; chosen by a hash of their text. Early stopping watches them."""
    text: str | None = None
    """Raw text to train on instead of answers, as in pre-training: a .txt file (blank lines between documents), a
    .jsonl file or a datasets name[:split] with a field text. It is read as a stream. Prompts then only judge the draft.
    For sft and supervised-kd."""
    text_block: int | None = None
    """Tokens per block of --text. Longer blocks teach longer contexts and take more memory. Left out: 512, or the
    models' context where that is shorter."""
    rollouts: str | None = None
    """Directory with the target's answers, written by 'specdistill generate' or an earlier run (its folder rollouts).
    Left out: the target samples them first."""
    rollouts_per_prompt: int = 4
    """Answers that the target samples per prompt; always 1 at --temperature 0. Several sampled ones teach more than one
    greedy one; best-of-n keeps the best."""
    scorer: str = "target-likelihood"
    """Chooses among best-of-n's answers: target-likelihood, exact-match (with the field answer), or module:function,
    your own function(prompt, text) -> float. The highest score wins; the target's likelihood decides ties."""
    lmbda: float = 0.5
    """Share of gkd's steps that train on the draft's own answers."""
    target_fraction: float | None = None
    """Share of distillspec's steps on the target's answers, before the draft's own begin. Left out: 0.6, or 1 for a
    draft that init-draft just cut, whose own answers are still noise."""
    skd_top_k: int = 25
    """skd replaces a draft token that is not among the target's K likeliest (25 as published)."""
    skd_num_draft_tokens: int = 5
    """Draft tokens between two checks of skd's target (5 as published)."""
    online: str | None = None
    """Directory where a server's specdistill.serving.online.RejectionLog writes; for --method online. Each evaluation
    that finds a better draft replaces the checkpoint in --output file by file, weights last, for the server to load."""
    online_wait: float = 600.0
    """Seconds that --method online waits for a first record before the run ends."""

    def __post_init__(self) -> None:
        at_least(self, 1, "heldout_prompts", "rollouts_per_prompt", "skd_top_k", "skd_num_draft_tokens")
        at_least(self, 2, "max_new_tokens")
        at_least(self, 0, "online_wait")
        check_text_block(self.text, self.text_block)
        within_one(self, "lmbda", "target_fraction")

    def check_files(self, chat: ChatSettings) -> None:
        """Finds the named files and directories, before any model is loaded.

        Args:
            chat: How this run renders prompts; stored answers must have been rendered alike.

        Raises:
            DataError: One is missing or holds something else.
        """
        from specdistill.distill.answers.same_chat import check_same_chat
        from specdistill.distill.answers.shards import find_shards

        if self.rollouts is not None:
            if not Path(self.rollouts).is_dir():
                raise DataError(f"--rollouts {self.rollouts} is no directory of rollouts")
            find_shards(Path(self.rollouts))
            check_same_chat("--rollouts", Path(self.rollouts), chat)
        if self.online is not None and not Path(self.online).is_dir():
            raise DataError(f"--online {self.online} is no directory; the server's RejectionLog makes it")


@dataclass(frozen=True, kw_only=True)
class OnPolicySettings(EngineSettings):
    """The engine that writes the draft's own answers while it trains."""

    engine_memory: float = 0.3
    """Share of the GPU's memory that vLLM may take; for --rollout-engine vllm."""
    push_every: int = 1
    """Steps between two updates of the engine's weights; above 1 its answers are a few steps old."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "push_every")

    def refuse_idle(self) -> None:
        """Raises ConfigError for a setting of an engine where none is used."""
        super().refuse_idle()
        needs(self, self.uses_engine, "--rollout-engine vllm", "push_every")
