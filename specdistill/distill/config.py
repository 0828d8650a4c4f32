"""Settings of `specdistill train-draft`, in parts; imports nothing heavy, so that --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Self

from cyclopts import Parameter

from specdistill.distill.methods import METHODS, Method, MethodName, check_method, method_help
from specdistill.distill.presets import PresetSettings, preset_settings
from specdistill.distill.processes.settings import ProcessSettings
from specdistill.distill.sequences.settings import OnPolicySettings, SequenceSettings
from specdistill.distill.target.place import TargetPlace
from specdistill.distill.target.settings import TargetSettings
from specdistill.distill.training.head_settings import HeadSettings
from specdistill.distill.training.loss_settings import LossSettings, Objective
from specdistill.distill.training.parallel_settings import ParallelSettings
from specdistill.distill.training.settings import EvaluationSettings, OptimiserSettings
from specdistill.errors import ConfigError
from specdistill.files.same_file import is_same_file
from specdistill.settings import checks
from specdistill.settings.adapter import AdapterSettings
from specdistill.settings.chat import ChatSettings
from specdistill.settings.machine import Machine
from specdistill.settings.parts import ESSENTIALS, MACHINE, Config, box, defaults
from specdistill.settings.sampling import Sampling
from specdistill.settings.scoring import CHOICES
from specdistill.settings.self_prompts import SelfPromptSettings, answers_read
from specdistill.settings.target_context import FLAGS, ContextSettings

MAY_CHANGE = {
    *("resume", "device", "threads", "output", "report_to"),
    *("target_server", "server_model", "server_concurrency", "server_patience"),
    # The remedies of a run that ran out of memory; they change no result beyond rounding.
    *("micro_batch_size", "gradient_checkpointing"),
}
"""Settings that may change when a run is resumed."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Distil a draft (student) toward its target (teacher)."""

    target: Annotated[str, Parameter(group=ESSENTIALS)]
    """Model to learn from: hub id, checkpoint or adapter directory, or .gguf file. It is never changed. For a draft,
    the model that is served. The draft's own start teaches something only where the target sees more than the draft
    (--target-system and the like) or is guided, or where answers are chosen or judged (best-of-n, --reward)."""
    draft: Annotated[str, Parameter(group=ESSENTIALS)]
    """Model that learns, as it is before training: hub id, checkpoint or adapter directory, or .gguf file; 'specdistill
    init-draft' cuts one out of the target. It is left as it is; the trained one goes to --output."""
    output: Annotated[str, Parameter(group=ESSENTIALS)]
    """Directory for the trained draft; must be new or empty."""
    method: Annotated[MethodName, Parameter(group=ESSENTIALS, help=method_help())] = "distillspec"
    """Which loss is minimised on whose text; a row of `METHODS`."""
    prompts: Annotated[str, Parameter(group=ESSENTIALS)] = "builtin:train"
    """Prompts to train on: builtin:train, humaneval, a .jsonl, .json, .csv, .parquet or .txt file, a datasets
    name[:split], or self:N for N that the target writes itself. Prompts that you serve are best. Without any, self:N
    gives as much text as you like, where the built-in ones are 84."""
    resume: Annotated[bool, Parameter(group=ESSENTIALS)] = False
    """Go on with the run that was cut off in --output, from its last checkpoint, with the same settings; start it where
    nothing is there yet. On one process the rest of the run is bit for bit what it would have been."""
    presets: Annotated[PresetSettings, box("Preset")] = field(default_factory=PresetSettings)
    adapter: Annotated[AdapterSettings, box("Adapter")] = field(default_factory=AdapterSettings)
    chat: Annotated[ChatSettings, box("Chat template")] = field(default_factory=ChatSettings)
    self_prompts: Annotated[SelfPromptSettings, box("Prompts from the target itself")] = field(
        default_factory=SelfPromptSettings
    )
    context: Annotated[ContextSettings, box("What only the target sees")] = field(default_factory=ContextSettings)
    sequences: Annotated[SequenceSettings, box("Text to train on")] = field(default_factory=SequenceSettings)
    sampling: Annotated[Sampling, box("Sampling of all rollouts")] = field(default_factory=Sampling)
    on_policy: Annotated[OnPolicySettings, box("Engine for the draft's own answers")] = field(
        default_factory=OnPolicySettings
    )
    loss: Annotated[LossSettings, box("Loss")] = field(default_factory=LossSettings)
    parallel_draft: Annotated[ParallelSettings, box("Parallel draft")] = field(default_factory=ParallelSettings)
    head: Annotated[HeadSettings, box("EAGLE-3 head")] = field(default_factory=HeadSettings)
    target_settings: Annotated[TargetSettings, box("Target")] = field(default_factory=TargetSettings)
    optimiser: Annotated[OptimiserSettings, box("Optimiser")] = field(default_factory=OptimiserSettings)
    evaluation: Annotated[EvaluationSettings, box("Evaluation and checkpoints")] = field(
        default_factory=EvaluationSettings
    )
    seed: Annotated[int, Parameter(group=MACHINE)] = 0
    """Random seed for sampling, shuffling and the on-policy coin flips."""
    machine: Annotated[Machine, box(MACHINE)] = field(default_factory=Machine)
    processes: Annotated[ProcessSettings, box(MACHINE)] = field(default_factory=ProcessSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_seed(self.seed)
        self.sampling.refuse_idle_filters()
        check_method(self.method, self.to_flat(), defaults(type(self)))
        self._check_prompts()
        _ = self.sequences.judge
        if self.context.adds_something and self.sequences.text is not None:
            raise ConfigError(f"--text has no prompts, to which {FLAGS} could add something; leave one of them away")
        self.on_policy.refuse_idle()
        if (self.method == "online") != (self.sequences.online is not None):
            raise ConfigError("--method online and --online DIR go together")
        self.place.refuse_settings(self.method, self.to_flat())
        objective = self.objective
        if self.method == "online" and objective.temperature != 1:
            raise ConfigError("a rejection log holds the target at temperature 1; set --loss-temperature 1")
        self._check_watch()
        self._check_parallel()
        self._check_sharing()
        self._check_reward()

    @classmethod
    def flat(cls, **settings: Any) -> Self:
        """As `Config.flat`, with the values of a named preset for settings that are left out."""
        preset = preset_settings(settings.get("preset", "none"), settings.get("method", "distillspec"))
        return super().flat(**(preset | settings))

    def _check_prompts(self) -> None:
        """Refuses prompts from the target itself where their answers would be read."""
        sequences = self.sequences
        answers = answers_read((sequences.scorer, sequences.strict_scorer), self.context.target_hint)
        if self.recipe.given_answers and sequences.text is None and self.place.name != "stored":
            answers = f"--method {self.method}"
        self.self_prompts.check(self.prompts, "train", answers)

    def _check_reward(self) -> None:
        """Refuses a reward that could judge no answer of the draft, or would move nothing."""
        if self.loss.reward is None:
            return
        sequences, steps, remedy = self.sequences, self.optimiser.steps, "or leave --reward away"
        if self.loss.distill_weight == 1:
            raise ConfigError(f"--distill-weight 1 leaves no weight to --reward; lower it, {remedy}")
        if self.optimiser.batch_size == 1:
            raise ConfigError(
                "--batch-size 1 leaves --reward no baseline, which is the mean reward of the step's other answers; "
                f"take at least 2 answers a step, {remedy}"
            )
        if self.method == "gkd" and sequences.lmbda == 0:
            raise ConfigError(f"--lmbda 0 leaves no answer of the draft that --reward could judge; raise it, {remedy}")
        fraction = sequences.target_fraction
        if self.method == "distillspec" and fraction is not None and round(fraction * steps) == steps:
            adapt = " (which --preset adapt sets)" if self.presets.preset == "adapt" and fraction == 1 else ""
            raise ConfigError(
                f"--target-fraction {fraction:g}{adapt} leaves none of {steps} steps to the draft's own answers, which "
                f"--reward could judge; lower it, {remedy}"
            )

    def _check_watch(self) -> None:
        """Refuses to watch what nothing measures."""
        if self.watch == "score" and not self.sequences.judges_text:
            raise ConfigError(f"--watch score needs --scorer {CHOICES}")
        if self.watch == "reward" and self.loss.reward is None:
            raise ConfigError("--watch reward needs --reward module:function")

    def _check_parallel(self) -> None:
        """Refuses what a parallel draft can't be trained with."""
        wanted = self.parallel_draft.wanted
        if self.watch == "tokens_per_call" and not wanted:
            raise ConfigError("--watch tokens_per_call needs --parallel; a head is watched by it anyway")
        if not wanted:
            return
        if self.method == "online":
            raise ConfigError(
                "--parallel needs texts, and a rejection log holds single tokens; choose another --method"
            )
        if self.optimiser.packing:
            raise ConfigError(
                "--parallel has mask tokens behind each text, so texts can't share rows; leave --packing away"
            )
        if self.loss.reward is not None or self.loss.reference is not None:
            raise ConfigError("--parallel goes without --reward and --reference, which judge single tokens or answers")
        if self.presets.judges_start:
            raise ConfigError(
                "--enough-alpha and --tolerated-drop, which --preset adapt sets, judge the first token alone; with "
                "--parallel set both to 0"
            )
        if self.watch == "loss":
            raise ConfigError(
                "--watch loss would be that of a parallel draft's first guess alone; leave --watch away, and tokens "
                "per target call decide, or take alpha"
            )
        checks.within_answers(self.parallel_draft.parallel, self._longest_answer, "--max-new-tokens")
        if self.parallel_draft.parallel_confidence and not self.objective.needs_target:
            raise ConfigError(
                "--parallel-confidence weighs by the target's probabilities, and cross entropy looks at none; choose a "
                "--divergence"
            )

    @property
    def _longest_answer(self) -> int | None:
        """Most tokens of an answer that is trained on; None where answers or blocks were stored, of any length."""
        sequences = self.sequences
        stored = self.place.name == "stored" or sequences.text is not None or sequences.rollouts is not None
        return None if stored else sequences.max_new_tokens

    def _check_sharing(self) -> None:
        """Refuses what goes against shared weights, or against an engine that takes whole ones."""
        draft, target = self.processes.shards_draft, self.processes.shards_target
        optimiser = self.optimiser
        if self.on_policy.uses_engine and (draft or optimiser.lora_rank):
            raise ConfigError("--rollout-engine vllm needs a draft's whole weights; leave --shard and --lora-rank away")
        if self.on_policy.uses_engine and self.target_settings.soft_labels is not None:
            raise ConfigError("--rollout-engine writes the draft's own answers, which --soft-labels leaves out")
        if (draft or target) and self.on_policy.capture_steps:
            raise ConfigError(
                "--capture-steps needs weights that stay in their place, and --shard moves them; choose one"
            )
        if draft and (optimiser.lora_rank or optimiser.precision == "float16" or self.loss.reference):
            raise ConfigError("--shard draft goes without --lora-rank, --precision float16 and --reference")
        if not target:
            return
        memory = self.target_settings.target_memory
        if memory != "whole":
            raise ConfigError(f"--shard target and --target-memory {memory} do not go together; choose one")
        if not self.place.has_weights or self.target_settings.guidance or self.method in ("skd", "best-of-n"):
            raise ConfigError(
                "--shard target needs a target in memory, goes without --guidance, and not with skd or best-of-n"
            )
        sequences = self.sequences
        written = self.method in ("seqkd", "gkd", "distillspec") and sequences.rollouts is None
        if written and not (self.method == "gkd" and sequences.lmbda == 1) and sequences.target_fraction != 0:
            raise ConfigError(
                "a sharded target would write its answers in lockstep; let 'specdistill generate' write them, and name "
                "the directory with --rollouts"
            )

    @property
    def watch(self) -> str:
        """Held-out number that is watched, with `auto` resolved."""
        watch = self.evaluation.watch
        if watch != "auto":
            return watch
        if self.loss.reward is not None:
            return "reward"
        if self.parallel_draft.wanted:
            return "tokens_per_call"
        # A model that is its own target starts at alpha 1, which its training can only lower.
        if self.recipe.learns_from_text and self._is_itself:
            if self.sequences.judges_text:
                return "score"
            if self.recipe.given_answers and self.sequences.text is None:
                return "loss"
        return "alpha"

    @property
    def _is_itself(self) -> bool:
        """Whether target and draft are one directory, file or name."""
        return Path(self.target) == Path(self.draft) or is_same_file(self.target, self.draft)

    def for_draft(self, is_head: bool) -> tuple[Objective, str]:
        """Loss and watched number, which depend on what the draft turns out to be.

        Raises:
            ConfigError: Settings of heads were changed for another draft.
        """
        if not is_head:
            self.head.refuse_idle()
            return self.objective, self.watch
        watch = "tokens_per_call" if self.evaluation.watch == "auto" else self.evaluation.watch
        return replace(self.objective, head=self.head.loss), watch

    @property
    def recipe(self) -> Method:
        """The method's row of `METHODS`."""
        return METHODS[self.method]

    @property
    def teaches_itself(self) -> bool:
        """Whether a target of the draft's own weights would teach something: sees more, or its text says more."""
        if self.context.adds_something or self.target_settings.guidance or self.loss.reward is not None:
            return True
        if self.parallel_draft.wanted:
            # The masks teach it something whatever the target is.
            return True
        if self.target_settings.target_memory in ("int8", "nf4") or self.method in ("sft", "online"):
            return True
        # Cross entropy on samples of the model itself, at their own temperature, has the gradient 0 on average.
        sequences, temperature = self.sequences, self.sampling.temperature
        stored = sequences.rollouts is not None or self.place.name == "stored"
        plain = temperature == self.objective.temperature and not self.sampling.filtered and not stored
        if self.objective.kind == "ce":
            return self.method == "best-of-n" or not plain
        # Mixed-in cross entropy is never on what the draft itself writes.
        own = {"gkd": sequences.lmbda == 1, "distillspec": sequences.target_fraction == 0 or plain}
        return self.loss.ce_weight > 0 and not own.get(self.method, False)

    @property
    def place(self) -> TargetPlace:
        """Where the target is."""
        return self.target_settings.place

    @property
    def objective(self) -> Objective:
        """Loss that is minimised, with nothing left open.

        Raises:
            ConfigError: The loss's settings contradict the method or the sampling.
        """
        return replace(self.loss.objective(self.recipe, self.sampling), parallel=self.parallel_draft.loss)
