"""Settings of the text that a run trains on. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

# cyclopts reads the annotations of inherited settings in this module, so their names must be known here too.
from specdistill.distill.answers.settings import EngineSettings, JudgeSettings, check_text_block
from specdistill.distill.answers.settings import RolloutEngineName as RolloutEngineName
from specdistill.errors import ConfigError, DataError
from specdistill.settings.chat import ChatSettings
from specdistill.settings.checks import at_least, check_temperature, needs, within_one
from specdistill.settings.parts import ESSENTIALS
from specdistill.settings.sampling import Sampling
from specdistill.settings.scoring import CHOICES, LIKELIHOOD


@dataclass(frozen=True, kw_only=True)
class SequenceSettings:
    """Where a run's sequences come from."""

    max_new_tokens: Annotated[int, Parameter(group=ESSENTIALS)] = 128
    """Tokens per answer, in rollouts and on the held-out prompts. Longer given answers are cut and counted."""
    heldout_prompts: int = 16
    """Prompts kept out of training to judge the draft, at most half of them; chosen by a hash of their text. Early
    stopping watches them."""
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
    """Answers that the target samples per prompt; always 1 at --temperature 0. best-of-n keeps the best, or all right
    ones."""
    scorer: str = LIKELIHOOD
    """Judges the text of answers: exact-match, number (the last number in the text) or json (equal values) compare with
    the field answer; module:function is your own function(prompt, text) -> float. Each evaluation then scores answers
    that the draft writes itself, greedily, to the held-out prompts. best-of-n also chooses by it, and leaves
    out prompts that no answer is right for; target-likelihood chooses by the target's likelihood, which also decides
    ties, and scores nothing."""
    score_threshold: float | None = None
    """Score from which on an answer is right. Left out: 1 for exact-match, number and json, and with --keep-correct;
    else the best answer of a function is kept whatever it scores."""
    keep_correct: bool = False
    """best-of-n trains on every right answer to a prompt instead of the best one, each text once. More answers per
    prompt (--rollouts-per-prompt) then teach more ways to the same result."""
    strict_scorer: str | None = None
    """A stricter scorer, of the same kinds as --scorer, that judges the right answers again, with the same threshold.
    The share that it rejects, the false positives, is reported; they are trained on all the same."""
    lmbda: float = 0.5
    """Share of gkd's steps that train on the draft's own answers."""
    target_fraction: float | None = None
    """Share of distillspec's steps on the target's answers, before the draft's own begin. Below 1, set --divergence to
    jsd or rkl: fkl lost on own answers in our study (docs/choose.md). Left out: 1, or 0.6 with --reward or
    --rollout-engine vllm, which need answers of the draft."""
    skd_top_k: int = 25
    """skd replaces a draft token that is not among the target's K likeliest (25 as published)."""
    skd_num_draft_tokens: int = 5
    """Draft tokens between two checks of skd's target (5 as published)."""
    skd_target_temperature: float | None = None
    """Temperature at which skd's target samples its replacements (0.2 as published). Left out: --temperature, at which
    the draft writes."""
    skd_target_top_p: float | None = None
    """Top-p with which skd's target samples its replacements (0.5 as published). Left out: --top-p."""
    online: str | None = None
    """Directory where a server's specdistill.serving.online.RejectionLog writes; for --method online. Each evaluation
    that finds a better draft replaces the checkpoint in --output file by file, weights last, for the server to load."""
    online_wait: float = 600.0
    """Seconds that --method online waits for a first record before the run ends."""

    @property
    def judges_text(self) -> bool:
        """Whether the scorer reads texts, and so can judge the draft's own answers."""
        return self.scorer != LIKELIHOOD

    def __post_init__(self) -> None:
        at_least(self, 1, "heldout_prompts", "rollouts_per_prompt", "skd_top_k", "skd_num_draft_tokens")
        at_least(self, 2, "max_new_tokens")
        at_least(self, 0, "online_wait")
        check_text_block(self.text, self.text_block)
        within_one(self, "lmbda", "target_fraction", "skd_target_top_p")
        if self.skd_target_temperature is not None:
            check_temperature(self, "skd_target_temperature")
        if self.skd_target_top_p == 0:
            raise ConfigError(
                "--skd-target-top-p must be above 0; --skd-target-temperature 0 keeps the likeliest token"
            )

    def skd_target_sampling(self, sampling: Sampling) -> Sampling:
        """How skd's target samples its replacements.

        Args:
            sampling: How the draft writes; the target follows it in what is not set for itself.
        """
        temperature, top_p = self.skd_target_temperature, self.skd_target_top_p
        return replace(
            sampling,
            temperature=sampling.temperature if temperature is None else temperature,
            top_p=sampling.top_p if top_p is None else top_p,
        )

    @property
    def judge(self) -> JudgeSettings:
        """The scorers of best-of-n's answers.

        Raises:
            ConfigError: They contradict each other.
        """
        if self.scorer == LIKELIHOOD and self.keep_correct:
            raise ConfigError(f"--keep-correct needs a --scorer that tells right from wrong: name {CHOICES}")
        return JudgeSettings(scorer=self.scorer, score_threshold=self.score_threshold, strict_scorer=self.strict_scorer)

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
    capture_steps: bool = False
    """Write answers by captured steps: as CUDA graphs on a GPU, compiled by torch.compile on a CPU, where they give the
    same states faster. Both models' steps are tried, and how they run is said. Compiling takes minutes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "push_every")

    def refuse_idle(self) -> None:
        """Raises ConfigError for a setting of an engine where none is used."""
        super().refuse_idle()
        needs(self, self.uses_engine, "--rollout-engine vllm", "push_every")
