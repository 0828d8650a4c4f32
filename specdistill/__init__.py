"""specdistill: train the draft model of speculative decoding, measure what it is worth, ship it.

    plan(PlanConfig.flat(...))               estimate tokens, hours, memory and storage of a training
    advise(AdviseConfig.flat(...))           which draft to make, or none, before any is made
    init_draft(InitDraftConfig.flat(...))    cut a draft out of the target's own layers
    generate(GenerateConfig.flat(...))       let the target write answers to train on
    annotate(AnnotateConfig.flat(...))       store the target's distribution over answers
    train_draft(TrainConfig.flat(...))       distil it toward the target
    bench(BenchConfig.flat(...))             acceptance, speed and verdict, as a `Report`
    check(CheckConfig.flat(...))             which serving engines load the pair
    carry_head(CarryHeadConfig.flat(...))    give a fine-tuned target its own head back
    export(ExportConfig.flat(...))           write the draft as one engine wants it
    SpeculativeDecoder                       exact speculative decoding, batched

Settings that belong together are parts: TrainConfig(target=..., draft=..., output=..., loss=LossSettings(beta=0.3)).

Names are imported on first use, so that `import specdistill` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from specdistill.remarks import hide_remarks

if TYPE_CHECKING:
    from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
    from specdistill.distill.advising.advise import advise
    from specdistill.distill.advising.config import AdviseConfig
    from specdistill.distill.answers.annotate import annotate
    from specdistill.distill.answers.annotate_config import AnnotateConfig
    from specdistill.distill.answers.generate import generate
    from specdistill.distill.answers.generate_config import GenerateConfig
    from specdistill.distill.config import TrainConfig
    from specdistill.distill.cutting.config import InitDraftConfig
    from specdistill.distill.cutting.init_draft import init_draft
    from specdistill.distill.processes.settings import ProcessSettings
    from specdistill.distill.sequences.settings import OnPolicySettings, SequenceSettings
    from specdistill.distill.target.settings import TargetSettings
    from specdistill.distill.train_draft import train_draft
    from specdistill.distill.training.loss_settings import LossSettings
    from specdistill.distill.training.settings import EvaluationSettings, OptimiserSettings
    from specdistill.errors import SpecdistillError
    from specdistill.evaluation.advice import Advice
    from specdistill.evaluation.config import AcceptanceSettings, ServedSampling, TimedRunSettings, WeightSettings
    from specdistill.evaluation.plan import Plan, plan
    from specdistill.evaluation.plan_config import PlanConfig
    from specdistill.evaluation.report import Report
    from specdistill.models import LanguageModel, load_model, load_pair
    from specdistill.serving.bench import bench
    from specdistill.serving.bench_config import BenchConfig, ServerSettings
    from specdistill.serving.carry_config import CarryHeadConfig
    from specdistill.serving.carry_head import carry_head
    from specdistill.serving.check_config import CheckConfig
    from specdistill.serving.export import export
    from specdistill.serving.export_config import ExportConfig
    from specdistill.serving.gates import check
    from specdistill.serving.method_settings import MethodSettings
    from specdistill.serving.own_head import find_own_head
    from specdistill.settings.chat import ChatSettings
    from specdistill.settings.machine import Machine
    from specdistill.settings.self_prompts import SelfPromptSettings
    from specdistill.settings.target_context import ContextSettings

__version__ = "0.1.0"

# Before any import of the libraries that make them.
hide_remarks()

_HOME = {
    "AcceptanceSettings": "specdistill.evaluation.config",
    "Advice": "specdistill.evaluation.advice",
    "AdviseConfig": "specdistill.distill.advising.config",
    "AnnotateConfig": "specdistill.distill.answers.annotate_config",
    "BenchConfig": "specdistill.serving.bench_config",
    "CarryHeadConfig": "specdistill.serving.carry_config",
    "ChatSettings": "specdistill.settings.chat",
    "CheckConfig": "specdistill.serving.check_config",
    "ContextSettings": "specdistill.settings.target_context",
    "EvaluationSettings": "specdistill.distill.training.settings",
    "ExportConfig": "specdistill.serving.export_config",
    "GenerateConfig": "specdistill.distill.answers.generate_config",
    "InitDraftConfig": "specdistill.distill.cutting.config",
    "LanguageModel": "specdistill.models",
    "LossSettings": "specdistill.distill.training.loss_settings",
    "Machine": "specdistill.settings.machine",
    "MethodSettings": "specdistill.serving.method_settings",
    "OnPolicySettings": "specdistill.distill.sequences.settings",
    "OptimiserSettings": "specdistill.distill.training.settings",
    "Plan": "specdistill.evaluation.plan",
    "PlanConfig": "specdistill.evaluation.plan_config",
    "ProcessSettings": "specdistill.distill.processes.settings",
    "Report": "specdistill.evaluation.report",
    "Sampling": "specdistill.decoding",
    "SelfPromptSettings": "specdistill.settings.self_prompts",
    "SequenceSettings": "specdistill.distill.sequences.settings",
    "ServedSampling": "specdistill.evaluation.config",
    "ServerSettings": "specdistill.serving.bench_config",
    "SpecdistillError": "specdistill.errors",
    "SpeculativeDecoder": "specdistill.decoding",
    "TargetSettings": "specdistill.distill.target.settings",
    "TimedRunSettings": "specdistill.evaluation.config",
    "TrainConfig": "specdistill.distill.config",
    "WeightSettings": "specdistill.evaluation.config",
    "advise": "specdistill.distill.advising.advise",
    "annotate": "specdistill.distill.answers.annotate",
    "bench": "specdistill.serving.bench",
    "carry_head": "specdistill.serving.carry_head",
    "check": "specdistill.serving.gates",
    "export": "specdistill.serving.export",
    "find_own_head": "specdistill.serving.own_head",
    "generate": "specdistill.distill.answers.generate",
    "generate_plain": "specdistill.decoding",
    "init_draft": "specdistill.distill.cutting.init_draft",
    "load_model": "specdistill.models",
    "load_pair": "specdistill.models",
    "plan": "specdistill.evaluation.plan",
    "train_draft": "specdistill.distill.train_draft",
}

__all__ = [
    "AcceptanceSettings",
    "Advice",
    "AdviseConfig",
    "AnnotateConfig",
    "BenchConfig",
    "CarryHeadConfig",
    "ChatSettings",
    "CheckConfig",
    "ContextSettings",
    "EvaluationSettings",
    "ExportConfig",
    "GenerateConfig",
    "InitDraftConfig",
    "LanguageModel",
    "LossSettings",
    "Machine",
    "MethodSettings",
    "OnPolicySettings",
    "OptimiserSettings",
    "Plan",
    "PlanConfig",
    "ProcessSettings",
    "Report",
    "Sampling",
    "SelfPromptSettings",
    "SequenceSettings",
    "ServedSampling",
    "ServerSettings",
    "SpecdistillError",
    "SpeculativeDecoder",
    "TargetSettings",
    "TimedRunSettings",
    "TrainConfig",
    "WeightSettings",
    "advise",
    "annotate",
    "bench",
    "carry_head",
    "check",
    "export",
    "find_own_head",
    "generate",
    "generate_plain",
    "init_draft",
    "load_model",
    "load_pair",
    "plan",
    "train_draft",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'specdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
