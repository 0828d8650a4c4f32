"""Settings of `specdistill train-draft`; imports nothing heavy, so --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError
from specdistill.settings.checks import at_least, within_one
from specdistill.settings.parts import Config

METHODS = ("sft", "seqkd", "best-of-n", "supervised-kd", "gkd", "distillspec", "skd", "online")
TEXT_METHODS = ("sft", "seqkd", "best-of-n")
"""They learn from text by cross entropy unless a divergence is asked for."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Distil a draft (student) toward its target (teacher)."""

    target: str
    """The model being served: hub id, checkpoint directory or .gguf file. It is never changed. Name the draft's own
    start here for self-distillation."""
    draft: str
    """Where the draft starts: hub id, checkpoint directory or .gguf file; 'specdistill init-draft' makes one."""
    output: str
    """Directory for the trained draft; must be new or empty."""
    method: Literal["sft", "seqkd", "best-of-n", "supervised-kd", "gkd", "distillspec", "skd", "online"] = "distillspec"
    """sft: cross entropy on given answers (field answer). seqkd: cross entropy on the target's answers. best-of-n: the
    same on the best of N of them. supervised-kd: forward KL on given answers. gkd: JSD on a mixture of the draft's and
    fixed answers. distillspec: forward KL on the target's sampled answers, then on the draft's own. skd: forward KL on
    answers that draft and target write together (speculative KD). online: forward KL where a running server's target
    corrected the draft."""
    divergence: Literal[
        "auto", "fkl", "rkl", "jsd", "jeffreys", "skewed_kl", "tvd", "lk_alpha", "lk_lambda", "lk_argmax"
    ] = "auto"
    """What is minimised; auto takes the method's own. For a server that samples, lk_lambda ends nearest to alpha; for
    one that drafts by argmax above temperature 0 (vLLM's default, SGLang, llama.cpp) lk_argmax, after fkl."""
    prompts: str = "builtin:train"
    """builtin:train, humaneval, a .jsonl or .txt file, or a datasets name[:split]. The served domain is best."""
    text: str | None = None
    """Of sft and supervised-kd: train on raw text instead of answers, as in pre-training: a .txt file (documents parted
    by blank lines), a .jsonl file or a datasets name[:split] with a field text. Prompts then only judge the draft."""
    heldout_prompts: int = 16
    """Prompts kept out of training, split off by a hash of their text; early stopping watches them."""
    rollouts: str | None = None
    """Take the target's answers from this directory, written by 'specdistill generate' or an earlier run (its folder
    rollouts), instead of sampling them."""
    soft_labels: str | None = None
    """Of supervised-kd and distillspec: train on the answers and the target's distributions in this directory, written
    by 'specdistill annotate'. Of the target only its configuration and tokenizer are read; distillspec then stays on
    those answers."""
    target_server: str | None = None
    """URL of a vLLM or SGLang server of the target: it writes the answers and labels every token; of --target only
    configuration and tokenizer are read here. For seqkd, supervised-kd, gkd and distillspec at temperature 1 (or 0). A
    key is read from OPENAI_API_KEY."""
    server_model: str | None = None
    """Of --target-server: the name under which it serves the target; left out where it serves one model."""
    server_top_k: int = 20
    """Of --target-server: likeliest ids per token, the rest is one outcome of the loss (20 is vLLM's own limit; its
    --max-logprobs raises it)."""
    server_concurrency: int = 8
    """Of --target-server: requests under way at a time."""
    server_patience: float = 600.0
    """Of --target-server: seconds to try again while it is down or overloaded, before the run is saved and ends."""
    rollouts_per_prompt: int = 4
    """Answers that the target samples per prompt (several sampled ones beat one greedy one); best-of-n keeps one."""
    scorer: str = "target-likelihood"
    """Of best-of-n: target-likelihood, exact-match (against the field answer), or module:function, your own
    function(prompt, text) -> float; the highest score wins, the target's likelihood decides ties."""
    max_new_tokens: int = 128
    """Tokens per answer, in rollouts and on the held-out prompts; with --text, tokens per block."""
    temperature: float = 1.0
    """Of all rollouts: train at the temperature that will be served. 0 rolls out greedily."""
    top_k: int = 0
    """Of all rollouts; 0 keeps all ids."""
    top_p: float = 1.0
    """Of all rollouts; 1 keeps all ids."""
    min_p: float = 0.0
    """Of all rollouts; 0 keeps all ids."""
    loss_temperature: float = 0.0
    """Divides both models' logits in the divergence; 0 takes the rollouts' temperature (1 where that is 0). The loss is
    not multiplied by its square."""
    beta: float | None = None
    """The target's weight in the mixture of jsd (left out: 0.5) and skewed_kl (0.1), from 0 to 1. jsd is divided by
    beta (1 - beta), so that it runs without a jump from fkl at 0 to rkl at 1; at 0.5 that is 4 times the usual jsd."""
    eta: float = 3.0
    """Of lk_lambda: how fast it moves from fkl to tvd as alpha grows (3 as published for EAGLE-3)."""
    ce_weight: float = 0.0
    """Share of cross entropy in the loss, on given and target-written tokens; the draft's own are never its labels."""
    reference: str | None = None
    """Of AdaSPEC token selection (with fkl): a draft of the same start, already distilled. Only the tokens where this
    run's draft is furthest behind it are trained on."""
    select_fraction: float = 0.4
    """Of AdaSPEC: share of a step's tokens that are trained on (0.4 as published)."""
    reward: str | None = None
    """Of gkd and distillspec: module:function, your function(prompt, text) -> float on the draft's own answers. What is
    maximised is (1 - a) reward - a divergence, by REINFORCE with a leave-one-out baseline."""
    distill_weight: float = 0.5
    """a in that formula."""
    guidance: float = 0.0
    """Distil a target under classifier-free guidance of this weight w: (1 + w) log p(y|x) - w log p(y|negative)."""
    negative_prompt: str | None = None
    """Of --guidance: the user's turn that the target is pushed away from."""
    rollout_engine: Literal["transformers", "vllm"] = "transformers"
    """Of gkd and distillspec: what writes the draft's own answers. vllm: vLLM in this process (install it beside
    specdistill), which gets the draft's new weights every --push-every steps. 'specdistill generate' has it for the
    target's answers."""
    push_every: int = 1
    """Of --rollout-engine vllm: steps between pushes; above 1 the answers are a few steps old."""
    engine_memory: float = 0.3
    """Of --rollout-engine vllm: share of the GPU's memory that vLLM may take."""
    lmbda: float = 0.5
    """Of gkd: share of steps that train on the draft's own answers."""
    target_fraction: float | None = None
    """Of distillspec: share of steps on the target's answers before the draft's own begin. Left out: 0.6, or 1 for a
    draft that init-draft just cut, whose own answers are still noise to learn from."""
    skd_top_k: int = 25
    """Of skd: a draft token outside the target's top K is replaced (25 as published)."""
    skd_num_draft_tokens: int = 5
    """Of skd: draft tokens per check by the target (5 as published)."""
    online: str | None = None
    """Of online: the directory where the server's specdistill.serving.online.RejectionLog writes. Each look that finds
    a better draft replaces the checkpoint in --output file by file, weights last, for the server to load."""
    online_wait: float = 600.0
    """Of online: seconds to wait for a first record before the run ends."""
    target_memory: Literal["whole", "offloaded", "int8", "nf4"] = "whole"
    """How the target's layers lie in memory. offloaded: in the CPU's, each visits the GPU while it runs: exact, slow.
    int8, nf4: quantised by bitsandbytes (needs specdistill[quantised]): right if that is what you serve, else the draft
    learns a slightly different target."""
    shard: Literal["none", "draft", "target", "both"] = "none"
    """With several processes (accelerate launch): what is parted among them as FSDP2 and ZeRO-3 do, instead of lying
    whole in each. A sharded target needs stored answers (--rollouts) or given ones."""
    steps: int = 300
    """Optimiser steps at most."""
    batch_size: int = 8
    """Answers per optimiser step."""
    micro_batch_size: int = 0
    """Answers per forward and backward pass (gradient accumulation); 0 takes them all at once. The loss is the mean
    over the tokens of the whole step either way."""
    learning_rate: float = 0.0
    """Peak of AdamW; 0 chooses by the draft's size (below 100M, below 300M, above): 3e-4, 1e-4, 1e-5 for a trained
    model, which higher rates spoil, and 1.5e-3, 5e-4, 1e-4 for one that init-draft just cut or for LoRA."""
    warmup: float = 0.1
    """Share of steps with a rising learning rate; after it a cosine falls to a tenth of the peak."""
    weight_decay: float = 0.0
    """Of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    lora_rank: int = 0
    """Train LoRA adapters of this rank (needs specdistill[lora]) and save the merged weights; 0 trains all weights,
    which raises alpha more."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the draft's forward pass; its weights, their gradients and the loss stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in backward to save memory; rollouts keep their KV cache."""
    rule: Literal["greedy", "sampled", "argmax_draft"] = "sampled"
    """The alpha that early stopping watches: take the rule that the server uses."""
    eval_every: int = 25
    """Steps between looks at the held-out alpha; the best draft so far is saved each time."""
    patience: int = 5
    """Stop after this many looks without a new best; 0 never stops early."""
    checkpoint_every: int = 0
    """Steps between checkpoints to resume from, a multiple of eval_every; 0 writes one at every look. The two newest
    are kept while the run goes on."""
    resume: bool = False
    """Go on with the run that was cut off in --output, from its last checkpoint, with the same settings; where nothing
    has begun there, begin. On one process the rest of the run is bit for bit what it would have been."""
    report_to: tuple[str, ...] = ()
    """Trackers beside history.jsonl: tensorboard, wandb, mlflow, or another that transformers knows."""
    seed: int = 0
    """Of sampling, shuffling and the mixture's coin."""
    device: str = "auto"
    """A torch device; auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the target's weights; the draft trains in float32."""
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""

    def __post_init__(self) -> None:
        # A YAML file gives a list.
        object.__setattr__(self, "report_to", tuple(self.report_to))
        at_least(self, 1, "heldout_prompts", "rollouts_per_prompt", "skd_top_k", "skd_num_draft_tokens")
        at_least(self, 1, "steps", "batch_size", "eval_every")
        at_least(self, 1, "server_top_k", "server_concurrency")
        at_least(self, 0, "server_patience")
        at_least(self, 1, "push_every")
        at_least(self, 2, "max_new_tokens")
        at_least(self, 0, "temperature", "top_k", "learning_rate", "weight_decay", "patience", "threads", "eta")
        at_least(
            self, 0, "online_wait", "loss_temperature", "micro_batch_size", "lora_rank", "guidance", "checkpoint_every"
        )
        within_one(self, "lmbda", "target_fraction", "warmup", "beta", "ce_weight", "distill_weight")
        if self.method not in METHODS:
            raise ConfigError(f"unknown --method {self.method!r}; choose one of {', '.join(METHODS)}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise ConfigError(f"--min-p must be in [0, 1), got {self.min_p}")
        if not 0 < self.select_fraction <= 1:
            raise ConfigError(f"--select-fraction must be in (0, 1], got {self.select_fraction}")
        if self.max_grad_norm <= 0:
            raise ConfigError(f"--max-grad-norm must be above 0, got {self.max_grad_norm}")
        if self.checkpoint_every % self.eval_every:
            raise ConfigError(
                f"--checkpoint-every {self.checkpoint_every} must be a multiple of --eval-every {self.eval_every}"
            )
        self._check_combinations()
        self._check_absent_target()
        self._check_sharding()
        self._check_engine()

    def _check_combinations(self) -> None:
        if self.method in ("sft", "seqkd") and self.divergence != "auto":
            raise ConfigError(
                f"--method {self.method} minimises cross entropy; leave --divergence away, or use supervised-kd"
            )
        if self.rollouts is not None and (self.method in ("sft", "supervised-kd", "skd") or self.text is not None):
            raise ConfigError(f"--rollouts are the target's answers, which --method {self.method} does not use")
        if self.text is not None and self.method not in ("sft", "supervised-kd"):
            raise ConfigError(f"--text is trained on by sft and supervised-kd, not by --method {self.method}")
        if self.beta is not None and self.loss not in ("jsd", "skewed_kl"):
            raise ConfigError(f"--beta belongs to jsd and skewed_kl, but {self.loss} is minimised")
        if self.loss == "skewed_kl" and self.beta in (0, 1):
            raise ConfigError("--beta must be inside (0, 1) for skewed_kl; at 0 it is fkl, at 1 nothing is learned")
        if self.reference is not None and self.loss != "fkl":
            raise ConfigError(
                f"--reference selects tokens for fkl only, but {self.loss} is minimised: with rkl or tvd selection "
                "hurts (AdaSPEC's own ablation)"
            )
        if self.reward is not None and self.method not in ("gkd", "distillspec"):
            raise ConfigError(f"--reward judges the draft's own answers, which --method {self.method} does not make")
        if self.reward is not None and (self.temperature == 0 or self.top_k or self.top_p < 1 or self.min_p):
            raise ConfigError(
                "--reward needs answers sampled from the whole distribution: set --temperature above 0 and leave "
                "--top-k, --top-p and --min-p away, or its gradient would be that of another policy"
            )
        if (self.method == "online") != (self.online is not None):
            raise ConfigError("--method online and --online DIR go together")
        if self.method == "online" and (self.ce_weight or self.reference or self.guidance):
            raise ConfigError(
                "--method online knows the target's top ids only; leave --ce-weight, --reference, --guidance"
            )
        if self.method == "online" and (self.loss_temperature or self.temperature or 1.0) != 1.0:
            raise ConfigError("a rejection log holds the target at temperature 1; set --loss-temperature 1")
        if bool(self.guidance) != (self.negative_prompt is not None):
            raise ConfigError("--guidance and --negative-prompt go together")
        if self.guidance and self.method == "skd":
            raise ConfigError("--guidance does not go with --method skd, whose target checks while it writes")

    def _check_absent_target(self) -> None:
        """What needs the target's weights does not go where only its labels are at hand."""
        if self.soft_labels is not None and self.target_server is not None:
            raise ConfigError("--soft-labels and --target-server are two ways to do without the target; choose one")
        flag = "--target-server" if self.soft_labels is None else "--soft-labels"
        if self.target_is_present:
            return
        allowed = ("supervised-kd", "distillspec")
        if self.target_server is not None:
            allowed += ("seqkd", "gkd")
        if self.method not in allowed:
            raise ConfigError(f"{flag} goes with --method {', '.join(allowed)}, not with {self.method}")
        if self.target_memory != "whole":
            raise ConfigError(f"{flag} loads no target that --target-memory {self.target_memory} could keep small")
        for name in ("guidance", "reference", "text"):
            if getattr(self, name):
                raise ConfigError(f"--{name} needs the target itself, not only its labels; leave {flag} away")
        if self.top_k or self.top_p < 1 or self.min_p:
            raise ConfigError(f"{flag} knows unfiltered distributions only; leave --top-k, --top-p and --min-p away")
        if self.soft_labels is not None:
            if self.target_fraction not in (None, 1) or self.reward is not None:
                raise ConfigError("--soft-labels knows stored answers, not the draft's own; set --target-fraction 1")
            if self.rollouts is not None:
                raise ConfigError("--soft-labels brings its answers along; leave --rollouts away")
            return
        if self.temperature not in (0, 1) or self.loss_temperature not in (0, 1):
            raise ConfigError(
                "a server tells probabilities at temperature 1 only; set --temperature 1 or 0, and --loss-temperature 1"
            )

    def _check_engine(self) -> None:
        if self.rollout_engine == "transformers":
            return
        if self.method not in ("gkd", "distillspec") or self.soft_labels is not None:
            raise ConfigError(f"--rollout-engine writes the draft's own answers, which --method {self.method} has not")
        if self.shards_draft or self.lora_rank:
            raise ConfigError("--rollout-engine vllm needs a draft's whole weights; leave --shard and --lora-rank away")
        if not 0 < self.engine_memory < 1:
            raise ConfigError(f"--engine-memory must be in (0, 1), got {self.engine_memory}")

    def _check_sharding(self) -> None:
        if self.shards_draft and (self.lora_rank or self.precision == "float16" or self.reference):
            raise ConfigError("--shard draft goes without --lora-rank, --precision float16 and --reference")
        if not self.shards_target:
            return
        if self.target_memory != "whole":
            raise ConfigError(f"--shard target and --target-memory {self.target_memory} do not go together; choose one")
        if not self.target_is_present or self.guidance or self.method in ("skd", "best-of-n"):
            raise ConfigError(
                "--shard target needs a target in memory, goes without --guidance, and not with skd or best-of-n"
            )
        written = self.method in ("seqkd", "gkd", "distillspec") and self.rollouts is None
        if written and not (self.method == "gkd" and self.lmbda == 1) and self.target_fraction != 0:
            raise ConfigError(
                "a sharded target would write its answers in lockstep; let 'specdistill generate' write them, and name "
                "the directory with --rollouts"
            )

    @property
    def shards_draft(self) -> bool:
        """Whether --shard names the draft."""
        return self.shard in ("draft", "both")

    @property
    def shards_target(self) -> bool:
        """Whether --shard names the target."""
        return self.shard in ("target", "both")

    @property
    def target_is_present(self) -> bool:
        """Whether the target's weights are loaded."""
        return self.soft_labels is None and self.target_server is None

    @property
    def loss(self) -> str:
        """The divergence that is minimised, `ce` for cross entropy."""
        if self.divergence != "auto":
            return self.divergence
        if self.method in TEXT_METHODS:
            return "ce"
        if self.reward is not None:
            return "rkl"
        return {"gkd": "jsd"}.get(self.method, "fkl")
