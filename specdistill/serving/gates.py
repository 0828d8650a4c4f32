"""Each engine's own conditions for a draft model, checked before any engine is started.

Read from the engines' sources: vLLM 0.33 (`config/speculative.py`, `config/vllm.py`), SGLang 0.5.23
(`srt/speculative/standalone_worker_v2.py`), llama.cpp (`common_speculative_are_compatible`), transformers 5.23
(`generation/candidate_generator.py`), TensorRT-LLM (`DraftTargetDecodingConfig`). SGLang and TensorRT-LLM can't run on
the machines that test this: theirs are tested on fixtures only.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from specdistill.serving import adapter_commands, draft_flags, head_gates, parallel_gates
from specdistill.serving.check_config import CheckConfig, PlannedServer
from specdistill.serving.engine_table import Drafting
from specdistill.serving.model_files import ModelFiles, read
from specdistill.serving.verdict import Verdict

# llama.cpp compares the text of tokens from this id on, and lets vocabularies differ by this many.
_FIRST_COMPARED, _MOST_DIFFERENT = 5, 128


def check(config: CheckConfig) -> list[Verdict]:
    """Asks every engine's own conditions; reads no weights.

    Args:
        config: The pair, and how the server will be started.

    Returns:
        One verdict per engine: vllm, sglang, llama.cpp, transformers, tensorrt-llm. None without a draft.

    Raises:
        ModelError: A config.json or a .gguf file can't be read, or an adapter can't be merged.
    """
    if config.draft is None:
        return []
    target, draft = adapter_commands.as_written(
        read(config.target, "target", config.adapter.target_base), read(config.draft, "draft")
    )
    server, others = (
        parallel_gates.with_length(config.server, draft, in_one_pass=in_one_pass) for in_one_pass in (True, False)
    )
    if draft.draft_kind is not None:
        verdicts = head_gates.verdicts(target, draft, server)
    else:
        gates = (_sglang, _llama_cpp, _transformers, _tensorrt_llm)
        verdicts = [_vllm(target, draft, server), *(gate(target, draft, others) for gate in gates)]
        parallel_gates.remark(verdicts, target, draft, server)
    damaged = [damage for damage in (target.damage("target"), draft.damage("draft")) if damage is not None]
    damaged += head_gates.incomplete(draft)
    for verdict in verdicts:
        _weights(draft, verdict)
        verdict.refusals.extend(damaged)
        verdict.first.extend(adapter_commands.preparation(verdict.engine, config, target, draft))
    if target.adapter is None or draft.draft_kind is not None:
        return verdicts
    beside = adapter_commands.with_lora(target.adapter, draft.name, server.num_draft_tokens)
    return [replace(each, alternative=beside) if each.engine == "vllm" else each for each in verdicts]


def _drafting(draft: str, server: PlannedServer) -> Drafting:
    return Drafting(draft=draft, num_draft_tokens=server.num_draft_tokens)


def _weights(draft: ModelFiles, verdict: Verdict) -> None:
    if draft.pickled:
        verdict.refusals.append(
            f"the draft's weights are pickles ({draft.pickled[0]}), which run code when they are loaded; save them as "
            "safetensors"
        )
    elif not draft.has_weights:
        verdict.refusals.append(f"{draft.name} holds no weights (*.safetensors)")


def _vllm(target: ModelFiles, draft: ModelFiles, server: PlannedServer) -> Verdict:
    drafting = parallel_gates.in_one_pass(_drafting(draft.name, server), draft)
    command = draft_flags.command("vllm", target.name, drafting)
    if server.max_model_len:
        command += ["--max-model-len", str(server.max_model_len)]
    if server.tensor_parallel > 1:
        command += ["--tensor-parallel-size", str(server.tensor_parallel)]
    verdict = Verdict("vllm", "argmax_draft; sampled with draft_sample_method: probabilistic", shlex.join(command))
    _checkpoints_only(target, draft, verdict)
    _equal_vocab_size(target, draft, verdict)
    if draft.mixes_attention:
        verdict.refusals.append(
            f"the draft's layers are of two kinds ({draft.window or 'with a state and without'}), and all of them must "
            "share one KV-cache group"
        )
    if draft.m_rope:
        verdict.refusals.append("the draft uses M-RoPE positions, which vLLM takes in the target only")
    heads, kv_heads = draft.heads
    if server.tensor_parallel > 1 and heads % server.tensor_parallel:
        verdict.refusals.append(
            f"the draft is shared among the target's {server.tensor_parallel} GPUs, but has {heads} attention heads"
        )
    elif server.tensor_parallel > 1 and kv_heads % server.tensor_parallel and server.tensor_parallel % kv_heads:
        verdict.refusals.append(f"the draft has {kv_heads} KV heads, which {server.tensor_parallel} GPUs can't share")
    short = _short_context(target, draft, server)
    if short:
        verdict.warnings.append(f"{short}: vLLM lowers the target's own --max-model-len to it, or stops drafting there")
    _same_tokens(target, draft, verdict.warnings, "vLLM compares sizes only, and nearly no token will be accepted")
    return verdict


def _sglang(target: ModelFiles, draft: ModelFiles, server: PlannedServer) -> Verdict:
    command = draft_flags.command("sglang", target.name, _drafting(draft.name, server))
    if server.tensor_parallel > 1:
        command += ["--tp-size", str(server.tensor_parallel)]
    verdict = Verdict("sglang", "argmax_draft", shlex.join(command))
    _checkpoints_only(target, draft, verdict)
    _equal_vocab_size(target, draft, verdict)
    _tokenizers_there(target, draft, verdict)
    _same_tokens(target, draft, verdict.refusals, "SGLang compares both tokenizers' get_vocab()")
    heads = draft.heads[0]
    if server.tensor_parallel > 1 and heads % server.tensor_parallel:
        verdict.refusals.append(
            f"the draft has {heads} attention heads, which {server.tensor_parallel} GPUs can't share"
        )
    short = _short_context(target, draft, server)
    if short:
        verdict.warnings.append(f"{short}: SGLang runs the draft at the target's length, beyond what it was made for")
    if draft.window:
        verdict.warnings.append(f"the draft slides ({draft.window}); plain attention is what STANDALONE is tested with")
    return verdict


def _llama_cpp(target: ModelFiles, draft: ModelFiles, server: PlannedServer) -> Verdict:
    served = target.name if target.is_gguf else "target.gguf"
    drafting = draft.name if draft.is_gguf else "draft.gguf"
    command = shlex.join(draft_flags.command("llama.cpp", served, _drafting(drafting, server)))
    notes = []
    # `adapter_commands` prepares the merged target of an adapter.
    if not target.is_gguf and target.adapter is None:
        words = ["python", "convert_hf_to_gguf.py", target.name, "--outfile", served]
        notes.append(f"the target, by llama.cpp's script: {shlex.join(words)}")
    if not draft.is_gguf:
        words = ["specdistill", "export", "--target", target.name, "--draft", draft.name, "--format", "gguf"]
        words += [*(() if target.is_gguf else ("--target-gguf", served)), "--output", drafting]
        notes.append(f"the draft: {shlex.join(words)}")
    command += f"  # {'; '.join(notes)}" if notes else ""
    verdict = Verdict("llama.cpp", "argmax_draft", command)
    difference = abs(target.vocab_size - draft.vocab_size)
    if difference > _MOST_DIFFERENT:
        verdict.refusals.append(
            f"vocab_size differs by {difference} ({target.vocab_size} and {draft.vocab_size}); at most "
            f"{_MOST_DIFFERENT} may be missing"
        )
    _tokenizers_there(target, draft, verdict)
    if target.tokenizer is None or draft.tokenizer is None:
        return verdict
    # A conversion decides the kind; between two forms only the tokens can be compared.
    if target.is_gguf == draft.is_gguf and target.tokenizer.kind != draft.tokenizer.kind:
        verdict.refusals.append(
            f"the target's vocabulary is {target.tokenizer.kind}, the draft's {draft.tokenizer.kind}"
        )
    for name, ours in (target.tokenizer.special | target.tokenizer.flags).items():
        theirs = (draft.tokenizer.special | draft.tokenizer.flags).get(name, ours)
        if ours != theirs:
            verdict.refusals.append(f"{name} is {ours} in the target and {theirs} in the draft")
    different = _first_difference(target, draft, _FIRST_COMPARED)
    if different:
        verdict.refusals.append(different)
    return verdict


def _transformers(target: ModelFiles, draft: ModelFiles, server: PlannedServer) -> Verdict:
    call = "target.generate(**inputs, assistant_model=draft"
    same = target.vocab_size == draft.vocab_size and not _first_difference(target, draft)
    if not same and target.tokenizer is not None and draft.tokenizer is not None:
        call += ", tokenizer=target_tokenizer, assistant_tokenizer=draft_tokenizer"
    verdict = Verdict("transformers", "sampled", call + ")")
    if not same:
        _tokenizers_there(target, draft, verdict)
        verdict.warnings.append(
            "two vocabularies: transformers translates between them, which costs time and acceptance"
        )
    for role, side in (("target", target), ("draft", draft)):
        if side.is_gguf:
            verdict.warnings.append(
                f"the {role} is a .gguf file: load it with from_pretrained({str(side.directory)!r}, "
                f"gguf_file={Path(side.name).name!r}), which needs the memory of 16- or 32-bit weights"
            )
    for role, side in (("target", target), ("draft", draft)):
        if side.recurrent:
            verdict.refusals.append(f"a {side.config.get('model_type')} {role} keeps a state that can't be cut back")
    return verdict


def _tensorrt_llm(target: ModelFiles, draft: ModelFiles, server: PlannedServer) -> Verdict:
    command = (
        f"LLM(model={target.name!r}, disable_overlap_scheduler=True, speculative_config=DraftTargetDecodingConfig("
        f"max_draft_len={server.num_draft_tokens}, speculative_model={draft.name!r}))"
    )
    verdict = Verdict("tensorrt-llm", "the target's sample matches the draft's", command)
    _checkpoints_only(target, draft, verdict)
    _equal_vocab_size(target, draft, verdict)
    _same_tokens(target, draft, verdict.refusals, "both must have one tokenizer")
    return verdict


def _equal_vocab_size(target: ModelFiles, draft: ModelFiles, verdict: Verdict) -> None:
    if target.vocab_size == draft.vocab_size:
        return
    remedy = ""
    beyond = verdict.engine == "vllm" and parallel_gates.mask_beyond(target, draft) is not None
    if not beyond and not _first_difference(target, draft):
        remedy = "; only padding differs: 'specdistill export' gives the draft the target's size"
    verdict.refusals.append(
        f"config.vocab_size is {target.vocab_size} in the target and {draft.vocab_size} in the draft{remedy}"
    )


def _checkpoints_only(target: ModelFiles, draft: ModelFiles, verdict: Verdict) -> None:
    for role, side in (("target", target), ("draft", draft)):
        if side.is_gguf:
            verdict.refusals.append(
                f"the {role} is a .gguf file, and this engine's gate takes checkpoints; name the one that "
                "it was made from"
            )


def _tokenizers_there(target: ModelFiles, draft: ModelFiles, verdict: Verdict) -> None:
    for role, side in (("target", target), ("draft", draft)):
        if side.tokenizer is None:
            verdict.refusals.append(f"the {role}'s tokenizer can't be read ({side.tokenizer_problem})")


def _same_tokens(target: ModelFiles, draft: ModelFiles, where: list[str], why: str) -> None:
    different = _first_difference(target, draft)
    if different:
        where.append(f"{different}; {why}")


def _first_difference(target: ModelFiles, draft: ModelFiles, first: int = 0) -> str:
    """The first id from `first` on that means two tokens, or that one side lacks; empty where there is none."""
    if target.tokenizer is None or draft.tokenizer is None:
        return ""
    ours, theirs = target.tokenizer.tokens, draft.tokenizer.tokens
    for number in sorted(ours.keys() | theirs.keys()):
        if number >= first and ours.get(number) != theirs.get(number):
            # Beyond llama.cpp's first ids only shared ones are compared.
            if first and (number not in ours or number not in theirs):
                continue
            mine, other = ours.get(number, "unused"), theirs.get(number, "unused")
            return f"id {number} is {mine!r} in the target and {other!r} in the draft"
    return ""


def _short_context(target: ModelFiles, draft: ModelFiles, server: PlannedServer) -> str:
    wanted = server.max_model_len or target.max_positions
    if wanted and draft.max_positions and draft.max_positions < wanted:
        return f"the draft was made for {draft.max_positions} positions, the server runs {wanted}"
    return ""
