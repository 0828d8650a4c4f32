"""A model with another model's vocabulary: which row each token gets, in cases worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_model, make_tokenizer, save
from tiny_tokenizers import TURNS, byte_level, sentencepiece
from transformers import GenerationConfig

from specdistill.errors import ModelError
from specdistill.models import LanguageModel, cut_draft
from specdistill.models.load import ModelSource, find
from specdistill.models.spelling import spell
from specdistill.models.transplant import VocabularyMap, check_donor, is_tied, map_vocabulary, transplant

WORDS = [" cat", "cats", "é", "\n\n"]


def source(tokenizer, name: str = "m", location: str = "/nowhere", **config) -> ModelSource:
    """A model of which nothing but tokenizer and configuration exists."""
    rows = max(tokenizer.get_vocab().values()) + 1
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    settings = SimpleNamespace(**({"vocab_size": rows, "model_type": "llama"} | ids | config))
    return ModelSource(name, location, settings, tokenizer)


def mapped(target, donor) -> dict[str, list[str]]:
    """Token of the target -> tokens of the donor whose rows it gets."""
    found = map_vocabulary(source(target), source(donor)).sources
    names = {number: token for token, number in target.get_vocab().items()}
    return {names[number]: donor.convert_ids_to_tokens(list(ids)) for number, ids in enumerate(found)}


# ---- the bytes of a token


def test_both_spellings_give_the_bytes_of_the_text():
    byte, pieces = byte_level(WORDS), sentencepiece(WORDS)
    a, b = spell(byte, 1000, "a"), spell(pieces, 1000, "b")
    for word in WORDS:
        assert word.encode() in a.texts.values() and word.encode() in b.texts.values()
    assert byte.decode([a.ids()[b" cat"]]) == " cat" and pieces.convert_ids_to_tokens(b.ids()[b" cat"]) == "▁cat"
    # A half of é has no text of its own: a byte token in both.
    assert pieces.convert_ids_to_tokens(b.ids()[b"\xc3"]) == "<0xC3>" and len(a.ids()) == len(a.texts)
    assert a.special == {0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>"}


def test_a_byte_token_beside_a_letter_is_never_written():
    spelling = spell(sentencepiece(WORDS), 1000, "m")
    spare = set(spelling.spare_bytes.values())
    assert spare == {b" ", b"c", b"a", b"t", b"s", b"\n"} and b"d" in spelling.texts.values()


def test_added_tokens_are_text_as_it_is_written():
    """Gemma adds runs of spaces as ▁▁, Phi as the spaces themselves."""
    byte, pieces = byte_level(WORDS), sentencepiece(WORDS)
    byte.add_tokens(["  "])
    pieces.add_tokens(["▁▁", "<0x41>x"])
    a, b = spell(byte, 1000, "a"), spell(pieces, 1000, "b")
    assert a.texts[byte.convert_tokens_to_ids("  ")] == b"  " == b.texts[pieces.convert_tokens_to_ids("▁▁")]
    assert b.texts[pieces.convert_tokens_to_ids("<0x41>x")] == b"<0x41>x"


def test_the_middle_of_a_text_is_split_without_a_space_before_it():
    pieces = sentencepiece(WORDS)
    assert pieces.tokenize("cats") == ["▁cat", "s"]
    spelling = spell(pieces, 1000, "m")
    assert [pieces.convert_ids_to_tokens(ids) for ids in spelling.split(["cats", " catcats"])] == [
        ["cats"],
        ["▁cat", "cats"],
    ]


@pytest.mark.smollm2
def test_every_token_of_a_real_tokenizer_stands_for_what_it_decodes_to(smollm2):
    spelling = spell(smollm2.tokenizer, smollm2.vocab_size, "m")
    assert len(spelling.texts) == 49135 and len(spelling.special) == 17
    for number, text in spelling.texts.items():
        assert smollm2.tokenizer.decode([number]) == text.decode(errors="replace")


def test_tokens_without_a_row_are_left_out():
    tokenizer = byte_level(WORDS)
    last = max(tokenizer.get_vocab().values())
    assert last in spell(tokenizer, last + 1, "m").texts and last not in spell(tokenizer, last, "m").texts


# ---- which row


@pytest.mark.parametrize("other", [byte_level, sentencepiece])
def test_equal_texts_are_one_token_and_others_their_pieces(other):
    target = byte_level([" cat", " catfish", "€"])
    donor = other([" cat", "fi", "sh"])
    rows = mapped(target, donor)
    space = "Ġ" if other is byte_level else "▁"
    assert rows["Ġcat"] == [f"{space}cat"]
    assert rows["Ġcatfish"] == [f"{space}cat", "fi", "sh"]
    # The euro sign's bytes are E2 82 AC: its beginnings are no text and are split into bytes, each a token in both.
    euro = ["<0xE2>", "<0x82>", "<0xAC>"] if other is sentencepiece else ["â", "Ĥ", "¬"]
    assert rows["â"] == euro[:1] and rows["âĤ"] == euro[:2] and rows["âĤ¬"] == euro


def test_a_target_of_sentencepiece_keeps_letters_and_bytes_apart():
    target, donor = sentencepiece(["ab"]), byte_level(["ab"])
    rows = mapped(target, donor)
    assert rows["a"] == ["a"] and rows["ab"] == ["ab"] and rows["<0x0A>"] == ["Ċ"]
    # <0x61> is never written, and would share the probability of "a" if it had its row.
    assert rows["<0x61>"] == []
    assert mapped(target, sentencepiece(["ab", "c"]))["<0x61>"] == ["<0x61>"]


def test_text_without_any_piece_is_not_covered():
    # Whole words alone: the donor knows no part of "lion".
    target, donor = make_tokenizer(3, "lion"), make_tokenizer(3, "cat")
    rows = mapped(target, donor)
    assert rows["lion"] == [] and rows["w1"] == ["w1"] and rows["<user>"] == ["<user>"] and rows["<eos>"] == ["<eos>"]


def test_control_tokens_go_by_name_then_by_role():
    target = byte_level(["a"])
    chat = mapped(target, sentencepiece(["a"], template=TURNS))
    assert chat["<|im_end|>"] == ["</s>"] and chat["<|im_start|>"] == ["[INST]"] and chat["<|endoftext|>"] == ["<unk>"]
    # A base model has no turns: its beginning and end of a document stand for them.
    base = mapped(target, sentencepiece(["a"]))
    assert base["<|im_end|>"] == ["</s>"] and base["<|im_start|>"] == ["<s>"]
    other_way = mapped(sentencepiece(["a"], template=TURNS), target)
    assert other_way["</s>"] == ["<|im_end|>"] and other_way["[INST]"] == ["<|im_start|>"] == other_way["<s>"]
    # No text, no role: neither pieces of its name nor anybody's row.
    assert other_way["[BOT]"] == []
    names = mapped(target, byte_level(["a", "b"]))
    assert names["<|endoftext|>"] == ["<|endoftext|>"] and names["<|im_start|>"] == ["<|im_start|>"]


def test_every_stop_id_of_the_generation_config_ends(tmp_path):
    GenerationConfig(eos_token_id=[0, 2]).save_pretrained(tmp_path)
    target = source(byte_level(["a"], template=None), location=str(tmp_path))
    found = map_vocabulary(target, source(sentencepiece(["a"]))).sources
    assert found[0] == [2] and found[2] == [2] and found[1] == [1]


def test_a_control_token_is_found_where_it_is_ordinary_text():
    target, donor = byte_level(["a"]), byte_level(["a", "b"])
    target.add_tokens(["<think>"])
    donor.add_special_tokens({"additional_special_tokens": ["<think>"]})
    assert mapped(target, donor)["<think>"] == ["<think>"] == mapped(donor, target)["<think>"]


def test_equal_tokenizers_keep_every_row():
    tokenizer = byte_level(["a"])
    assert map_vocabulary(source(tokenizer), source(tokenizer)).sources == [
        [number] for number in range(len(tokenizer))
    ]


def test_shares_count_tokens_as_often_as_they_occur():
    mapping = VocabularyMap([[4], [1, 2], [], [7]])
    assert mapping.shares(range(4)) == (0.5, 0.25, 0.25)
    assert mapping.shares([1, 1, 1, 0]) == (0.25, 0.75, 0.0)


# ---- the model


def pair(family: str = "llama", **settings) -> tuple[LanguageModel, LanguageModel]:
    """A target of 67 rows for 65 tokens, and a donor with other words whose ids run the other way."""
    target = make_model(layers=2, vocab_size=67)
    donor_tokenizer = make_tokenizer(40, "zebra")
    donor = make_model(family, layers=3, seed=9, tokenizer=donor_tokenizer, vocab_size=48, **settings)
    return target, donor


MAPPING = VocabularyMap([[7], [2, 9], *([] for _ in range(63))])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_rows_of_embedding_and_head_are_the_donors_own(family, tied):
    target, donor = pair(family, tied=tied)
    embedding = donor.model.get_input_embeddings().weight.detach().clone()
    head = donor.head_weight.detach().clone()
    assert torch.equal(embedding, head) == tied
    made = transplant(donor, target, MAPPING)
    assert is_tied(made.model) == tied and made.tokenizer is target.tokenizer and made.vocab_size == 65
    new = {"embedding": (made.model.get_input_embeddings().weight, embedding), "head": (made.head_weight, head)}
    for weight, old in new.values():
        assert weight.shape == (67, 32)
        assert torch.equal(weight[0], old[7])
        torch.testing.assert_close(weight[1], (old[2] + old[9]) / 2)
        # 45 ids have a token; the last 3 rows of the donor are padding.
        torch.testing.assert_close(weight[64], old[:45].mean(0))
    assert made.config.vocab_size == 67


def test_ids_that_end_an_answer_are_the_targets():
    target, donor = pair()
    target.config.eos_token_id = 4
    target.model.generation_config.eos_token_id = [1, 4]
    donor.config.eos_token_id = donor.model.generation_config.eos_token_id = 33
    donor.stored_dtype = torch.bfloat16
    made = transplant(donor, target, MAPPING)
    assert made.eos_token_ids == {1, 4} and made.config.eos_token_id == 4 and made.config.pad_token_id == 0
    assert made.stored_dtype == torch.bfloat16


def test_padding_points_away_from_the_hidden_states():
    target, donor = pair()
    made = transplant(donor, target, VocabularyMap([[number % 45] for number in range(65)]))
    with torch.no_grad():
        mean = made.hidden_states(torch.arange(65)[None])[0].mean(0)
        logits = made.head_weight @ mean
    assert logits[65] == logits[66] < logits[:65].min() < 0


def test_equal_words_compute_what_the_donor_computed():
    """The whole chain: text that both know gives the same hidden states and, per word, the same logits."""
    target, donor = pair()
    words = [f"w{index}" for index in range(1, 40)]
    theirs = torch.tensor([donor.tokenizer.convert_tokens_to_ids(words)])
    ours = torch.tensor([target.tokenizer.convert_tokens_to_ids(words)])
    with torch.no_grad():
        before = donor.model(theirs).logits[0][:, theirs[0]]
        mapping = map_vocabulary(source(target.tokenizer), source(donor.tokenizer))
        made = cut_draft(transplant(donor, target, mapping), [0, 1])
        full = transplant(pair()[1], target, mapping)
        after = full.model(ours).logits[0][:, ours[0]]
    assert torch.equal(before, after)
    assert made.config.num_hidden_layers == 2 and made.vocab_size == 65 and made.eos_token_ids == {1}


# ---- what can't be a donor


def test_embeddings_inside_the_layers_are_refused():
    donor = source(byte_level(["a"]), hidden_size_per_layer_input=8)
    with pytest.raises(ModelError, match=r"hidden_size_per_layer_input.*take a donor without them"):
        check_donor(donor, source(byte_level(["b"])))


def test_a_type_with_splitting_rules_of_its_own_is_named(tmp_path):
    """transformers splits the text of every qwen2 checkpoint by Qwen's rules, whatever its tokenizer's files say."""
    for name, family in (("target", "llama"), ("donor", "qwen2")):
        save(make_model(family), tmp_path / name)
    target, said = find(str(tmp_path / "target"), "target"), []
    check_donor(target, target, said.append)
    assert said == []
    check_donor(find(str(tmp_path / "donor"), "donor"), target, said.append)
    assert len(said) == 1 and "type 'qwen2': encode text for this draft with the target's tokenizer" in said[0]


@pytest.mark.parametrize("read", [None, make_tokenizer(3)])
def test_a_type_that_can_not_read_the_targets_tokenizer_is_refused(tmp_path, monkeypatch, read):
    def from_pretrained(*arguments, **options):
        if read is None:
            raise TypeError("no merges")
        return read

    target = find(str(save(make_model(), tmp_path / "target").absolute()), "target")
    monkeypatch.setattr("specdistill.models.transplant.AutoTokenizer", SimpleNamespace(from_pretrained=from_pretrained))
    with pytest.raises(ModelError, match=r"--donor .* is of type 'llama'.*take a donor of another type"):
        check_donor(target, target)


def test_a_tokenizer_written_in_python_is_refused():
    with pytest.raises(ModelError, match=r"--donor x has a tokenizer written in Python.*tokenizer.json"):
        spell(SimpleNamespace(is_fast=False), 9, "--donor x")
