"""The checks of a training run that need no weights, and its prompts."""

from __future__ import annotations

from specdistill.decoding.self_prompts import Weights, prompts_file
from specdistill.distill.config import TrainConfig
from specdistill.distill.sequences.run_prompts import RunPrompts
from specdistill.distill.target import itself
from specdistill.distill.target.place import Served, Stored
from specdistill.distill.training.callbacks import check_trackers
from specdistill.distill.training.head_start import refuse_server
from specdistill.models import load
from specdistill.progress import Progress


def check_before_loading(config: TrainConfig, progress: Progress) -> RunPrompts:
    """Finds everything that can be wrong without looking at a model; prompts of its own the target writes last."""
    sequences, loss, objective = config.sequences, config.loss, config.objective
    sequences.check_files(config.chat)
    load.check_exists(config.target, "target", config.adapter.target_base)
    for role, name in (("draft", config.draft), ("reference", loss.reference)):
        if name is not None:
            load.check_exists(name, role)
    if not config.teaches_itself:
        itself.refuse_same_name(config.target, config.draft)
    if isinstance(config.place, Served):
        refuse_server(config.draft)
    config.place.check(objective.kind, objective.temperature, config.sampling.temperature, config.chat)
    if config.parallel_draft.parallel_confidence and isinstance(config.place, Stored):
        config.place.require_likeliest("--parallel-confidence")
    config.optimiser.check_machine()
    check_trackers(config.evaluation.report_to)
    weights = None
    if config.place.has_weights:
        weights = Weights(config.machine.device, config.target_settings.dtype, config.place.memory)
    own, base = config.self_prompts, config.adapter.target_base
    named = prompts_file(config.prompts, "train", own, config.chat, config.target, weights, progress, base=base)
    prompts = RunPrompts.read(named, config.chat, sequences, config.place, config.context)
    return prompts.judged(config.recipe, sequences, config.place, loss.reward, config.watch)
