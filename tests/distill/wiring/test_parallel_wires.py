"""`--parallel` by its effect: every guess is compared with the target where it looks, by passes of its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from by_hand import LOSSES, close
from tiny_models import make_model
from tiny_runs import Said, any_config, example, gradient

from specdistill.data import Provenance
from specdistill.data.batch import collate, join_soft_labels
from specdistill.data.mask_tokens import every_mask
from specdistill.data.soft_labels import likeliest
from specdistill.decoding import Sampling
from specdistill.distill.sequences.sources import Source
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training.anchors import Anchored, round_starts
from specdistill.distill.training.heldout_parallel import ParallelHeldOut, TargetSays, target_says
from specdistill.distill.training.loss import DistillationLoss, StepTotals
from specdistill.distill.training.parallel_settings import ParallelLoss, ParallelSettings
from specdistill.distill.training.step import guesses_by_depth
from specdistill.errors import DataError
from specdistill.evaluation.acceptance import predicted_tau, score
from specdistill.evaluation.answer_states import answer_hidden_states
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models.mask_token import install_mask_token
from specdistill_kernels import SoftLabels

MASK, TOKENS = 2, 3


@pytest.fixture(scope="module")
def models():
    target, draft = make_model(layers=2), make_model(layers=1, seed=9)
    install_mask_token(draft, ParallelDrafting(MASK, TOKENS), 65)
    return target, draft


def masked(one, masks=None):
    return dataclasses.replace(one, masks=every_mask(len(one.answer_ids), TOKENS) if masks is None else masks)


EXAMPLES = [masked(example((3, 5, 4), (6, 7, 8, 1), name="a")), masked(example((3, 9, 4), (11, 12), name="b"), (1, 0))]


def guesses(examples):
    """(example, first answer token of the round, depth from 1) of every guess."""
    found = []
    for one in examples:
        for first, count in enumerate(one.masks):
            found += [(one, first, depth) for depth in range(1, count + 2)]
    return found


def by_hand(target, draft, examples, mask=MASK, columns=65):
    """Probabilities of target and draft of every guess, each by a pass of its own, float64 [guesses, vocabulary]."""
    p, q = [], []
    for one, first, depth in guesses(examples):
        text = [*one.prompt_ids, *one.answer_ids[:first]]
        seen = [*one.prompt_ids, *one.answer_ids[: first + depth - 1]]
        p.append(target.model(torch.tensor([seen])).logits[0, -1, :columns].double().softmax(-1))
        guess = draft.model(torch.tensor([[*text, *[mask] * (depth - 1)]])).logits[0, -1, :columns]
        q.append(guess.double().softmax(-1))
    return torch.stack(p), torch.stack(q)


def all_labels(target):
    """Soft labels of the examples with every id."""
    labels = []
    for one in EXAMPLES:
        flat = likeliest(target.logits(answer_hidden_states(target, [one])[0]).log_softmax(-1), 65)
        labels.append(SoftLabels(flat.ids.view(-1, 65), flat.log_probs.view(-1, 65)))
    return join_soft_labels(labels)


def loss_of(target, draft, examples, *, parallel=None, soft_labels=None, **settings):
    objective = any_config(parallel=TOKENS, **settings).objective
    if parallel is not None:
        objective = dataclasses.replace(objective, parallel=parallel)
    module = DistillationLoss(draft, target, objective)
    hidden = None
    if objective.needs_target and soft_labels is None:
        hidden = torch.cat(answer_hidden_states(target, examples))
    totals = StepTotals(sum(len(one.answer_ids) for one in examples), 2, tuple(guesses_by_depth(examples, TOKENS)))
    return module(collate(examples), hidden, totals, soft_labels=soft_labels)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_loss_is_the_mean_over_all_guesses(models, kind):
    p, q = by_hand(*models, EXAMPLES)
    assert len(p) == (3 + 3 + 2 + 1) + (2 + 1)
    out = loss_of(*models, EXAMPLES, divergence=kind)
    assert float(out.loss.detach()) == close(LOSSES[kind](p, q).mean().item())
    own = [depth == 1 for _, _, depth in guesses(EXAMPLES)]
    assert float(out.alpha_sum) == close(torch.minimum(p, q).sum(-1)[own].sum().item()), "alpha is that of one token"


@pytest.mark.parametrize("kind", ["fkl", "tvd"])
def test_gradients_are_those_of_separate_passes(models, kind):
    target, draft = models
    p, q = by_hand(target, draft, EXAMPLES)
    expected = gradient(LOSSES[kind](p.detach(), q).mean().float(), draft)
    assert torch.allclose(gradient(loss_of(*models, EXAMPLES, divergence=kind).loss, draft), expected, atol=1e-5)
    embedding = draft.model.get_input_embeddings().weight
    (of_mask,) = torch.autograd.grad(loss_of(*models, EXAMPLES, divergence=kind).loss, embedding)
    assert of_mask[MASK].abs().max() > 0, "the mask token learns"


def test_a_new_mask_token_begins_as_the_mean_of_all_tokens():
    """In the head too, where it has a row of its own: else a reserved token's own row would be guessed from."""
    draft = make_model(layers=1, seed=9)
    embedding, head = draft.model.get_input_embeddings().weight, draft.head_weight
    assert embedding is not head
    means = embedding.detach().mean(0), head.detach().mean(0)
    install_mask_token(draft, ParallelDrafting(7, TOKENS), 65)
    for rows, mean in zip((draft.model.get_input_embeddings().weight, draft.head_weight), means, strict=True):
        assert torch.allclose(rows[7], mean, atol=1e-6)
    # A draft that has it already keeps what it learned.
    with torch.no_grad():
        draft.head_weight[7] = 3.0
    install_mask_token(draft, ParallelDrafting(7, TOKENS), 65)
    assert torch.equal(draft.head_weight[7], torch.full_like(draft.head_weight[7], 3.0))


def test_a_mask_token_beyond_the_tokenizers_ids_is_trained_away():
    """67 columns of 72: the tokenizer's 65, one row of padding, and the mask's, of which engines must draw none."""
    mask = 66
    target, draft = make_model(layers=2, vocab_size=72), make_model(layers=1, seed=9, vocab_size=72)
    install_mask_token(draft, ParallelDrafting(mask, TOKENS), 72)
    with torch.no_grad():
        draft.head_weight[mask] = draft.head_weight[:65].mean(0) * 4
    p, q = by_hand(target, draft, EXAMPLES, mask=mask, columns=mask + 1)
    assert float(loss_of(target, draft, EXAMPLES).loss.detach()) == close(LOSSES["fkl"](p, q).mean().item())
    (of_head,) = torch.autograd.grad(loss_of(target, draft, EXAMPLES).loss, draft.head_weight)
    assert of_head[mask].abs().max() > 0 and not of_head[mask + 1 :].any()


def test_answers_that_hold_the_mask_token_are_said_once(models):
    class Text(Source):
        def next_batch(self, step):
            return [example((3, 5), (6, 7, 8)), example((3, 5), (6, *((MASK,) if step else ()), 8))]

    said = Said()
    text = Anchored(Text(), models[1], ParallelSettings(parallel=TOKENS), 0, said.say)
    text.next_batch(0)
    assert not said.lines
    assert [one.masks for step in (1, 2) for one in text.next_batch(step)]
    (line,) = said.lines
    assert f"answers hold token {MASK}, which is this draft's mask token" in line and "--mask-token" in line


def test_cross_entropy_predicts_the_text(models):
    _, q = by_hand(*models, EXAMPLES)
    labels = [one.answer_ids[first + depth - 1] for one, first, depth in guesses(EXAMPLES)]
    expected = -q[range(len(q)), labels].log().mean()
    assert float(loss_of(*models, EXAMPLES, method="seqkd").loss) == close(expected.item())


def test_mixed_in_cross_entropy_leaves_out_what_the_draft_wrote(models):
    own = [EXAMPLES[0], masked(example((3, 9, 4), (11, 12), Provenance.DRAFT, name="b"), (1, 0))]
    p, q = by_hand(*models, own)
    labels = [one.answer_ids[first + depth - 1] for one, first, depth in guesses(own)]
    theirs = torch.tensor([one.prompt_ids == EXAMPLES[0].prompt_ids for one, _, _ in guesses(own)])
    expected = 0.7 * LOSSES["fkl"](p, q).mean() - 0.3 * (q[range(len(q)), labels].log() * theirs).mean()
    assert float(loss_of(*models, own, ce_weight=0.3).loss) == close(expected.item())


def test_stored_labels_stand_where_the_guess_looks(models):
    p, q = by_hand(*models, EXAMPLES)
    loss = loss_of(*models, EXAMPLES, soft_labels=all_labels(models[0])).loss
    assert float(loss) == close(float(LOSSES["fkl"](p, q).mean()))


def test_depth_weights_by_hand(models):
    """Weights 1, 1/2, 1/4 of the three depths' means: 6 guesses one token ahead, 4 two, 2 three."""
    p, q = by_hand(*models, EXAMPLES)
    each = LOSSES["fkl"](p, q)
    depths = torch.tensor([depth for _, _, depth in guesses(EXAMPLES)])
    assert [(depths == depth).sum() for depth in (1, 2, 3)] == [6, 4, 2]
    means = [float(each[depths == depth].mean()) for depth in (1, 2, 3)]
    expected = (means[0] + means[1] / 2 + means[2] / 4) / 1.75
    assert float(loss_of(*models, EXAMPLES, parallel_weights=0.5).loss) == close(expected)
    assert ParallelLoss(tokens=3, decay=0.5).depth_weights((6, 4, 0)) == pytest.approx([1 / 9, 1 / 12, 0])


@pytest.mark.parametrize("labelled", [False, True])
def test_confidence_is_the_targets_probability_of_the_text_up_to_the_guess(models, labelled):
    target, draft = models
    p, q = by_hand(target, draft, EXAMPLES)
    reached, soft = [], None
    for one, first, depth in guesses(EXAMPLES):
        chance = 1.0
        for ahead in range(depth - 1):
            seen = [*one.prompt_ids, *one.answer_ids[: first + ahead]]
            chance *= float(target.model(torch.tensor([seen])).logits[0, -1].softmax(-1)[one.answer_ids[first + ahead]])
        reached.append(chance)
    if labelled:
        flat = [
            likeliest(target.logits(answer_hidden_states(target, [one])[0]).log_softmax(-1), 65) for one in EXAMPLES
        ]
        soft = join_soft_labels([SoftLabels(row.ids.view(-1, 65), row.log_probs.view(-1, 65)) for row in flat])
    expected = (LOSSES["fkl"](p, q) * torch.tensor(reached)).mean()
    found = loss_of(target, draft, EXAMPLES, parallel_confidence=True, soft_labels=soft).loss
    assert float(found) == close(expected.item())


# ---- anchors, and what is watched


def test_rounds_begin_where_the_drafts_own_would(models):
    """The text is the draft's likeliest tokens one by one; guesses further ahead differ from it where they do."""
    _, draft = models
    text = [3, 5, 4, 6]
    while len(text) < 16:
        text.append(int(draft.logits(draft.hidden_states(torch.tensor([text])))[0, -1].argmax()))
    one, starts, start = example(text[:3], text[3:]), [], 1
    while start < len(one.answer_ids):
        starts.append(start)
        kept = 0
        while kept < TOKENS and start + kept < len(one.answer_ids):
            ids = [*one.prompt_ids, *one.answer_ids[:start], *[MASK] * kept]
            if (
                int(draft.logits(draft.hidden_states(torch.tensor([ids])))[0, -1].argmax())
                != one.answer_ids[start + kept]
            ):
                break
            kept += 1
        start += kept + 1
    assert round_starts(draft, one, TOKENS) == starts
    assert len(starts) < len(one.answer_ids) - 1, "some guess was kept"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", ["greedy", "sampled", "argmax_draft"])
def test_the_watched_numbers_are_those_that_bench_predicts(models, rule, temperature):
    """Two ways to the same numbers: one expanded pass here, branches behind a cache in `evaluation`."""
    target, draft = models
    sampling = Sampling(temperature=temperature)
    says = target_says(target, EXAMPLES, sampling, TargetStates(target))
    sums = ParallelHeldOut(EXAMPLES, says, sampling, rule, TOKENS).sums(draft)
    records = score(target, draft, EXAMPLES, sampling, depths=TOKENS)
    ordinary = score(target, dataclasses.replace(draft, one_by_one=True), EXAMPLES, sampling)
    for name, of in (("tokens_per_call", records), ("tokens_per_call_one_by_one", ordinary)):
        for found, wanted in zip(sums[name], predicted_tau(of, rule, TOKENS), strict=True):
            assert found == pytest.approx(wanted, rel=1e-5)
    for depth in (1, 2, 3):
        wanted = [record.token_acceptance[rule][: record.num_tokens - depth + 1, depth - 1] for record in records]
        assert sums[f"acceptance_at_{depth}"][0] == pytest.approx([rates.sum() for rates in wanted], rel=1e-5)


def test_depths_that_no_held_out_answer_reaches_are_named_and_left_out(models):
    """They were 28 times `nan`: answers of 4 and 2 tokens, and guesses of up to 9."""
    target, draft = models
    sampling, lines = Sampling(temperature=1.0), []
    says = target_says(target, EXAMPLES, sampling, TargetStates(target))
    deep = ParallelHeldOut(EXAMPLES, says, sampling, "sampled", 9)
    deep.announce(lines.append)
    rule, line = lines
    assert "9 draft tokens, rule sampled" in rule and "--rule argmax_draft" in rule
    assert "no held-out answer has more than 4 tokens: guesses from 5 on are not measured" in line
    sums = deep.sums(draft)
    names = ["tokens_per_call", "tokens_per_call_one_by_one", *(f"acceptance_at_{depth}" for depth in (1, 2, 3, 4))]
    assert deep.names == list(sums) == names
    assert all(counts.sum() > 0 for _, counts in sums.values())
    ParallelHeldOut(EXAMPLES, says, sampling, "argmax_draft", 4).announce(lines.append)
    assert lines[2:] == ["tokens per call and acceptance by depth: 4 draft tokens, rule argmax_draft"]


def test_answers_of_one_token_leave_nothing_to_draft():
    """Tokens per target call would be 0 / 0, and no draft better than the start."""
    ends = [example((3, 5, 4), (1,)), example((3, 4), (1,))]
    with pytest.raises(DataError, match=r"ends with its first token, .* nothing to draft; look at OUTPUT/heldout"):
        ParallelHeldOut(ends, [], Sampling(), "sampled", 3)
    ParallelHeldOut([*ends, EXAMPLES[0]], [], Sampling(), "sampled", 3)


@pytest.mark.parametrize("rule", ["greedy", "sampled", "argmax_draft"])
def test_acceptance_by_depth_by_hand(models, rule):
    target, draft = models
    p, q = by_hand(target, draft, [masked(one, every_mask(len(one.answer_ids), TOKENS)) for one in EXAMPLES])
    full = [masked(one) for one in EXAMPLES]
    places = guesses(full)
    says = []
    for one in full:
        firsts = [row for row, (other, _, depth) in enumerate(places) if other is one and depth == 1]
        labels = torch.tensor(one.answer_ids)
        says.append(TargetSays(p[firsts].log().float().gather(1, labels[:, None])[:, 0], p[firsts].argmax(-1)))
    sums = ParallelHeldOut(full, says, Sampling(temperature=1.0), rule, TOKENS).sums(draft)
    for depth in (1, 2, 3):
        expected = []
        for row, (one, first, at) in enumerate(places):
            label = one.answer_ids[first + at - 1]
            chance = {
                "greedy": float(p[row].argmax() == q[row].argmax()),
                "sampled": min(1.0, float(q[row, label] / p[row, label])),
                "argmax_draft": float(q[row].argmax() == label),
            }[rule]
            expected += [chance] if at == depth else []
        numerators, counts = sums[f"acceptance_at_{depth}"]
        assert (numerators.sum(), counts.sum()) == (close(sum(expected)), len(expected))
