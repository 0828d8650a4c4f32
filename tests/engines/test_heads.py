"""Heads in real engines: the same weights propose the same tokens in ours, in vLLM and in llama.cpp."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from head_drafts import GREEDY, make_head, plain, teach
from real_vllm import answers_and_proposals
from tiny_models import make_model, save

from specdistill.decoding import SpeculativeDecoder
from specdistill.decoding.head_draft import HeadDrafting
from specdistill.models import load_pair
from specdistill.models.eagle3 import save_head
from specdistill.serving import gguf_writer, head_gguf

TOKENS, NEW = 4, 30
PROMPTS = [[1, *range(300 + 40 * row, 306 + 43 * row), 2] for row in range(6)]
_LLAMA = """
import json, sys, xllamacpp
asked = json.load(sys.stdin)
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = asked["target"], 512, 1, False, 5
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3]
params.speculative.draft.mparams.path, params.speculative.draft.n_max = asked["head"], asked["tokens"]
# Its caches are of half precision otherwise, and ours are not.
exact = xllamacpp.ggml_type.GGML_TYPE_F32
params.cache_type_k = params.cache_type_v = exact
params.speculative.draft.cache_type_k = params.speculative.draft.cache_type_v = exact
server = xllamacpp.Server(params)
for prompt in asked["prompts"]:
    body = {"prompt": prompt, "n_predict": asked["new"], "temperature": 0.0, "top_k": 1, "cache_prompt": False}
    answer = server.handle_completions(body | {"ignore_eos": True})
    print("ANSWER " + json.dumps(answer["timings"]), file=sys.stderr, flush=True)
"""


@pytest.fixture(scope="module")
def files(smollm2, gguf_path, tmp_path_factory):
    """SmolLM2's tokenizer, since llama.cpp reads no other; the heads are of the 32 numbers that vLLM's CPUs want."""
    folder = tmp_path_factory.mktemp("heads")
    target = make_model(tokenizer=smollm2.tokenizer, layers=7, hidden=128, vocab_size=49152, scale=2.0)
    written = {token for answer in plain(target, prompts=PROMPTS, new=24) for token in answer}
    draft = make_head(target, sorted(written | set(range(0, 49152, 25))), noise=0.1)
    teach(target, draft.head, PROMPTS, 25)
    save(target, folder / "target")
    (folder / "head").mkdir()
    save_head(draft.head, folder / "head", 7)
    gguf_writer.write(target, gguf_path, folder / "target.gguf", "float32")
    head_gguf.write(draft, gguf_path, folder / "head.gguf", "float32")
    return folder


@pytest.fixture(scope="module")
def ours(files) -> list[tuple[list[int], list[list[int]]]]:
    """Each prompt's answer and what was proposed in its rounds."""
    pair = load_pair(str(files / "target"), str(files / "head"), device="cpu")
    for source in (pair.target.model.generation_config, pair.target.config, pair.target.tokenizer):
        source.eos_token_id = None
    rounds: list[list[int]] = []
    real = HeadDrafting.propose

    def propose(self, texts, limits, **settings):
        proposal, counts = real(self, texts, limits, **settings)
        rounds.append(proposal.token_ids.tolist())
        return proposal, counts

    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadDrafting, "propose", propose)
        decoder = SpeculativeDecoder(pair.target, pair.draft, num_draft_tokens=TOKENS, sampling=GREEDY)
        for prompt in PROMPTS:
            rounds.clear()
            (answer,) = decoder.generate([prompt], max_new_tokens=NEW, seeds=[0])
            found.append((answer.token_ids, list(rounds)))
    return found


def same_rounds(ours: list[list[int]], theirs: list[list[int]]) -> int:
    """Compares proposals round for round; ours has no more than could be kept at the answer's end, none at last."""
    ours = [ids for ids in ours if ids]
    assert len(ours) <= len(theirs)
    for own, other in zip(ours, theirs, strict=False):
        assert own == other[: len(own)]
    return sum(map(len, ours))


def test_vllm_proposes_the_same_token_for_token(files, ours, monkeypatch):
    pytest.importorskip("vllm", reason="make test-engines runs these in vLLM's environment")
    settings = {"method": "eagle3", "model": str(files / "head"), "num_speculative_tokens": TOKENS}
    answers, rounds = answers_and_proposals(monkeypatch, files / "target", settings, PROMPTS, NEW, max_model_len=256)
    compared = 0
    for written, theirs, (answer, proposed) in zip(answers, rounds, ours, strict=True):
        assert written == answer
        compared += same_rounds(proposed, theirs)
    print(f"vLLM: {compared} proposed tokens compared")
    assert compared > 150


def test_llama_cpp_proposes_the_same_token_for_token(files, ours):
    """Its proposals stand in its log; its counters tell how much it kept."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("make test-engines runs these beside xllamacpp")
    asked = {"target": str(files / "target.gguf"), "head": str(files / "head.gguf"), "tokens": TOKENS, "new": NEW}
    log = subprocess.run(
        [sys.executable, "-c", _LLAMA],
        input=json.dumps(asked | {"prompts": PROMPTS}),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=True,
    ).stderr
    compared = 0
    for part, (answer, proposed) in zip(log.split("ANSWER ")[:-1], ours, strict=True):
        rounds: list[list[int]] = []
        # Draft candidates of each step, the likeliest first.
        for place, token in re.findall(r"draft candidate   0, pos +(\d+): +(\d+) ", part):
            rounds += [[]] if place == "0" else []
            rounds[-1].append(int(token))
        compared += same_rounds(proposed, rounds)
        assert len(answer) == NEW
    timings = [json.JSONDecoder().raw_decode(part)[0] for part in log.split("ANSWER ")[1:]]
    kept = [NEW - 1 - len(proposed) for _, proposed in ours]
    # Ours makes no round for a last token that verification adds.
    assert [timing["draft_n_accepted"] for timing in timings] == kept
    print(f"llama.cpp: {compared} proposed tokens compared, {sum(kept)} kept")
    assert compared > 150


def test_a_changed_layer_is_not_what_was_trained(files, ours, tmp_path):
    """Planted: the file names other layers of the target; llama.cpp then proposes other tokens."""
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("make test-engines runs these beside xllamacpp")
    data = (files / "head.gguf").read_bytes()
    old = b"".join(number.to_bytes(4, "little") for number in (2, 3, 4))
    new = b"".join(number.to_bytes(4, "little") for number in (1, 2, 3))
    assert data.count(old) >= 2
    wrong = Path(tmp_path) / "wrong.gguf"
    wrong.write_bytes(data.replace(old, new))
    asked = {"target": str(files / "target.gguf"), "head": str(wrong), "tokens": TOKENS, "new": NEW}
    log = subprocess.run(
        [sys.executable, "-c", _LLAMA],
        input=json.dumps(asked | {"prompts": PROMPTS[:1]}),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=True,
    ).stderr
    first = [int(token) for token in re.findall(r"draft candidate   0, pos +\d+: +(\d+) ", log)]
    assert first != [token for ids in ours[0][1] for token in ids][: len(first)]
