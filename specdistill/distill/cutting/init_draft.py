"""`specdistill init-draft`: a draft of the target's own layers, chosen by measurement, of a donor, or a head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode_all, load_prompts, spread_over_categories
from specdistill.decoding.answers import write_answers
from specdistill.decoding.self_prompts import Weights, prompts_file
from specdistill.distill.cutting.config import InitDraftConfig
from specdistill.distill.cutting.donors import Donor, find_donor, give_vocabulary
from specdistill.distill.cutting.head import make_head
from specdistill.distill.cutting.kept_ids import head_line, most_used_ids
from specdistill.distill.cutting.layer_search import choose_layers
from specdistill.errors import ConfigError, out_of_memory_named
from specdistill.evaluation.summaries import CutSummary
from specdistill.files import atomic, locks
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import LanguageModel, cut_draft, families, load
from specdistill.models.checkpoint import CUT_RECORD_FILE, save_draft
from specdistill.models.eagle3.start import check_target
from specdistill.models.pair import resolve_device
from specdistill.progress import Progress, Quiet
from specdistill.settings.sampling import Sampling


def init_draft(config: InitDraftConfig, progress: Progress | None = None) -> CutSummary:
    """Makes a draft of the target's own layers, of a donor, or a head of the target, and saves its checkpoint.

    Args:
        config: What to make.
        progress: Where bars and remarks go.

    Returns:
        Settings, every candidate's alpha and the layers, which are also written next to the weights (init_draft.json).

    Raises:
        SpecdistillError: Bad input; nothing was written then.
    """
    progress = progress or Quiet()
    choice = config.choice
    resolve_device(config.machine.device)
    load.check_exists(config.target, "target", config.adapter.target_base)
    if config.donor is not None:
        load.check_exists(config.donor, "donor")
    config.machine.limit_threads()
    weights = Weights(config.machine.device, "float32")
    own, most, base = config.self_prompts, choice.calibration_prompts, config.adapter.target_base
    named = prompts_file(config.prompts, "train", own, config.chat, config.target, weights, progress, most, base)
    prompts = spread_over_categories(load_prompts(named, config.chat), choice.calibration_prompts)
    source = _find_target(config, progress)
    donor = find_donor(config, source, progress)
    context = source.max_context if donor is None else min(source.max_context, donor.source.max_context)
    # Prompts are checked before any weights are read.
    encoded = encode_all(prompts, source.tokenizer, context - choice.calibration_tokens, source.vocab_size)
    output = Path(config.output)
    with locks.output_lock(output, progress.say):
        atomic.claim_output_directory(output)
        with atomic.emptied_on_failure(output):
            if config.kind == "eagle3":
                target = _load(config, source, "target")
                return make_head(config, target, prompts, encoded, output, progress)
            return _make(config, source, donor, prompts, encoded, output, progress)


def _forget_masks(model: LanguageModel, progress: Progress) -> None:
    """Makes a parallel draft an ordinary model, in memory, before a draft is made of it.

    Its masks were learned with all of its layers, and its mask token may be a word in another vocabulary.
    """
    if model.parallel is None:
        return
    ParallelDrafting.remove_from(model.config)
    progress.say(
        f"{model.name} guesses several tokens in one pass; what is made of it is an ordinary draft, and 'train-draft "
        "--parallel' teaches that again"
    )


def _make(
    config: InitDraftConfig,
    source: load.ModelSource,
    donor: Donor | None,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    output: Path,
    progress: Progress,
) -> CutSummary:
    choice = config.choice
    # The donor comes first, so that damaged weights are found before the target writes its answers.
    given = None if donor is None else _load(config, donor.source, "donor")
    target = _load(config, source, "target")
    warn_about_prompts(prompts, encoded, target, progress.say)
    _forget_masks(target if given is None else given, progress)
    whole, transplanted = target, None
    remedy = "lower --calibration-tokens or shorten the longest prompts; --probe-steps 0 trains no candidate"
    with out_of_memory_named(remedy):
        tokens, name = choice.calibration_tokens, "calibration answers"
        answers = write_answers(target, prompts, encoded, Sampling(), tokens, choice.seed, progress, name)
        if donor is not None and given is not None:
            whole, transplanted = give_vocabulary(donor, given, target, answers, progress)
        count = config.layers or families.num_layers(whole.config)
        layers, candidates = choose_layers(target, whole, answers, count, choice.choose, choice.probe_steps, progress)
    draft = whole if count == families.num_layers(whole.config) else cut_draft(whole, layers)
    covered = None
    if config.vocab_keep:
        draft.kept_ids, covered = most_used_ids(target, answers, config.vocab_keep, progress)
        progress.say(head_line(len(draft.kept_ids), covered, answers, target.vocab_size))
    save_draft(draft, target, output)
    summary = CutSummary(
        config=config.to_flat(),
        layers=layers,
        candidates=candidates,
        parameters=draft.num_parameters,
        target_parameters=target.num_parameters,
        head_size=None if draft.kept_ids is None else len(draft.kept_ids),
        head_covers=covered,
        donor=transplanted,
    )
    atomic.write_text(output / CUT_RECORD_FILE, json.dumps(summary.to_json(), indent=2) + "\n")
    return summary


def _find_target(config: InitDraftConfig, progress: Progress) -> load.ModelSource:
    source = load.find(config.target, "target", progress.say, config.adapter.target_base)
    total = families.num_layers(source.config)
    if config.kind == "eagle3":
        check_target(source.config, f"--target {config.target}")
    if config.donor is None and config.layers is not None and config.layers >= total:
        raise ConfigError(f"--layers {config.layers} must be below the target's {total} layers")
    if config.vocab_keep > source.vocab_size:
        raise ConfigError(f"--vocab-keep {config.vocab_keep} exceeds the vocabulary of {source.vocab_size} ids")
    load.check_loadable(source, "target", plain=config.donor is None)
    return source


def _load(config: InitDraftConfig, source: load.ModelSource, role: str) -> LanguageModel:
    return load.load_model(source, role, device=resolve_device(config.machine.device), dtype=torch.float32)
