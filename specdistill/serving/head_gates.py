"""Conditions of the engines for a draft that is a head for one target: EAGLE-3, EAGLE, DFlash, DSpark, an assistant.

Read from vLLM 0.32 (`config/speculative.py`, `models/llama_eagle3.py`, classes with `SupportsEagle3`), SGLang 0.5.23
(`models/llama_eagle3.py`) and llama.cpp (`src/models/eagle3.cpp`). EAGLE-3 heads run in vLLM's and llama.cpp's tests;
SGLang and the other kinds of heads run in no test here.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

from specdistill.files.head_architectures import draft_kind
from specdistill.files.head_record import AUX_KEY, HeadRecord
from specdistill.files.stored_tensors import stored_tensors
from specdistill.serving import draft_flags, head_files
from specdistill.serving.check_config import PlannedServer
from specdistill.serving.engine_table import METHODS, Drafting
from specdistill.serving.model_files import ModelFiles
from specdistill.serving.verdict import Verdict

METHOD_OF = {"eagle3": "eagle3", "eagle": "eagle", "dflash": "dflash", "dspark": "dspark", "assistant": "mtp"}
"""Kind of a head -> value of `bench --method`."""
_VLLM_TARGETS = (
    *("afmoe", "apertus", "cohere2_moe", "deepseek_v2", "deepseek_v3", "gemma4", "gemma4_text", "gpt_oss", "granite"),
    *("kimi_k25", "llama", "mimo_v2", "minicpm", "minimax_m2", "mistral", "mistral3", "nemotron_h", "qwen2"),
    *("qwen2_5_vl", "qwen3", "qwen3_5", "qwen3_5_text", "qwen3_moe", "qwen3_next", "qwen3_vl", "step1"),
)
"""Types of targets whose hidden states vLLM gives to an EAGLE-3 head."""
VARIANTS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
"""Settings of heads by which they differ from the published architecture."""
_FEWEST_LAYERS = 7
"""Layers of a target from which 2, L / 2 and L - 3 are three different ones, in this order."""
_VLLM_RULE = "argmax_draft; sampled with draft_sample_method: probabilistic"


def verdicts(target: ModelFiles, draft: ModelFiles, server: PlannedServer) -> list[Verdict]:
    """Asks every engine about a head in the place of a draft model.

    Args:
        target: The model being served.
        draft: The head.
        server: How the server will be started.
    """
    kind = str(draft.draft_kind)
    drafting = Drafting(method=METHOD_OF[kind], draft=draft.name, num_draft_tokens=server.num_draft_tokens)
    vllm = _served("vllm", _VLLM_RULE, target, draft, drafting)
    if kind == "eagle3":
        _eagle3_in_vllm(target, draft, vllm)
    found = [vllm, _sglang(target, draft, drafting), _llama_cpp(target, draft, drafting)]
    conflict = record_of(draft).conflict(target.config.get("num_hidden_layers"), "the target")
    for verdict in found if conflict is not None else ():
        verdict.refusals.insert(0, f"the head {conflict}")
    call = "target.generate(**inputs, assistant_model=draft)"
    refused = [] if kind == "assistant" else [f"the draft is a head ({kind}), which transformers can't assist with"]
    found.append(Verdict("transformers", "sampled", call, refused))
    found.append(Verdict("tensorrt-llm", "", "", [_unknown(kind, "TensorRT-LLM")]))
    return found


def record_of(draft: ModelFiles) -> HeadRecord:
    """A head's making, as its files tell it."""
    return HeadRecord.read(None if draft.is_gguf else draft.directory, SimpleNamespace(**draft.whole_config))


def made_for(target: str, draft: str | None) -> str | None:
    """Says which target a head was made for, where its files name another one than the given; None otherwise.

    Args:
        target, draft: Names of the pair, which `check` has read; the draft None where there is none.
    """
    if draft is None or not Path(draft, "config.json").is_file():
        return None
    config = head_files.read_config(Path(draft))
    is_head = draft_kind(config.get("architectures"), config.get("model_type")) is not None
    remark = HeadRecord.read(Path(draft), SimpleNamespace(**config)).remark(target) if is_head else None
    return None if remark is None else f"--draft {draft} {remark}"


def _eagle3_in_vllm(target: ModelFiles, draft: ModelFiles, verdict: Verdict) -> None:
    kind = str(target.config.get("model_type"))
    if kind not in _VLLM_TARGETS and not target.is_gguf:
        verdict.refusals.append(f"vLLM gives no hidden states of a {kind} target, which an EAGLE-3 head reads")
    if _named_layers(draft) is None:
        _enough_layers(target, verdict)


def _named_layers(draft: ModelFiles) -> list[int] | None:
    """The target's layers that config.json names; None where it leaves them to the engine."""
    nested = draft.whole_config.get("eagle_config")
    named = draft.whole_config.get(AUX_KEY) or (nested.get(AUX_KEY) if isinstance(nested, dict) else None)
    return list(named) if isinstance(named, list) else None


def _enough_layers(target: ModelFiles, verdict: Verdict) -> None:
    layers = target.config.get("num_hidden_layers")
    if isinstance(layers, int) and layers < _FEWEST_LAYERS:
        verdict.refusals.append(
            f"the target has {layers} layers, and this engine reads layers 2, L/2 and L-3, which are not three "
            f"different ones below {_FEWEST_LAYERS}"
        )


def incomplete(draft: ModelFiles) -> list[str]:
    """Names what an EAGLE-3 head's file of weights lacks, by its header, in a line each."""
    if draft.draft_kind != "eagle3" or draft.is_gguf or draft.from_hub or draft.damage("draft") is not None:
        return []
    stored = stored_tensors(draft.directory, "draft") or {}
    head = stored.get("lm_head.weight")
    needed = [] if "fc.weight" in stored else ["fc.weight"]
    if head is not None and head.shape and head.shape[0] < draft.vocab_size and "d2t" not in stored:
        needed.append(f"d2t, which names the ids of its {head.shape[0]} rows")
    return [f"the head's weights hold no {name}: download or save it again" for name in needed] if stored else []


def _unknown(kind: str, engine: str) -> str:
    return f"the draft is a head ({kind}), and 'check' knows no launch of {engine} with such heads; vLLM takes them"


def _served(engine: str, rule: str, target: ModelFiles, draft: ModelFiles, drafting: Drafting) -> Verdict:
    verdict = Verdict(engine, rule, shlex.join(draft_flags.command(engine, target.name, drafting)))
    for role, side in (("target", target), ("head", draft)):
        if side.is_gguf:
            verdict.refusals.append(f"the {role} is a .gguf file, and this engine's gate takes checkpoints")
    _made_for(target, draft, verdict)
    if draft.vocab_size != target.vocab_size:
        verdict.warnings.append(
            f"config.vocab_size is {target.vocab_size} in the target and {draft.vocab_size} in the head: it may have "
            "been trained for another target"
        )
    return verdict


def _made_for(target: ModelFiles, draft: ModelFiles, verdict: Verdict) -> None:
    """Refuses a head that reads states of another size."""
    sizes = draft.config.get("target_hidden_size") or draft.config.get("backbone_hidden_size")
    made_for = draft.whole_config.get("backbone_hidden_size") or sizes or draft.config.get("hidden_size")
    own = target.config.get("hidden_size")
    if own is not None and made_for != own:
        verdict.refusals.append(
            f"the head reads hidden states of {made_for} numbers, and the target's have {own}: it was trained for "
            "another target"
        )


def _sglang(target: ModelFiles, draft: ModelFiles, drafting: Drafting) -> Verdict:
    if drafting.method != "eagle3":
        return Verdict("sglang", "", "", [_unknown(str(draft.draft_kind), "SGLang")])
    verdict = _served("sglang", "argmax_draft", target, draft, drafting)
    variants = [name for name in VARIANTS if draft.whole_config.get(name)]
    if variants:
        verdict.refusals.append(f"the head is of a variant that SGLang's EAGLE-3 does not run ({', '.join(variants)})")
    named = _named_layers(draft)
    if named is not None:
        verdict.warnings.append(
            f"config.json names the target's layers {', '.join(map(str, named))}: SGLang adds 1 to each, vLLM and "
            "llama.cpp do not; a head that was trained for the usual layers needs no such entry"
        )
    else:
        _enough_layers(target, verdict)
    return verdict


def _llama_cpp(target: ModelFiles, draft: ModelFiles, drafting: Drafting) -> Verdict:
    if "llama-cpp" not in METHODS[drafting.method].names:
        return Verdict("llama.cpp", "", "", [_unknown(drafting.method, "llama.cpp")])
    own = draft.name if draft.is_gguf else "draft.gguf"
    named = Drafting(method=drafting.method, draft=own, num_draft_tokens=drafting.num_draft_tokens)
    served = target.name if target.is_gguf else "target.gguf"
    command = shlex.join(draft_flags.command("llama.cpp", served, named))
    if drafting.method != "eagle3":
        return Verdict("llama.cpp", "argmax_draft", f"{command}  # both converted by llama.cpp's convert_hf_to_gguf.py")
    if not draft.is_gguf:
        command += "  # the head: 'specdistill export --format gguf'"
    verdict = Verdict("llama.cpp", "argmax_draft", command)
    if not draft.is_gguf:
        _made_for(target, draft, verdict)
    kind = str(target.config.get("model_type"))
    if kind not in ("llama", "mistral"):
        verdict.warnings.append(
            f"heads were tested with llama targets; llama.cpp may give no layers of a {kind} target"
        )
    if draft.is_gguf and draft.vocab_size < target.vocab_size:
        verdict.refusals.append(
            f"the head's file holds {draft.vocab_size} tokens and the target {target.vocab_size}: export it again with "
            "the .gguf that is served"
        )
    variants = [name for name in VARIANTS if name != "norm_before_residual" and draft.whole_config.get(name)]
    if variants:
        verdict.refusals.append(
            f"the head is of a variant that llama.cpp's EAGLE-3 does not run ({', '.join(variants)})"
        )
    return verdict
