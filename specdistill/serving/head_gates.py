"""Conditions of the engines for a draft that is a head for one target: EAGLE-3, EAGLE, DFlash, DSpark, an assistant.

Read from vLLM 0.32 (`config/speculative.py`, `models/llama_eagle3.py`) and SGLang 0.5.23; heads run in no test here.
"""

from __future__ import annotations

import shlex

from specdistill.serving import draft_flags
from specdistill.serving.check_config import PlannedServer
from specdistill.serving.engine_table import METHODS, Drafting
from specdistill.serving.model_files import ModelFiles
from specdistill.serving.verdict import Verdict

METHOD_OF = {"eagle3": "eagle3", "eagle": "eagle", "dflash": "dflash", "dspark": "dspark", "assistant": "mtp"}
"""Kind of a head -> value of `bench --method`."""
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
    found = [_served("vllm", _VLLM_RULE, target, draft, drafting), _sglang(target, draft, drafting)]
    found.append(_llama_cpp(target, drafting))
    call = "target.generate(**inputs, assistant_model=draft)"
    found.append(Verdict("transformers", "sampled", call, [] if kind == "assistant" else [_unknown(kind)]))
    found.append(Verdict("tensorrt-llm", "", "", [_unknown(kind)]))
    return found


def _unknown(kind: str) -> str:
    return f"the draft is a head ({kind}), not a language model, and specdistill knows no way to load it there"


def _served(engine: str, rule: str, target: ModelFiles, draft: ModelFiles, drafting: Drafting) -> Verdict:
    verdict = Verdict(engine, rule, shlex.join(draft_flags.command(engine, target.name, drafting)))
    if target.is_gguf:
        verdict.refusals.append("the target is a .gguf file, and this engine's gate takes checkpoints")
    sizes = draft.config.get("target_hidden_size") or draft.config.get("backbone_hidden_size")
    made_for = draft.whole_config.get("backbone_hidden_size") or sizes or draft.config.get("hidden_size")
    if made_for != target.config.get("hidden_size"):
        verdict.refusals.append(
            f"the head reads hidden states of {made_for} numbers, and the target's have "
            f"{target.config.get('hidden_size')}: it was trained for another target"
        )
    if draft.vocab_size != target.vocab_size:
        verdict.warnings.append(
            f"config.vocab_size is {target.vocab_size} in the target and {draft.vocab_size} in the head: it may have "
            "been trained for another target"
        )
    return verdict


def _sglang(target: ModelFiles, draft: ModelFiles, drafting: Drafting) -> Verdict:
    if drafting.method != "eagle3":
        return Verdict("sglang", "", "", [_unknown(str(draft.draft_kind))])
    return _served("sglang", "argmax_draft", target, draft, drafting)


def _llama_cpp(target: ModelFiles, drafting: Drafting) -> Verdict:
    if "llama-cpp" not in METHODS[drafting.method].names:
        return Verdict("llama.cpp", "", "", [_unknown(drafting.method)])
    named = Drafting(method=drafting.method, draft="draft.gguf", num_draft_tokens=drafting.num_draft_tokens)
    served = target.name if target.is_gguf else "target.gguf"
    command = shlex.join(draft_flags.command("llama.cpp", served, named))
    return Verdict("llama.cpp", "argmax_draft", f"{command}  # both converted by llama.cpp's convert_hf_to_gguf.py")
