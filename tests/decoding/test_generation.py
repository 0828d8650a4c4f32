"""Stop strings, streaming, padded input, and draft lengths that change from round to round."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_model, perturbed

from specdistill.decoding import AutoLength, ConfidenceLength, Sampling, SpeculativeDecoder, generate_plain, unpad
from specdistill.decoding.costs import Costs
from specdistill.decoding.proof import prove
from specdistill.decoding.sampling import process
from specdistill.errors import ConfigError

GREEDY = Sampling(temperature=0.0)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21], [30, 31, 32, 33, 34], [9]]
NEW = 40


@pytest.fixture(scope="module")
def pair():
    target = make_model()
    return target, perturbed(target, 0.02)


def plain(target, **settings):
    defaults = {"sampling": GREEDY, "max_new_tokens": NEW, "seeds": [0, 1, 2, 3]}
    return generate_plain(target, PROMPTS, **(defaults | settings))


def speculative(pair, length=4, sampling=GREEDY, rule=None, **settings):
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=length, sampling=sampling, rule=rule)
    return decoder.generate(PROMPTS, **({"max_new_tokens": NEW, "seeds": [0, 1, 2, 3]} | settings))


def test_stop_strings_end_at_the_same_token_with_and_without_a_draft(pair):
    free = plain(pair[0])
    words = pair[0].tokenizer.convert_ids_to_tokens(free[0].token_ids)
    # A string that spans a token boundary, as stop strings do.
    stop = f"{words[9][1:]} {words[10][:2]}"
    wanted = plain(pair[0], stop_strings=(stop, "never"))
    assert wanted[0].finish_reason == "stop" and len(wanted[0].token_ids) <= 11
    assert wanted[0].token_ids == free[0].token_ids[: len(wanted[0].token_ids)]
    assert stop in pair[0].tokenizer.decode(wanted[0].token_ids)
    assert stop not in pair[0].tokenizer.decode(wanted[0].token_ids[:-1])
    for length in (1, 4, 8):
        results = speculative(pair, length, stop_strings=(stop, "never"))
        assert [result.token_ids for result in results] == [result.token_ids for result in wanted]
        assert [result.finish_reason for result in results] == [result.finish_reason for result in wanted]


def test_finish_reasons(pair):
    for result in [*plain(pair[0]), *speculative(pair)]:
        assert result.finish_reason == ("eos" if result.token_ids[-1] == 1 else "length")
    assert plain(pair[0], stop_strings=("",))[0].finish_reason != "stop", "an empty string stops nothing"


def test_streaming_gives_every_token_once_in_order(pair):
    for decode in (lambda **s: plain(pair[0], **s), lambda **s: speculative(pair, 4, **s)):
        streamed = {row: [] for row in range(4)}
        results = decode(on_tokens=lambda row, ids, streamed=streamed: streamed[row].append(ids))
        for row, result in enumerate(results):
            assert [token for ids in streamed[row] for token in ids] == result.token_ids
            assert all(streamed[row])
    lengths = [len(ids) for ids in streamed[0]]
    assert lengths[0] == 1 and max(lengths) > 1, "accepted runs arrive whole"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_mean_the_same_on_either_side(pair, side):
    longest = max(map(len, PROMPTS))
    ids, mask = torch.zeros(4, longest, dtype=torch.int64), torch.zeros(4, longest, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        place = slice(longest - len(prompt), None) if side == "left" else slice(0, len(prompt))
        ids[row, place], mask[row, place] = torch.tensor(prompt), 1
    assert unpad(ids, mask) == PROMPTS


@pytest.mark.parametrize("threshold", [0.05, 0.4, 0.95])
def test_confidence_changes_lengths_but_not_the_output(pair, threshold):
    wanted = [result.token_ids for result in plain(pair[0])]
    results = speculative(pair, ConfidenceLength(8, threshold))
    assert [result.token_ids for result in results] == wanted
    lengths = {entry.proposed for result in results for entry in result.rounds}
    assert len(lengths) > 1 and max(lengths) <= 8


def test_higher_threshold_drafts_less(pair):
    means = []
    for threshold in (0.01, 0.9):
        rounds = [entry for result in speculative(pair, ConfidenceLength(8, threshold)) for entry in result.rounds]
        means.append(sum(entry.proposed for entry in rounds) / len(rounds))
    assert means[1] < means[0]


def test_a_row_keeps_its_tokens_in_any_batch_also_with_confidence(pair):
    sampling = Sampling(temperature=0.5)
    together = speculative(pair, ConfidenceLength(6, 0.3), sampling)
    decoder = SpeculativeDecoder(*pair, num_draft_tokens=ConfidenceLength(6, 0.3), sampling=sampling)
    for row, prompt in enumerate(PROMPTS):
        alone = decoder.generate([prompt], max_new_tokens=NEW, seeds=[row])[0]
        assert alone.token_ids == together[row].token_ids


CHEAP = Costs(1.0, 0.05, {width: 1 + 0.02 * width for width in range(1, 10)} | {1: 1.0})
DEAR = Costs(1.0, 0.9, {width: 0.8 + 0.5 * width for width in range(1, 10)} | {1: 1.0})


def test_auto_drafts_long_when_it_is_cheap_and_right(pair):
    target, _ = pair
    policy = AutoLength(CHEAP, 8)
    for _ in range(5):
        results = speculative((target, target), policy)
    assert [result.token_ids for result in results] == [result.token_ids for result in plain(target)]
    assert max(entry.proposed for entry in results[0].rounds) == 8


def test_auto_stops_drafting_when_it_does_not_pay_and_looks_seldom(pair):
    target = pair[0]
    policy = AutoLength(DEAR, 8, probe_share=0.02)
    stranger = make_model(seed=77)
    for _ in range(6):
        results = speculative((target, stranger), policy)
    assert [result.token_ids for result in results] == [result.token_ids for result in plain(target)]
    rounds = [entry for result in results for entry in result.rounds]
    assert sum(entry.proposed > 0 for entry in rounds) <= 0.05 * len(rounds)
    assert all(entry.emitted == 1 for entry in rounds if entry.proposed == 0)


def test_auto_finds_the_length_with_the_highest_expected_speed():
    policy = AutoLength(CHEAP, 4)
    for _ in range(400):
        # Position 1 is nearly always right, position 2 never.
        policy.observe([4], [1])
    assert policy.limit(1) == 1
    assert policy.expected_speedup(1) == pytest.approx(2 / (0.05 + 1.04), rel=0.02)
    assert AutoLength(DEAR, 4).expected_speedup(0) == 1


def test_auto_forgives_a_bad_start():
    policy = AutoLength(CHEAP, 4)
    for _ in range(50):
        policy.observe([4], [0])
    assert policy.expected_speedup(1) < 1.1
    for _ in range(300):
        policy.observe([4], [4])
    assert policy.limit(1) == 4


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ConfidenceLength(0), "at least 1"),
        (lambda: ConfidenceLength(4, 1.0), "--confidence"),
        (lambda: AutoLength(CHEAP, 20), "costs must cover"),
    ],
)
def test_policies_refuse(make, text):
    with pytest.raises(ConfigError, match=text):
        make()


def test_block_accepts_more_than_token_verification_and_lenient_more_still(pair):
    sampling = Sampling(temperature=0.4)

    def mean_accepted(rule, **settings):
        decoder = SpeculativeDecoder(*pair, num_draft_tokens=6, sampling=sampling, rule=rule, **settings)
        kept = rounds = 0
        for repeat in range(4):
            seeds = [repeat * 1000 + row for row in range(40)]
            for result in decoder.generate(PROMPTS * 10, max_new_tokens=NEW, seeds=seeds):
                kept += sum(entry.accepted for entry in result.rounds)
                rounds += len(result.rounds)
        return kept / rounds

    token, block, lenient = mean_accepted("sampled"), mean_accepted("block"), mean_accepted("lenient", lenience=0.5)
    assert block > token and lenient > token + 0.1, (token, block, lenient)


def test_min_p():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = torch.isfinite(process(logits, Sampling(min_p=0.3)))[0].tolist()
    assert kept == [True, True, True, False]
    assert torch.isfinite(process(logits, Sampling(min_p=0.3, top_p=0.6)))[0].tolist() == [True, True, False, False]
    with pytest.raises(ConfigError, match="--min-p"):
        Sampling(min_p=1.0)


def test_steps_keep_their_shapes_so_that_they_can_be_captured():
    """Draft steps of 1 token (2 after a wholly kept draft), target passes of one width, keys in multiples of 64."""
    target = make_model()
    draft = perturbed(target, 0.02)
    # The proofs have passes of their own.
    prove(target), prove(draft)
    seen = {"target": set(), "draft": set()}

    def record(name):
        def hook(module, args, kwargs):
            ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
            seen[name].add((tuple(ids.shape), mask.shape[-1]))

        return hook

    handles = [
        model.base_model.register_forward_pre_hook(record(name), with_kwargs=True)
        for name, model in (("target", target), ("draft", draft))
    ]
    SpeculativeDecoder(target, draft, num_draft_tokens=3, sampling=GREEDY).generate(
        [[5, 6, 7]], max_new_tokens=50, seeds=[0]
    )
    for handle in handles:
        handle.remove()
    # The prompt, then one shape for all passes but the last ones, which the length limit shortens.
    assert ((1, 4), 64) in seen["target"] and len(seen["target"]) <= 5
    # The draft reads two tokens where all of its last ones were kept, else one.
    assert seen["draft"] == {((1, 4), 64), ((1, 1), 64), ((1, 2), 64)}
