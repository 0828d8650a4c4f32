"""Training of heads by its effect: every guess is compared with the target where it looks, by passes of its own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from head_drafts import make_head
from tiny_models import make_model
from tiny_runs import any_config, example, gradient

from specdistill.data import Provenance
from specdistill.data.batch import collate
from specdistill.decoding import Sampling
from specdistill.distill.target.head_states import HeadStates
from specdistill.distill.training import head_rows as head_rows_module
from specdistill.distill.training.head_loss import build_loss
from specdistill.distill.training.head_settings import HeadSettings
from specdistill.distill.training.heldout_head import head_scorers
from specdistill.distill.training.loss import StepTotals
from specdistill.distill.training.step import NOTHING
from specdistill.evaluation.rounds import expected_rounds
from specdistill.models import ModelPair
from specdistill.models.eagle3 import AuxStates

STEPS, DECAY = 3, 0.5
IDS = [0, 1, *range(6, 40)]
EXAMPLES = [
    example((3, 5, 4), (6, 7, 8, 50, 9, 1), name="a"),
    example((3, 9, 10, 4), (11, 12), name="b"),
    example((3, 4), (13,), name="c"),
]


@pytest.fixture(scope="module")
def models():
    target = make_model(layers=7)
    return target, make_head(target, IDS)


def objective_of(**settings):
    return any_config(**({"unroll": STEPS, "unroll_weights": DECAY} | settings)).for_draft(True)[0]


def loss_of(target, draft, examples, **settings):
    """Loss and alpha as the run computes them."""
    objective, states = objective_of(**settings), HeadStates(target, draft.head.aux_layers)
    lengths = [len(one.answer_ids) for one in examples]
    totals = StepTotals(sum(lengths), len(examples), tuple(objective.head.rows(lengths)))
    hidden = torch.cat(states.hidden_states(examples)) if objective.needs_target else None
    batch = states.with_features(collate(examples), examples)
    return build_loss(ModelPair(target, draft), objective)(batch, hidden, totals)


def close(found, expected):
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def guesses(target, draft, examples, temperature=1.0):
    """(example, answer token, step, p over the whole vocabulary, q over the head's ids), each by plain passes."""
    head, found = draft.head, []
    for one in examples:
        text = torch.tensor([[*one.prompt_ids, *one.answer_ids]])
        with torch.no_grad(), AuxStates(target, head.aux_layers) as caught:
            logits = target.model(text).logits[0].double()
            aux = caught.take()
        features = head.fuse(aux)
        for anchor in range(len(one.prompt_ids) - 1, text.shape[1] - 2):
            read, state = text[:, 1 : anchor + 2], features[:, : anchor + 1]
            for step in range(STEPS):
                if anchor + 2 + step >= text.shape[1]:
                    break
                hidden = head(read, state)
                both = logits[anchor + 1 + step], head.logits(hidden[0, -1]).double()
                p, q = ((each / temperature).softmax(-1) for each in both)
                found.append((one, anchor + 2 + step - len(one.prompt_ids), step, p, q))
                read, state = text[:, 1 : anchor + 3 + step], torch.cat((state, hidden[:, -1:]), 1)
    return found


def divergence(kind, p, q, label):
    own = p[IDS]
    if kind == "fkl":
        return (own * (own.log() - q.log())).sum()
    if kind == "rkl":
        return (q * (q.log() - own.log())).sum()
    if kind == "tvd":
        return 1 - torch.minimum(own, q).sum()
    return -q[IDS.index(label)].log() if label in IDS else torch.zeros(()).double()


def by_hand(target, draft, examples, kind, temperature=1.0):
    """Steps weigh 1, 1/2 and 1/4 before they add up to 1; a step's weight is shared by its guesses."""
    rows = guesses(target, draft, examples, temperature)
    counts = [sum(step == one[2] for one in rows) for step in range(STEPS)]
    shares = [DECAY**step for step in range(STEPS)]
    total = torch.zeros((), dtype=torch.float64)
    for one, token, step, p, q in rows:
        value = divergence(kind, p, q, one.answer_ids[token])
        total = total + value * shares[step] / sum(shares) / counts[step]
    return total


@pytest.mark.parametrize("kind", ["fkl", "rkl", "tvd", "ce"])
def test_the_loss_compares_every_step_of_every_round(models, kind):
    settings = {"method": "sft"} if kind == "ce" else {"divergence": kind}
    output, expected = loss_of(*models, EXAMPLES, **settings), by_hand(*models, EXAMPLES, kind)
    close(output.loss, expected)
    ours, theirs = gradient(output.loss, models[1]), gradient(expected, models[1])
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-3, atol=1e-5)


def test_the_loss_temperature_is_that_of_both(models):
    expected = by_hand(*models, EXAMPLES, "fkl", temperature=2.0)
    close(loss_of(*models, EXAMPLES, loss_temperature=2.0).loss, expected)


def test_mixed_in_cross_entropy_leaves_out_the_drafts_own_tokens(models):
    own = dataclasses.replace(EXAMPLES[0], provenance=(int(Provenance.DRAFT),) * 6)
    fkl, mixed = (by_hand(*models, [one], kind) for one, kind in ((own, "fkl"), (EXAMPLES[0], "ce")))
    close(loss_of(*models, [EXAMPLES[0]], ce_weight=0.25).loss, 0.75 * fkl + 0.25 * mixed)
    close(loss_of(*models, [own], ce_weight=0.25).loss, 0.75 * fkl)


def test_alpha_is_that_of_the_first_step(models):
    rows = [(p, q) for _, _, step, p, q in guesses(*models, EXAMPLES) if step == 0]
    alpha = sum(torch.minimum(p[IDS], q).sum() for p, q in rows) / len(rows)
    tokens = sum(len(one.answer_ids) for one in EXAMPLES)
    close(loss_of(*models, EXAMPLES).alpha_sum / tokens, alpha)


@pytest.mark.parametrize("rule", ["greedy", "sampled", "argmax_draft"])
def test_tokens_per_call_are_those_of_the_rounds(models, rule):
    target, draft = models
    sampling = Sampling(temperature=0.0 if rule == "greedy" else 1.0)
    base, depths = head_scorers(target, draft, EXAMPLES[:2], sampling, rule, objective_of())
    chances = {one.prompt_id: torch.zeros(len(one.answer_ids), STEPS).double() for one in EXAMPLES[:2]}
    alphas = []
    for one, token, step, p, q in guesses(target, draft, EXAMPLES[:2]):
        label, full = one.answer_ids[token], torch.zeros(65).double()
        full[IDS] = q.detach()
        kept = {
            "greedy": p.argmax() == full.argmax(),
            "sampled": (full[label] / p[label]).clamp(max=1),
            "argmax_draft": full.argmax() == label,
        }[rule]
        chances[one.prompt_id][token - step, step] = kept
        if step == 0:
            overlap = {
                "greedy": p.argmax() == full.argmax(),
                "sampled": torch.minimum(p, full).sum(),
                "argmax_draft": p[full.argmax()],
            }
            alphas.append(float(overlap[rule]))
    sums = depths.sums(draft)
    tokens, rounds = sums["tokens_per_call"]
    assert tokens.tolist() == [5, 1]
    for depth in range(1, STEPS + 1):
        # Nobody guesses an answer's first token, which is no guess that failed.
        guessed = [table[1 : max(0, len(table) - depth + 1), depth - 1] for table in chances.values()]
        kept, counts = sums[f"acceptance_at_{depth}"]
        assert counts.tolist() == [len(rates) for rates in guessed] == [6 - depth, max(0, 2 - depth)]
        assert kept.tolist() == pytest.approx([float(rates.sum()) for rates in guessed], rel=1e-4)
    expected = [expected_rounds(table.numpy(), STEPS) for table in chances.values()]
    assert rounds.tolist() == pytest.approx(expected, rel=1e-4)
    assert base.means(base.score(draft))[rule] == pytest.approx(sum(alphas) / len(alphas), rel=1e-4)


def test_steps_beyond_the_longest_answer_are_said_and_not_computed(models, monkeypatch):
    target, draft = models
    steps_run, original = [], head_rows_module.unrolled_states

    def counting(*arguments):
        steps_run.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(head_rows_module, "unrolled_states", counting)
    deep = objective_of(unroll=50)
    _, depths = head_scorers(target, draft, EXAMPLES[:2], Sampling(), "sampled", deep)
    said = []
    depths.announce(said.append)
    _, line = said
    assert "--unroll 50, but no held-out answer has more than 6 tokens: guesses from 6 on" in line
    assert "lower --unroll to 5" in line
    assert list(depths.sums(draft)) == depths.names == ["tokens_per_call", *(f"acceptance_at_{k}" for k in range(1, 6))]
    shallow = head_scorers(target, draft, EXAMPLES[:2], Sampling(), "sampled", objective_of(unroll=5))[1]
    for name, (kept, counts) in shallow.sums(draft).items():
        assert depths.sums(draft)[name][0].tolist() == pytest.approx(kept.tolist())
        assert depths.sums(draft)[name][1].tolist() == pytest.approx(counts.tolist())
    assert max(steps_run) == 5


def test_micro_batches_add_up_to_the_whole(models):
    objective, (target, draft) = objective_of(), models
    states = HeadStates(target, draft.head.aux_layers)
    lengths = [len(one.answer_ids) for one in EXAMPLES]
    totals = StepTotals(sum(lengths), len(lengths), tuple(objective.head.rows(lengths)))
    module = build_loss(ModelPair(target, draft), objective)
    parts = []
    for one in EXAMPLES:
        hidden = torch.cat(states.hidden_states([one]))
        parts.append(module(states.with_features(collate([one]), [one]), hidden, totals))
    whole = loss_of(target, draft, EXAMPLES)
    close(sum(part.loss for part in parts), whole.loss)
    close(sum(part.alpha_sum for part in parts), whole.alpha_sum)


def test_a_process_without_text_gives_every_weight_a_gradient_of_zero(models):
    """Others wait for its gradients; it has no row to guess from."""
    states = HeadStates(models[0], models[1].head.aux_layers)
    hidden = torch.cat(states.hidden_states([NOTHING]))
    module = build_loss(ModelPair(*models), objective_of())
    output = module(states.with_features(collate([NOTHING]), [NOTHING]), hidden, StepTotals(6, 1, (5, 4, 3)))
    found = gradient(output.loss, models[1])
    assert float(output.loss.detach()) == 0 and not found.any()
    assert len(found) == models[1].num_parameters


def test_states_that_come_again_are_computed_once(models, monkeypatch):
    target, draft = models
    states, passes = HeadStates(target, draft.head.aux_layers, EXAMPLES), []
    original = type(target).hidden_states
    monkeypatch.setattr(type(target), "hidden_states", lambda self, *given: passes.append(1) or original(self, *given))
    for _ in range(3):
        states.hidden_states(EXAMPLES[:1])
        states.with_features(collate(EXAMPLES[:2]), EXAMPLES[:2])
    assert len(passes) == 1


def test_later_steps_weigh_less():
    loss = HeadSettings(unroll=3, unroll_weights=0.5).loss
    assert loss.rows([6, 2, 1]) == [6, 4, 3]
    assert loss.step_weights((4, 2, 0)) == pytest.approx([1 / 4 / 1.5, 0.5 / 2 / 1.5, 0.0])
