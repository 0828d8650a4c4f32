"""Parallel drafts in engines: vLLM lets them guess in one pass, the others use them one token per pass.

Read from vLLM 0.32 (`v1/spec_decode/llm_base_proposer.py`): the mask token comes from `mask_token_id`, `pard_token` or
`ptd_token_id` of config.json, and `parallel_drafting` must be set.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

from specdistill.files.parallel_drafting import ParallelDrafting, trained_for
from specdistill.serving.check_config import PlannedServer
from specdistill.serving.engine_table import DEFAULT_LENGTH, Drafting
from specdistill.serving.head_gates import record_of
from specdistill.serving.model_files import ModelFiles
from specdistill.serving.verdict import Verdict


def parallel_of(draft: ModelFiles) -> ParallelDrafting | None:
    """How a draft guesses in one pass; None for others.

    Raises:
        ModelError: Its config.json contradicts itself.
    """
    return (
        None if draft.is_gguf else ParallelDrafting.of_config(SimpleNamespace(**draft.config), f"--draft {draft.name}")
    )


def with_length(server: PlannedServer, draft: ModelFiles, *, in_one_pass: bool) -> PlannedServer:
    """The server with its number of draft tokens settled: those that the draft was trained for, where it drafts so.

    A head guesses in a way of its own, mask token or not.

    Args:
        server: The user's.
        draft: The draft.
        in_one_pass: Whether the engine lets a parallel draft guess all tokens in one pass. Elsewhere each costs a pass,
            as those of an ordinary draft do.

    Raises:
        ModelError: The draft's config.json contradicts itself.
    """
    trained = None
    if draft.draft_kind is not None:
        trained = record_of(draft).draft_tokens
    elif in_one_pass:
        parallel = parallel_of(draft)
        trained = None if parallel is None else parallel.trained_tokens
    return dataclasses.replace(server, num_draft_tokens=server.num_draft_tokens or trained or DEFAULT_LENGTH)


def in_one_pass(drafting: Drafting, draft: ModelFiles) -> Drafting:
    """The launch of an engine that knows parallel drafts."""
    return dataclasses.replace(drafting, in_one_pass=parallel_of(draft) is not None)


def mask_beyond(target: ModelFiles, draft: ModelFiles) -> int | None:
    """The mask token of a parallel draft that the target has no row for; None for any other draft."""
    parallel = parallel_of(draft)
    return parallel.mask_id if parallel is not None and parallel.mask_id >= target.vocab_size else None


def remark(verdicts: list[Verdict], target: ModelFiles, draft: ModelFiles, server: PlannedServer) -> None:
    """Adds what each engine does with a parallel draft to its verdict."""
    parallel, beyond = parallel_of(draft), mask_beyond(target, draft)
    if parallel is None:
        return
    for verdict in verdicts:
        if verdict.engine == "vllm" and beyond is not None:
            verdict.refusals.append(
                f"the draft's mask token {beyond} lies beyond the target's {target.vocab_size} rows, and vLLM takes "
                "drafts of the target's size only; train it with an id that the target has but never writes "
                "(--mask-token)"
            )
        if verdict.engine != "vllm":
            verdict.warnings.append(
                f"the draft guesses several tokens in one pass behind mask token {parallel.mask_id}, which this launch "
                "does not use: it drafts one token per pass; 'specdistill bench --one-by-one' measures that"
            )
        elif parallel.trained_tokens and parallel.trained_tokens != server.num_draft_tokens:
            said = trained_for(parallel.trained_tokens, server.num_draft_tokens, "this launch")
            verdict.warnings.append(f"{said}; check --num-draft-tokens {parallel.trained_tokens} prints the other")
