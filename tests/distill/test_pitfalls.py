"""The field's known mistakes, one test each, named after the mistake: what distillation code has got wrong in public.

Each docstring says where. The longer tests of the same parts are in the files beside this one.
"""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.stats import chisquare
from tiny_models import make_model, make_tokenizer, perturbed
from tiny_runs import example, loss_module, on_policy, skd_source, train

from specdistill.data import Example, Prompt, Provenance
from specdistill.data.batch import collate
from specdistill.data.prompts import encode_all
from specdistill.decoding import Generation, Round, Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.proof import prove
from specdistill.decoding.sampling import Keys
from specdistill.decoding.speculative import Proposal
from specdistill.distill.answers import shards
from specdistill.distill.sequences.pool import Pool
from specdistill.distill.sequences.skd import TopKAcceptance
from specdistill.distill.sequences.sources import Mixture
from specdistill.distill.training.loss import DistillationLoss, StepTotals, divergence_of
from specdistill.errors import DataError
from specdistill.evaluation import economics
from specdistill.evaluation.acceptance import answer_hidden_states, score
from specdistill.evaluation.sections import by_position
from specdistill.evaluation.statistics import paired_difference, ratio
from specdistill.progress import Quiet
from specdistill_kernels import SoftLabels, expected_acceptance, fused_divergence
from specdistill_kernels.fused_divergence.reference import divergence


def logits(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def random_rows(rows=6, vocab=20, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, vocab, generator=generator, dtype=dtype) for _ in range(2)]


# ---- divergences


def test_pitfall_jsd_near_its_ends_is_only_a_learning_rate():
    """TRL, Liger, OPSD: beta = 0.01 gives a hundredth of beta = 0."""
    draft, target = random_rows()
    values = []
    for beta in (0.0, 0.001, 0.01, 0.5, 0.99, 0.999, 1.0):
        kind, inner, scale = divergence_of("jsd", beta)
        values.append(float(scale * divergence(draft, target, kind, beta=inner).mean()))
    assert max(values) < 3 * min(values)


def test_pitfall_jsd_of_the_mixture_in_the_wrong_direction():
    """speculative_kd: KL(M || P) instead of KL(P || M); only the right one is bounded by log 2."""
    value = divergence(logits(1 - 1e-12, 1e-12), logits(1e-12, 1 - 1e-12), "jsd", beta=0.5)
    assert float(value) == pytest.approx(math.log(2), abs=1e-9)


def test_pitfall_forward_kl_as_soft_cross_entropy_is_not_zero_at_equality():
    """torchtune, OSD: without the target's entropy progress can't be read from the loss."""
    draft, _ = random_rows()
    assert float(divergence(draft, draft, "fkl").abs().max()) < 1e-12


def test_pitfall_tvd_has_no_gradient_where_supports_are_disjoint_but_the_hybrid_has():
    """LK losses: pure TV from scratch fails."""
    target = torch.tensor([[0.0, 200.0]], dtype=torch.float64)
    norms = {}
    for kind in ("tvd", "lk_lambda"):
        draft = torch.tensor([[200.0, 0.0]], dtype=torch.float64, requires_grad=True)
        divergence(draft, target, kind).sum().backward()
        norms[kind] = float(draft.grad.norm())
    assert norms["tvd"] < 1e-12 and norms["lk_lambda"] > 0.5


def test_pitfall_tvd_gradient_where_both_agree_is_zero():
    """sign(0) must be 0: an equal draft is at the minimum."""
    rows, _ = random_rows()
    draft = rows.clone().requires_grad_()
    output = fused_divergence(
        draft, torch.eye(20).double(), rows, torch.eye(20).double(), torch.ones(6).double(), kind="tvd"
    )
    output.loss.backward()
    assert float(draft.grad.abs().max()) < 1e-12


def test_pitfall_lk_weight_carries_gradient():
    """LK: lambda = exp(-eta alpha) is held constant, or it would be optimised itself."""
    draft, target = random_rows()
    draft.requires_grad_()
    alpha = torch.minimum(draft.softmax(-1), target.softmax(-1)).sum(-1).detach()
    weight = (-3 * alpha).exp()
    parts = weight * divergence(draft, target, "fkl") + (1 - weight) * divergence(draft, target, "tvd")
    (wanted,) = torch.autograd.grad(parts.sum(), draft)
    (got,) = torch.autograd.grad(divergence(draft, target, "lk_lambda", eta=3.0).sum(), draft)
    torch.testing.assert_close(got, wanted)


def soft(target, k):
    top = target.log_softmax(-1).topk(k)
    return SoftLabels(top.indices, top.values)


def soft_loss(draft, target, k):
    width = draft.shape[1]
    eye, mean = torch.eye(width, dtype=draft.dtype), torch.ones(len(draft), dtype=draft.dtype)
    return fused_divergence(draft, eye, None, None, mean, kind="fkl", soft_labels=soft(target, k))


def test_pitfall_top_k_labels_leave_the_drafts_mass_outside_free():
    """NeMo-RL renormalises over the top k: mass that the draft puts elsewhere costs nothing there."""
    target = logits(0.5, 0.4, 0.05, 0.05)
    inside, outside = logits(0.5, 0.4, 0.05, 0.05), logits(0.05, 0.04, 0.455, 0.455)
    assert float(soft_loss(inside, target, 2).loss) < 1e-9
    assert float(soft_loss(outside, target, 2).loss) > 1


def test_pitfall_gradient_of_truncated_forward_kl():
    """verl-recipe: with the mass m of the top k the gradient is not q - p; with a tail it is that of K + 1 outcomes."""
    draft, target = random_rows()
    one = draft.clone().requires_grad_()
    soft_loss(one, target, 5).loss.backward()
    two = draft.clone().requires_grad_()
    labels = soft(target, 5)
    log_q = two.log_softmax(-1)
    top = log_q.gather(1, labels.token_ids)
    tail = (1 - top.exp().sum(-1)).log()
    left = 1 - labels.log_probs.exp().sum(-1)
    kl = (labels.log_probs.exp() * (labels.log_probs - top)).sum() + (left * (left.log() - tail)).sum()
    kl.backward()
    torch.testing.assert_close(one.grad, two.grad)


def test_pitfall_loss_times_temperature_squared():
    """Hinton's factor changes the learning rate with the temperature; ours has none."""
    draft, target = random_rows()
    eye = torch.eye(20, dtype=torch.float64)
    output = fused_divergence(draft, eye, target, eye, torch.ones(6).double(), kind="fkl", temperature=2.0)
    torch.testing.assert_close(output.loss, divergence(draft / 2, target / 2, "fkl").sum(), rtol=1e-6, atol=1e-7)


def test_pitfall_loss_temperature_follows_the_sampling_only():
    """TRL GKD samples at 0.9 and takes its loss at 1, and its Liger path the other way; here they are two settings."""
    model = make_model()
    assert loss_module(model, model, temperature=0.9).temperature == 0.9
    assert loss_module(model, model, temperature=0.9, loss_temperature=1.5).temperature == 1.5


def test_pitfall_padded_vocabulary_takes_probability():
    """Liger pads with zero logits, TRL refuses, GOLD resizes the target: here padding has no part."""
    draft, target = random_rows(dtype=torch.float32)
    loss = fused_divergence(
        draft,
        torch.cat([torch.eye(20), 9 * torch.ones(4, 20)]),
        target,
        torch.cat([torch.eye(20), -9 * torch.ones(7, 20)]),
        torch.ones(6),
        kind="fkl",
        vocab_size=20,
    ).loss
    torch.testing.assert_close(loss, divergence(draft, target, "fkl").sum(), rtol=1e-5, atol=1e-5)


def test_pitfall_head_gradient_summed_in_bfloat16():
    """Liger #1432: sums of bfloat16 over many tiles lose percents of the gradient."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(512, 8, generator=generator)
    head = torch.randn(30, 8, generator=generator).bfloat16().requires_grad_()
    target = torch.randn(512, 30, generator=generator)
    settings = {"kind": "fkl", "tile_rows": 4}
    fused_divergence(
        hidden.bfloat16(), head, target, torch.eye(30), torch.full((512,), 1.0), **settings
    ).loss.backward()
    exact = head.detach().double().requires_grad_()
    divergence(hidden.bfloat16().double() @ exact.T, target.double(), "fkl").sum().backward()
    error = (head.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert float(error) < 0.005


# ---- masks and counts


def test_pitfall_mask_not_shifted_with_the_labels():
    """DistillKit, OSD, speculative_kd: a one-token answer has exactly one position that predicts it."""
    batch = collate([example((5, 6, 7), (8,))])
    assert batch.predicting[0].tolist() == [False, False, True, False] and batch.labels.tolist() == [8]


def test_pitfall_end_of_sequence_masked_because_it_is_the_padding_id():
    """TRL #6357: where pad and eos are one id, the answer's end is still trained on, and nothing after it."""
    batch = collate([example((5,), (8, 1), name="a"), example((5,), (8, 9, 9, 1), name="b")], pad_id=1)
    assert batch.labels.tolist() == [8, 1, 8, 9, 9, 1] and batch.num_response_tokens == 6


def test_pitfall_only_one_of_several_end_ids_ends_an_answer():
    """Llama 3 lists several: a generation ends at the first of any of them, which is part of the answer."""
    target = make_model()
    target.model.generation_config.eos_token_id = [1, 30, 31, 32, 33, 34, 35, 36]
    written = generate_plain(target, [[3, 5, 4]] * 20, sampling=Sampling(), max_new_tokens=40, seeds=list(range(20)))
    stops = target.eos_token_ids
    assert {answer.token_ids[-1] for answer in written if answer.finish_reason == "eos"} - {1}
    assert not any(set(answer.token_ids[:-1]) & stops for answer in written)


def test_pitfall_tokens_counted_before_the_rollout(tiny, tmp_path, monkeypatch):
    """TRL GKD and GOLD divide by the data set's count; here by the tokens that the step trains on."""
    counted = []
    original = DistillationLoss.forward

    def spy(self, batch, hidden, totals, *rest):
        counted.append((totals.tokens, batch.num_response_tokens))
        return original(self, batch, hidden, totals, *rest)

    monkeypatch.setattr(DistillationLoss, "forward", spy)
    train(tiny, tmp_path / "out", method="gkd", lmbda=1.0, steps=4)
    assert len(counted) == 4 and all(total == real for total, real in counted)


def test_pitfall_no_valid_token_breaks_the_gradient_path():
    """A rank without tokens still has to join the collectives of backward: loss 0, gradients 0, not None."""
    target, draft = make_model(), make_model(seed=2, layers=1)
    module = loss_module(draft, target)
    output = module(collate([Example("a", (5, 6), (), ())]), torch.empty(0, 32), StepTotals(0, 1))
    output.loss.backward()
    assert float(output.loss) == 0
    assert all(weight.grad is not None and float(weight.grad.abs().max()) == 0 for weight in draft.model.parameters())


def test_pitfall_truncation_eats_the_prompt():
    """TRL #4725: keeping the last tokens drops the prompt; here a prompt that does not fit is named and refused."""
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match="prompt 'long' has 12 tokens, but only 8 fit"):
        encode_all([Prompt("long", ({"role": "user", "content": "w1 " * 10},))], tokenizer, 8)


def test_pitfall_answers_are_tokenised_again(tmp_path):
    """speculative_kd decodes, splits and tokenises again: ids change. Here the ids that were sampled are trained on."""
    target = make_model()
    prompt = Prompt("p", ({"role": "user", "content": "w1"},))
    settings = shards.RolloutSettings(Sampling(), 12, 0)
    ids = [3, 6, 4]
    shards.sample_rollouts(target, [prompt], [ids], settings, copies=1, directory=tmp_path, progress=Quiet())
    (rollout,) = shards.load_rollouts(tmp_path, [prompt], [ids], 65)
    seed = shards.rollout_seed(0, "p", 0)
    written = generate_plain(target, [ids], sampling=Sampling(), max_new_tokens=12, seeds=[seed])
    assert list(rollout.answer_ids) == written[0].token_ids and rollout.prompt_ids == (3, 6, 4)


# ---- distributed


def test_pitfall_loss_bypasses_the_wrapper(tiny, tmp_path, monkeypatch):
    """DistillKit, TRL #5934: `model.module` skips DDP's hooks. Every loss must pass through what prepare() returned."""
    calls = []
    original = Accelerator.prepare

    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *arguments):
            calls.append(len(arguments))
            return self.inner(*arguments)

    def prepare(self, loss, optimizer):
        loss, optimizer = original(self, loss, optimizer)
        return Wrapper(loss), optimizer

    monkeypatch.setattr(Accelerator, "prepare", prepare)
    inner = []
    forward = DistillationLoss.forward
    monkeypatch.setattr(DistillationLoss, "forward", lambda self, *a: inner.append(1) or forward(self, *a))
    train(tiny, tmp_path / "out", micro_batch_size=4, steps=4)
    assert len(calls) == len(inner) == 8


class Named:
    def __init__(self, name):
        self.name = name

    def next_batch(self, step):
        return [self.name]

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_pitfall_ranks_draw_different_coins():
    """TRL GKD: each rank's own random(): some generate while others wait in a collective for ever."""
    ranks = [Mixture(Named("own"), Named("fixed"), 0.5, seed=7) for _ in range(4)]
    for step in range(50):
        assert len({rank.next_batch(step)[0] for rank in ranks}) == 1


def test_pitfall_resume_forgets_the_coin_and_the_data_position():
    """The coins and the order of the data go on where they were."""
    texts = [Example(letter, (ord(letter),), (), ()) for letter in "abcdefgh"]
    uncut, first = (Mixture(Named("own"), Pool(texts, 3, 0), 0.5, seed=7) for _ in range(2))
    seen = [uncut.next_batch(step) for step in range(20)]
    assert [first.next_batch(step) for step in range(9)] == seen[:9]
    resumed = Mixture(Named("own"), Pool(texts, 3, 99), 0.5, seed=99)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [resumed.next_batch(step) for step in range(9, 20)] == seen[9:]


# ---- generation


def test_pitfall_penalties_of_the_generation_config():
    """Soup #345, TRL #6337: under a repetition penalty an identical draft scores 0.86. Here it scores 1."""
    target = make_model()
    target.model.generation_config.repetition_penalty = 1.5
    target.model.generation_config.top_k = 2
    plain = make_model()
    arguments = {"sampling": Sampling(), "max_new_tokens": 20, "seeds": [1, 2, 3]}
    prompts = [[3, 5, 4], [3, 6, 4], [3, 7, 4]]
    written = generate_plain(target, prompts, **arguments)
    assert [answer.token_ids for answer in written] == [
        answer.token_ids for answer in generate_plain(plain, prompts, **arguments)
    ]
    examples = [example(prompt, answer.token_ids) for prompt, answer in zip(prompts, written, strict=True)]
    for record in score(target, plain, examples, Sampling()):
        assert all(np.allclose(record.alpha[rule], 1, atol=1e-6) for rule in ("greedy", "sampled"))


def test_pitfall_no_kv_cache_while_generating_under_gradient_checkpointing():
    """TRL GKD turns the cache off: every token then costs a pass over the whole sequence."""
    draft = make_model()
    draft.model.gradient_checkpointing_enable()
    draft.model.train()
    prove(draft)
    widths = []
    hook = draft.model.base_model.register_forward_pre_hook(
        lambda module, arguments, named: widths.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    generate_plain(draft, [[3, 5, 6, 7, 4]], sampling=Sampling(temperature=0.0), max_new_tokens=8, seeds=[0])
    hook.remove()
    assert widths[0] == 5 and set(widths[1:]) == {1}


def test_pitfall_dropout_while_generating():
    """eval mode for rollouts, train mode after; a draft with dropout then writes the same answer twice."""
    draft = make_model("gpt2")
    for module in draft.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    draft.model.train()
    settings = {"max_new_tokens": 10, "batch_size": 1}
    source = on_policy(draft, [Prompt("p", ())], [[3, 5, 4]], Sampling(temperature=0.0), **settings)
    assert source.next_batch(1)[0].answer_ids == source.next_batch(2)[0].answer_ids
    assert draft.model.training


def test_pitfall_skd_tests_one_token_and_emits_another():
    """speculative_kd samples again for the test: every draft token that stays must itself be in the target's top K."""
    target, draft = make_model(), make_model(seed=4)
    settings = {"top_k": 4, "num_draft_tokens": 4, "max_new_tokens": 40, "batch_size": 4}
    source = skd_source(target, draft, [Prompt("p", ())], [[3, 5, 4]], Sampling(temperature=1.5), **settings)
    for answered in source.next_batch(1):
        best = target.logits(answer_hidden_states(target, [answered])[0]).topk(4).indices
        own = [position for position, writer in enumerate(answered.provenance) if writer == Provenance.DRAFT]
        assert own and all(answered.answer_ids[position] in best[position] for position in own)


def test_pitfall_skd_top_k_after_the_warpers():
    """After top_p = 0.5 nearly all logits are -inf and the top 25 is arbitrary; the raw ranks decide here."""
    target = torch.tensor([[9.0, 3.0, 2.0, 1.0, 0.0, -1.0], [0.0] * 6])
    keys = Keys(torch.tensor([0]), torch.tensor([0]))
    for token, kept in ((3, 1), (4, 0)):
        proposal = Proposal(torch.tensor([token]), torch.tensor([1]), None)
        accept = TopKAcceptance(4, Sampling(temperature=0.2, top_p=0.5))
        assert accept(target, proposal, keys).num_accepted.tolist() == [kept]


def test_pitfall_skd_goes_on_behind_a_replaced_token():
    """Only the first token outside is replaced; what the draft wrote behind it was written for another text."""
    target = torch.full((4, 6), -5.0)
    target[0, 0], target[1, 1], target[2, 2], target[3, 3] = 5, 5, 5, 5
    proposal = Proposal(torch.tensor([0, 4, 2]), torch.tensor([3]), None)
    verified = TopKAcceptance(1, Sampling(temperature=0.0))(
        target, proposal, Keys(torch.tensor([0]), torch.tensor([0]))
    )
    assert verified.num_accepted.tolist() == [1] and verified.next_token.tolist() == [1]


# ---- measuring


def test_pitfall_alpha_of_the_wrong_rule():
    """vLLM drafts by argmax: p(argmax q) is not sum min(p, q), and neither is argmax agreement."""
    statistics = expected_acceptance(logits(0.5, 0.3, 0.2), logits(0.2, 0.2, 0.6))
    assert float(statistics.sampled) == pytest.approx(0.6)
    assert float(statistics.argmax_draft) == pytest.approx(0.2)
    assert float(statistics.greedy) == 0


def test_pitfall_bonus_token_counted_as_accepted():
    """llama.cpp #14104, SGLang #23530: (accepted + 1) / (proposed + 1) is no acceptance rate; tau does count it."""
    generation = Generation()
    generation.rounds = [Round(4, 0, 1), Round(4, 2, 3), Round(4, 4, 5)]
    joint, conditional = by_position([generation], 4)
    assert joint == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3]) and conditional[0] == pytest.approx(2 / 3)
    assert sum(entry.emitted for entry in generation.rounds) / 3 == 3.0


def test_pitfall_speed_up_without_the_measured_costs():
    """tau alone is no speed-up: a draft step and the wider check cost what they cost."""
    speedup = 3.0 / economics.Costs(1.0, 0.6, {5: 1.5}).round_cost(4, 3.0)
    assert speedup == pytest.approx(3.0 / 3.9) and speedup < 1


def test_pitfall_identical_draft_is_rejected():
    """draft == target: every proposal stays, and greedy output is the target's own."""
    target = make_model()
    decoder = SpeculativeDecoder(target, copy.copy(target), num_draft_tokens=4, sampling=Sampling(temperature=0.0))
    (generation,) = decoder.generate([[3, 5, 4]], max_new_tokens=30, seeds=[0])
    assert all(entry.accepted == entry.proposed for entry in generation.rounds)
    plain = generate_plain(target, [[3, 5, 4]], sampling=Sampling(temperature=0.0), max_new_tokens=30, seeds=[0])
    assert generation.token_ids == plain[0].token_ids


def test_pitfall_unpaired_comparison_of_two_drafts():
    """Prompts differ more than drafts do: on the same prompts a small gain is seen that two intervals hide."""
    generator = np.random.default_rng(0)
    tokens = np.full(200, 64.0)
    before = generator.uniform(0.2, 0.9, 200) * tokens
    after = before + 0.01 * tokens
    one, other = ratio(before, tokens), ratio(after, tokens)
    assert one.high > other.low
    assert paired_difference((after, tokens), (before, tokens)).low > 0


def test_pitfall_output_that_does_not_follow_the_target():
    """Whatever the draft, the second token has the target's distribution (chi-square over the vocabulary)."""
    target = make_model(tokenizer=make_tokenizer(5), vocab_size=10, scale=1.5)
    decoder = SpeculativeDecoder(target, perturbed(target, 0.5), num_draft_tokens=2, sampling=Sampling())
    rows = 3000
    written = decoder.generate([[3, 5, 4]] * rows, max_new_tokens=2, seeds=list(range(rows)))

    def next_token(ids):
        return target.logits(target.hidden_states(torch.tensor([ids]))[0, -1]).softmax(-1).detach().double()

    first = next_token([3, 5, 4])
    # A first token of 1 ends the answer.
    second = sum(chance * next_token([3, 5, 4, token]) for token, chance in enumerate(first) if token != 1)
    counts = np.bincount([answer.token_ids[1] for answer in written if len(answer.token_ids) > 1], minlength=10)
    expected = (second / second.sum()).numpy() * counts.sum()
    assert chisquare(counts, expected).pvalue > 1e-4
