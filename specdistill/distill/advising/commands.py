"""The commands that make and measure an option, with the user's own names."""

from __future__ import annotations

from specdistill.distill.advising.config import GIVEN, TARGET, AdviseConfig
from specdistill.distill.sequences.inputs import ROLLOUTS_DIRECTORY
from specdistill.distill.training.settings import OptimiserSettings
from specdistill.evaluation.advice import HEAD, PARALLEL, TimedKind
from specdistill.evaluation.advice_known import Pace
from specdistill.evaluation.recommend import next_command
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

    def __call__(self, name: str, kind: TimedKind | None, num_draft_tokens: int | None, pace: Pace | None) -> list[str]:
        """Commands of an option, in order.

        Args:
            name: The option.
            kind: Its draft; None for a way without one.
            num_draft_tokens: Its draft length.
            pace: How fast it trains, a parallel draft with the ordinary one before it; None leaves the number of steps
                open.
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
        start = command("init-draft", *shared, *shape, *ids, *prompts, "--output", begin)
        if kind.kind == PARALLEL:
            # An ordinary draft learns the later guesses far sooner than a fresh cut.
            first = f"first-{kind.layers}"
            training = [
                self._train(begin, pace, [], first),
                self._train(first, pace, self._made_parallel(first), trained),
            ]
            beside = ["--compare", first]
        else:
            more = changed_flags(config, ("unroll",)) if kind.kind == HEAD else []
            training, beside = [self._train(begin, pace, more, trained)], []
        served = changed_flags(config, (*_SAMPLING, "rule", "batch_size"))
        measure = command("bench", *shared, "--draft", trained, *beside, *unseen_prompts(config.prompts), *served)
        return [start, *training, measure]

    def _made_parallel(self, first: str) -> list[str]:
        """Flags of the run that goes on from an ordinary draft; it takes the answers that were written for that."""
        answers = ["--rollouts", f"{first}/{ROLLOUTS_DIRECTORY}"] if self._config.answers == TARGET else []
        return [*answers, "--parallel", str(self._config.drafts.parallel)]

    def _train(self, draft: str, pace: Pace | None, more: list[str], output: str) -> str:
        """One run of training; two runs of one option take as many steps each."""
        config, words = self._config, list[str]()
        if config.answers == GIVEN:
            # The other methods would have the target write answers first, which is not in the minutes.
            words += ["--method", "supervised-kd"]
        elif config.answers != TARGET:
            words += ["--rollouts", config.answers]
        words += more
        if pace is not None:
            tokens = pace.tokens(60 * config.training_minutes)
            words += ["--steps", str(max(1, round(tokens / (OptimiserSettings().batch_size * self._mean_tokens))))]
        words += [*changed_flags(config, ("max_new_tokens", *_SAMPLING)), "--rule", self._rule]
        shared, prompts = changed_flags(config, PROJECT), changed_flags(config, ("prompts",))
        return command("train-draft", *shared, "--draft", draft, *prompts, *words, "--output", output)
