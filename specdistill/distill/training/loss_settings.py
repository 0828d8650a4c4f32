"""Settings of the loss, and the objective that they make together with a method. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdistill.distill.methods import Method
from specdistill.distill.training.head_settings import UnrolledLoss
from specdistill.distill.training.parallel_settings import ParallelLoss
from specdistill.errors import ConfigError
from specdistill.settings.checks import a_share, at_least, check_temperature, needs, within_one
from specdistill.settings.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """Which loss is minimised."""

    divergence: Literal[
        "auto", "fkl", "rkl", "jsd", "jeffreys", "skewed_kl", "tvd", "lk_alpha", "lk_lambda", "lk_argmax"
    ] = "auto"
    """Divergence to minimise; auto takes the method's own. fkl is for the target's answers. On the draft's own answers
    rkl, jsd and tvd did best in our study, and fkl and lk_lambda lost (docs/choose.md). jeffreys is half fkl and half
    rkl."""
    loss_temperature: float = 0.0
    """Divides both models' logits in the divergence; 0 takes --temperature (1 where that is 0). The loss is not
    multiplied by its square."""
    beta: float | None = None
    """Weight of the target in the mixture of jsd (left out: 0.5) and skewed_kl (0.1), from 0 to 1. jsd is divided by
    beta (1 - beta), so that it runs without a jump from fkl at 0 to rkl at 1; at 0.5 that is 4 times the usual jsd."""
    eta: float = 3.0
    """How fast lk_lambda moves from fkl to tvd as alpha grows (3 as published for EAGLE-3)."""
    ce_weight: float = 0.0
    """Share of cross entropy in the loss, on given and target-written tokens; never on the draft's own."""
    reference: str | None = None
    """AdaSPEC: an already distilled draft of the same start. Only the tokens where this run's draft is furthest behind
    it are trained on; goes with fkl."""
    select_fraction: float = 0.4
    """Share of a step's tokens, over all micro-batches and processes, that AdaSPEC trains on (0.4 as published)."""
    reward: str | None = None
    """Also maximise a reward on the draft's own answers: module:function, your function(prompt, text) -> float. The
    objective is the mean over answers of (1 - a) reward - a divergence (GKD), by REINFORCE with a leave-one-out
    baseline; a is --distill-weight. Answers that others wrote count with a times their divergence only."""
    distill_weight: float = 0.5
    """Weight a of the divergence in (1 - a) reward - a divergence. Both are one number per answer: the reward as your
    function gives it, the divergence as the mean over the answer's tokens, in nats. Lower a, or multiply the reward,
    where the divergence outweighs it."""

    def __post_init__(self) -> None:
        at_least(self, 0, "loss_temperature", "eta")
        check_temperature(self, "loss_temperature")
        within_one(self, "beta", "ce_weight", "distill_weight")
        a_share(self, "select_fraction")

    def kind(self, method: Method) -> str:
        """Name of the divergence that is minimised, `ce` for cross entropy."""
        if self.divergence != "auto":
            return self.divergence
        # REINFORCE plus reverse KL is the policy gradient of one objective (GKD, section 3).
        return "rkl" if self.reward is not None else method.loss

    def objective(self, method: Method, sampling: Sampling) -> Objective:
        """Resolves what was left open and refuses what contradicts itself.

        Args:
            method: Has a loss of its own.
            sampling: How rollouts are sampled.

        Raises:
            ConfigError: A setting belongs to another divergence, or rewards meet filtered answers.
        """
        kind = self.kind(method)
        if self.beta is not None and kind not in ("jsd", "skewed_kl"):
            raise ConfigError(f"--beta belongs to jsd and skewed_kl, but {kind} is minimised")
        needs(self, self.reference is not None, "--reference", "select_fraction")
        needs(self, self.reward is not None, "--reward", "distill_weight")
        needs(self, kind == "lk_lambda", f"--divergence lk_lambda, but {kind} is minimised", "eta")
        needs(self, kind != "ce", "a divergence, but cross entropy is the whole loss", "ce_weight")
        if kind == "skewed_kl" and self.beta in (0, 1):
            raise ConfigError("--beta must be inside (0, 1) for skewed_kl; at 0 it is fkl, at 1 nothing is learned")
        if self.reference is not None and kind != "fkl":
            raise ConfigError(
                f"--reference selects tokens for fkl only, but {kind} is minimised: with rkl or tvd selection "
                "hurts (AdaSPEC's own ablation)"
            )
        if self.reward is not None and (sampling.greedy or sampling.filtered):
            raise ConfigError(
                "--reward needs answers sampled from the whole distribution: set --temperature above 0 and leave "
                "--top-k, --top-p and --min-p away, or its gradient would be that of another policy"
            )
        return Objective(
            kind=kind,
            temperature=self.loss_temperature or sampling.temperature or 1.0,
            sampling_temperature=sampling.temperature,
            beta=self.beta,
            eta=self.eta,
            ce_weight=self.ce_weight,
            select_fraction=self.select_fraction,
            distill_weight=None if self.reward is None else self.distill_weight,
        )


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Loss that a run minimises, with nothing left open."""

    kind: str
    """Divergence, or `ce`."""
    temperature: float
    """Divides both models' logits in the divergence."""
    sampling_temperature: float
    """Temperature of the rollouts: that of REINFORCE's log-probabilities."""
    beta: float | None
    eta: float
    ce_weight: float
    select_fraction: float
    distill_weight: float | None
    """Weight of the divergence against a reward; None without a reward."""
    parallel: ParallelLoss | None = None
    """How the guesses of a parallel draft weigh; None for an ordinary draft."""
    head: UnrolledLoss | None = None
    """How the steps of a head weigh; None for any other draft."""

    @property
    def needs_target(self) -> bool:
        """Whether the target's distributions enter the loss."""
        return self.kind != "ce"
