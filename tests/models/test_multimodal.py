"""The text part of a multimodal checkpoint: loaded without the towers, with the logits of the whole model."""

from __future__ import annotations

import pytest
import torch
from multimodal_models import KINDS, save_multimodal
from safetensors.torch import load_file, save_file
from tiny_models import make_model, save

from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.proof import prove
from specdistill.errors import ModelError
from specdistill.models import cut_draft, load_model
from specdistill.models.checkpoint import save_draft
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.gates import check

GREEDY = Sampling(temperature=0.0)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_part_has_the_whole_models_logits_and_no_tower(kind, tmp_path):
    whole = save_multimodal(kind, tmp_path)
    text = load_model(str(tmp_path))
    assert text.config is text.config.get_text_config()
    towers = [name for name, _ in whole.named_parameters() if "language_model" not in name and "lm_head" not in name]
    assert towers and text.num_parameters < sum(parameter.numel() for parameter in whole.parameters())
    assert not [name for name, _ in text.model.named_parameters() if "vision" in name or "visual" in name]
    ids = torch.tensor([PROMPTS[0]])
    with torch.inference_mode():
        wanted = whole(input_ids=ids).logits[..., :65]
        torch.testing.assert_close(text.logits(text.hidden_states(ids)), wanted, rtol=1e-4, atol=1e-4)
    settings = {"max_new_tokens": 8, "seeds": [0, 1]}
    plain = [result.token_ids for result in generate_plain(text, PROMPTS, sampling=GREEDY, **settings)]
    for prompt, ids in zip(PROMPTS, plain, strict=True):
        theirs = whole.generate(
            input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=8, do_sample=False, eos_token_id=1, pad_token_id=0,
        )  # fmt: skip
        assert theirs[0, len(prompt) :].tolist() == ids
    if prove(text).rolls_back:
        decoder = SpeculativeDecoder(text, text, num_draft_tokens=3, sampling=GREEDY)
        assert [result.token_ids for result in decoder.generate(PROMPTS, **settings)] == plain


def test_the_towers_weights_are_not_read(tmp_path):
    """A tower of NaN is no damage to the text; a text weight without a place is."""
    save_multimodal("gemma3", tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    for name in weights:
        if name.startswith(("vision_tower", "multi_modal_projector")):
            weights[name] = torch.full_like(weights[name], torch.nan)
    save_file(weights, file, {"format": "pt"})
    assert load_model(str(tmp_path)).config.model_type == "gemma3_text"
    weights["language_model.model.layers.0.self_attn.lost.weight"] = torch.ones(3)
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelError, match="has no place for"):
        load_model(str(tmp_path))
    del weights["language_model.model.layers.0.self_attn.lost.weight"], weights["language_model.model.norm.weight"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for model\.norm\.weight"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_older_and_newer_checkpoints_are_the_same_weights(kind, tmp_path):
    """`language_model.` around the text model with its head, or inside `model.` with the head outside."""
    save_multimodal(kind, tmp_path)
    file = tmp_path / "model.safetensors"
    weights, wanted = load_file(file), load_model(str(tmp_path)).model.state_dict()
    plain = {}
    for name, weight in weights.items():
        for prefix in ("language_model.lm_head.", "model.language_model.", "language_model.model."):
            name = name.replace(prefix, "text.lm_head." if "lm_head" in prefix else "text.model.", 1)
        plain[name.replace("lm_head.", "text.lm_head.") if name.startswith("lm_head.") else name] = weight
    assert any(name.startswith("text.model.") for name in plain)
    for inner, head in (("language_model.model.", "language_model.lm_head."), ("model.language_model.", "lm_head.")):
        named = {name.replace("text.model.", inner).replace("text.lm_head.", head): w for name, w in plain.items()}
        save_file(named, file, {"format": "pt"})
        found = load_model(str(tmp_path)).model.state_dict()
        assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_vllm_refuses_m_rope_drafts_and_takes_text_drafts_under_m_rope_targets(tmp_path):
    save_multimodal("qwen3_5", tmp_path / "target")
    target = load_model(str(tmp_path / "target"))
    (tmp_path / "cut").mkdir()
    save_draft(cut_draft(target, [0, 1]), target, tmp_path / "cut")
    save(make_model(layers=1), tmp_path / "text")

    def vllm(draft):
        verdicts = check(CheckConfig.flat(target=str(tmp_path / "target"), draft=str(tmp_path / draft)))
        return next(verdict for verdict in verdicts if verdict.engine == "vllm").refusals

    assert any("M-RoPE" in reason for reason in vllm("cut"))
    assert not vllm("text")
