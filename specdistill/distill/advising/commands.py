"""The commands that make and measure an option, with the user's own names."""

from __future__ import annotations

from specdistill.distill.advising.config import GIVEN, TARGET, AdviseConfig
from specdistill.distill.training.settings import OptimiserSettings
from specdistill.evaluation.advice import HEAD, PARALLEL, TimedKind
from specdistill.evaluation.recommend import next_command
from specdistill.evaluation.training_pace import TrainingPace
from specdistill.settings.command_line import PROJECT, changed_flags, command, unseen_prompts

_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


class Commands:
    """Writes them.

    Args:
        config: The settings.
        rule: How the server accepts.
        mean_tokens: Tokens of an answer.
        vocab_size: Ids of the target.
    """

    def __init__(self, config: AdviseConfig, rule: str, mean_tokens: float, vocab_size: int) -> None:
        self._config, self._rule, self._mean_tokens, self._vocab_size = config, rule, mean_tokens, vocab_size

    def __call__(
        self, name: str, kind: TimedKind | None, num_draft_tokens: int | None, pace: TrainingPace | None
    ) -> list[str]:
        """Commands of an option, in order.

        Args:
            name: The option.
            kind: Its draft; None for a way without one.
            num_draft_tokens: Its draft length.
            pace: How fast it trains; None leaves the number of steps open.
        """
        config = self._config
        shared = changed_flags(config, PROJECT)
        if kind is None:
            same = changed_flags(config, ("prompts", "num_prompts", "max_new_tokens", *_SAMPLING))
            return [next_command(name, num_draft_tokens or 1, shared, None, same)]
        begin, trained = ("head", "head-trained") if kind.kind == HEAD else (f"cut-{kind.layers}", f"draft-{name}")
        shape = ["--kind", "eagle3"] if kind.kind == HEAD else ["--layers", str(kind.layers)]
        keep = min(config.drafts.vocab_keep, self._vocab_size)
        # init-draft leaves a cut's head whole by itself, and a head's not.
        ids = ["--vocab-keep", str(keep)] if keep and (kind.kind == HEAD or keep < self._vocab_size) else []
        prompts = changed_flags(config, ("prompts",))
        return [
            command("init-draft", *shared, *shape, *ids, *prompts, "--output", begin),
            command(
                "train-draft", *shared, "--draft", begin, *prompts, *self._training(kind, pace), "--output", trained
            ),
            command(
                "bench",
                *shared,
                "--draft",
                trained,
                *unseen_prompts(config.prompts),
                *changed_flags(config, (*_SAMPLING, "rule", "batch_size")),
            ),
        ]

    def _training(self, kind: TimedKind, pace: TrainingPace | None) -> list[str]:
        config, words = self._config, []
        if config.answers == GIVEN:
            # The other methods would have the target write answers first, which is not in the minutes.
            words += ["--method", "supervised-kd"]
        elif config.answers != TARGET:
            words += ["--rollouts", config.answers]
        if kind.kind == PARALLEL:
            words += ["--parallel", str(config.drafts.parallel)]
        if kind.kind == HEAD:
            words += changed_flags(config, ("unroll",))
        if pace is not None:
            tokens = pace.tokens(60 * config.training_minutes)
            words += ["--steps", str(max(1, round(tokens / (OptimiserSettings().batch_size * self._mean_tokens))))]
        return [*words, *changed_flags(config, ("max_new_tokens", *_SAMPLING)), "--rule", self._rule]
