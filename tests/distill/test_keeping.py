"""Which draft a run keeps: the number that is watched, the step that is written, and the words that say so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_model, make_tokenizer
from tiny_runs import Said, any_config, example, history, same_weights, train, train_config, write_folder, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from specdistill import train_draft
from specdistill.data import Prompt
from specdistill.data.batch import collate
from specdistill.data.prompts import load_prompts, split_prompts
from specdistill.decoding import Sampling, generate_plain
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training.checkpoints import RunState
from specdistill.distill.training.keeping import Keeper
from specdistill.distill.training.measures import HeldOutLoss, HeldOutMeasures
from specdistill.distill.training.own_answers import OwnAnswers
from specdistill.distill.training.settings import EvaluationSettings
from specdistill.errors import ConfigError, DataError
from specdistill.evaluation.statistics import paired_difference, ratio
from specdistill.models import ModelPair
from specdistill.progress import Quiet
from specdistill_kernels.fused_divergence.reference import divergence

PLACES = ("w5 w6", "w7 w8", "w9")
ROWS = [{"id": f"p{i}", "prompt": f"w{i % 60} w{(7 * i) % 60}", "answer": PLACES[i % 3]} for i in range(40)]
CALM = {"eval_every": 5, "steps": 20, "patience": 0, "heldout_prompts": 9, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    foreign = make_model(layers=1, seed=9, tokenizer=make_tokenizer(50, "other"), vocab_size=55)
    models = {"target": make_model(layers=2), "draft": make_model(layers=1, seed=9), "foreign": foreign}
    return write_folder(tmp_path_factory.mktemp("keeping"), models, ROWS)


# ---- a history made by hand


class Given:
    """Numbers that a test gives, in the place of alpha."""

    measure, watched, caveat = "alpha", "sampled", None

    def __init__(self, values):
        self._values = iter(values)

    def score(self, draft):
        return next(self._values)

    def means(self, records):
        return {"sampled": ratio(records, np.ones(len(records))).mean}

    def gains(self, after, before):
        return {"sampled": paired_difference((after, np.ones(len(after))), (before, np.ones(len(before))))}


class GivenMeasure:
    def __init__(self, name, values):
        self.name, self._values = name, iter(values)

    def sums(self, draft):
        values = np.asarray(next(self._values), dtype=float)
        return values, np.ones(len(values))


ALPHA = [0.3, 0.5, 0.4, 0.2, 0.1]
OTHERS = {"score": [0.0, 0.1, 0.9, 0.9, 0.5], "reward": [0.2, 1, 5, 12, 11], "loss": [4.0, 3.0, 2.0, 2.5, 1.5]}


def run_by_hand(watch, prompts=8, alpha=ALPHA, own_target=False, **settings):
    """Five evaluations, one every ten steps; the steps that were written, and the keeper with its state."""

    def each(values):
        return [np.full(prompts, value) for value in values]

    others = [GivenMeasure(name, each(values)) for name, values in OTHERS.items()]
    measures = HeldOutMeasures(Given(each(alpha)), others, watch, own_target=own_target)
    keeper = Keeper(measures, EvaluationSettings(eval_every=10, **settings))
    state, written, stopped = RunState(), [], None
    for step in range(0, 50, 10):
        state.step = step
        if keeper.take(state, measures.score(None)):
            written.append(step)
        if stopped is None and keeper.no_patience_left(state):
            stopped = step
    return keeper, state, written, stopped


@pytest.mark.parametrize(
    ("watch", "best", "written", "stopped"),
    [
        ("alpha", 10, [0, 10], 30),
        ("score", 20, [0, 10, 20], 40),
        ("reward", 30, [0, 10, 20, 30], None),
        # Less is better.
        ("loss", 40, [0, 10, 20, 40], None),
    ],
)
def test_the_watched_number_decides_what_is_best_and_when_patience_ends(watch, best, written, stopped):
    keeper, state, steps, ended = run_by_hand(watch, patience=2)
    assert (state.best_step, state.kept_step, steps, ended) == (best, best, written, stopped)
    value = dict(OTHERS, alpha=ALPHA)[watch][best // 10]
    assert f"{value:.3f}" in keeper.why(state) and watch in keeper.why(state)
    assert keeper.kept is keeper.records["best"]


def test_between_equal_scores_alpha_decides(monkeypatch):
    """Where no answer was right, the untrained start was kept."""
    monkeypatch.setitem(OTHERS, "score", [0.0] * 5)
    keeper, state, written, _ = run_by_hand("score")
    assert (state.best_step, state.kept_step, written) == (10, 10, [0, 10])
    assert keeper.kept is keeper.records["best"]
    state.history = [{"heldout_score": 0.0}] * 3
    assert any("so alpha (sampled) decides" in warning for warning in keeper.warnings(state))


@pytest.mark.parametrize(
    ("alpha", "keep", "why"),
    [
        (ALPHA, "best", "every held-out reward was equal; kept by alpha (sampled)"),
        (ALPHA[::-1], "best", "every held-out reward was equal; kept by alpha (sampled)"),
        ([0.5, 0.4, 0.3, 0.2, 0.1], "best", "the start; every held-out reward was equal; kept by alpha (sampled)"),
        (ALPHA, "last", "the last one that was measured (--keep last); every held-out reward was equal"),
    ],
)
def test_where_alpha_decided_alone_the_reason_says_so(monkeypatch, alpha, keep, why):
    monkeypatch.setitem(OTHERS, "reward", [0.0] * 5)
    keeper, state, _, _ = run_by_hand("reward", alpha=alpha, keep=keep)
    state.history = [{"heldout_reward": 0.0}] * 5
    assert keeper.why(state) == why
    # One that differs was not equal to the others, and of one evaluation nothing can be said.
    for rewards in ([0.0, 0.0, -1.0, 0.0, 0.0], [0.0]):
        state.history = [{"heldout_reward": value} for value in rewards]
        assert "equal" not in keeper.why(state)


ORDER = "order (the later step)"


@pytest.mark.parametrize(
    ("scores", "best", "stopped", "why"),
    [
        ([0.0] * 5, 40, 20, f"every held-out score was equal; kept by {ORDER}"),
        ([0.5, 0.2, 0.5, 0.2, 0.2], 20, 20, f"held-out score 0.500, no better than the start's; kept by {ORDER}"),
        ([0.0, 0.5, 0.5, 0.2, 0.2], 20, 30, "best held-out score 0.500"),
        ([0.5, 0.2, 0.2, 0.2, 0.2], 0, 20, "the start; no later draft had a better held-out score 0.500"),
    ],
)
def test_a_draft_that_is_its_own_target_keeps_the_later_of_equals(monkeypatch, scores, best, stopped, why):
    """Its alpha is best before any training. A later step that is no better brings no patience."""
    monkeypatch.setitem(OTHERS, "score", scores)
    falling = [1.0, 0.9, 0.8, 0.7, 0.6]
    keeper, state, _, ended = run_by_hand("score", alpha=falling, own_target=True, patience=2)
    state.history = [{"heldout_score": value} for value in scores]
    assert (state.best_step, ended, keeper.why(state)) == (best, stopped, why)


@pytest.mark.parametrize("watch", ["alpha", "loss"])
def test_keep_last_writes_every_step_and_still_stops_by_the_watched_number(watch):
    keeper, state, steps, stopped = run_by_hand(watch, patience=2, keep="last")
    assert steps == [0, 10, 20, 30, 40] and state.kept_step == 40
    assert (state.best_step, stopped) == {"alpha": (10, 30), "loss": (40, None)}[watch]
    assert keeper.kept is keeper.records["last"] and "--keep last" in keeper.why(state)


@pytest.mark.parametrize(("alphas", "warned"), [([0.0, 0.0, 0.0], True), ([0.0, 0.1, 0.1], False), ([0.0], False)])
def test_a_watched_number_that_never_moves_is_warned_of(alphas, warned):
    keeper, state, _, _ = run_by_hand("alpha")
    state.history = [{"heldout_alpha_sampled": value} for value in alphas]
    told = [text for text in keeper.warnings(state) if "tells no draft from another" in text]
    assert bool(told) == warned and (not warned or "alpha (sampled) was 0.000 every time" in told[0])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"keep": "best"}, "--watch score, reward or loss, or --keep last"),
        ({"keep": "last", "patience": 2}, "--watch score, reward or loss"),
        ({"keep": "last", "patience": 0}, None),
    ],
)
def test_a_perfect_start_is_warned_of_where_alpha_decides_something(settings, text):
    keeper, state, _, _ = run_by_hand("alpha", alpha=[1.0] * 5, **settings)
    state.history = [{"heldout_alpha_sampled": 1.0}]
    warnings = keeper.warnings(state)
    assert len(warnings) == (text is not None) and (text is None or warnings[0].endswith(text))


def test_best_and_last_that_differ_widely_are_warned_of():
    keeper, state, _, _ = run_by_hand("alpha")
    text = keeper.disagreement(state)
    assert text is not None and "(step 10) and the last (step 40)" in text
    for part in ("alpha (sampled) 0.500 against 0.100", "score 0.100 against 0.500", "reward 1.000 against 11.000"):
        assert part in text
    assert "step 10 was kept, --keep last keeps the other" in text
    keeper, state, _, _ = run_by_hand("alpha", keep="last")
    assert "step 40 was kept, --keep best keeps the other" in str(keeper.disagreement(state))
    # The last is the best, or too few prompts to tell.
    for named in ({"watch": "loss"}, {"watch": "alpha", "prompts": 4}):
        keeper, state, _, _ = run_by_hand(**named)
        assert keeper.disagreement(state) is None


# ---- real runs


class LastWeights(TrainerCallback):
    """A copy of the weights after each step."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained(tiny, output, **settings):
    seen = LastWeights()
    return train(tiny, output, callbacks=[seen], **(CALM | settings)), seen.weights


def equal(folder, weights):
    written = load_file(folder / "model.safetensors")
    return all(torch.equal(written[name], weights[name]) for name in written)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_keep_last_is_bit_for_bit_the_last_step(tiny, tmp_path, keep):
    """A model that is its own target can only lose alpha, so the best is not the last."""
    settings = {"method": "sft", "draft": str(tiny / "target"), "watch": "alpha"}
    summary, last = trained(tiny, tmp_path / "out", keep=keep, **settings)
    values = [entry["heldout_alpha_sampled"] for entry in history(tmp_path / "out")]
    assert summary.best_step == 5 * max(range(5), key=values.__getitem__) < 20
    assert equal(tmp_path / "out", last) == (keep == "last")
    assert summary.kept_step == (20 if keep == "last" else summary.best_step)
    kept = values[-1] if keep == "last" else max(values)
    assert summary.after["sampled"] == pytest.approx(kept)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Step {summary.kept_step} was kept" in card and "Held-out alpha (sampled) was watched" in card


def test_a_students_card_leads_with_its_score_and_serves_it_alone(tiny, tmp_path):
    """A model whose answers were judged is of use on its own; it comes as a draft after that."""
    settings = {"method": "sft", "scorer": "exact-match", "steps": 2, "eval_every": 2}
    summary = train(tiny, tmp_path / "out", watch="score", keep="last", **settings)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "no use on its own" not in card and card.count("## Measured") == card.count("## Training") == 1
    score = f"Score of its own greedy answers (exact-match): **{summary.after['score']:.3f}**, before training "
    order = [score, "| on 6 held-out prompts |", f"vllm serve {tmp_path / 'out'}\n", "## Training", "## As a draft"]
    order += ["| rule of the server |", "--speculative-config"]
    places = [card.index(part) for part in order]
    assert places == sorted(places)
    assert "tags: [distillation, specdistill]" in card and "{" not in card[: places[-1]]
    # The same run that watches alpha makes a draft.
    train(tiny, tmp_path / "draft", watch="alpha", **settings)
    card = (tmp_path / "draft" / "README.md").read_text()
    assert "It is no use on its own" in card and "## As a draft" not in card


@pytest.mark.parametrize("itself", ["target", "foreign"])
def test_a_model_that_is_its_own_target_or_was_judged_is_no_draft(tiny, tmp_path, itself):
    """Tuned for itself, or watched by its score with another tokenizer: both are served alone."""
    settings = {"steps": 1, "eval_every": 1, "max_new_tokens": 4}
    if itself == "target":
        settings |= {"method": "sft", "draft": str(tiny / "target")}
    else:
        settings |= {"method": "sft", "draft": str(tiny / "foreign"), "scorer": "exact-match", "watch": "score"}
    train(tiny, tmp_path / "out", **settings)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.index(f"vllm serve {tmp_path / 'out'}\n") < card.index("## As a draft") < card.index("### Serving")


def test_a_model_that_is_its_own_target_keeps_what_it_learned_from_given_answers(tiny, tmp_path):
    """Its alpha starts at 1, so that nothing could be better: by default the loss is watched, or the score."""
    settings = {"method": "sft", "draft": str(tiny / "target"), "steps": 40, "eval_every": 20}
    summary, last = trained(tiny, tmp_path / "loss", **settings)
    assert summary.watched == "loss" and summary.kept_step == 40 and equal(tmp_path / "loss", last)
    assert history(tmp_path / "loss")[-1]["watched"] == "heldout_loss"
    scored, last = trained(tiny, tmp_path / "score", scorer="exact-match", **settings)
    assert scored.watched == "score" and scored.kept_step > 0
    assert scored.before["score"] == 0 and scored.after["score"] > 0.1
    # As before: alpha keeps the start, and says that another number would keep what was learned.
    spoken = Spoken()
    alpha = train_draft(train_config(tiny, tmp_path / "alpha", **(CALM | settings | {"watch": "alpha"})), spoken)
    assert alpha.kept_step == 0 and same_weights(tmp_path / "alpha", tiny / "target")
    assert any("it is its own target" in text and "--keep last" in text for text in spoken.lines)
    assert alpha.disagreement is not None and any("differ widely" in text for text in spoken.lines)


@pytest.mark.parametrize("more", [False, True], ids=["alike", "the target sees more"])
@pytest.mark.parametrize("copied", [False, True])
def test_equal_scores_of_a_model_that_is_its_own_target_keep_what_was_trained(
    tiny, tmp_path, monkeypatch, copied, more
):
    """Alpha would keep the untrained start; where the target sees more, alpha says what was learned of that."""
    (tmp_path / "scores_all_equal.py").write_text("def none(prompt, text):\n    return 0.0\n")
    monkeypatch.chdir(tmp_path)
    draft = tiny / "target"
    if copied:
        draft = Path(shutil.copytree(draft, tmp_path / "copy"))
    settings = {"method": "best-of-n", "draft": str(draft), "scorer": "scores_all_equal:none", "watch": "score"}
    settings |= {"target_hint": "w57 {answer}"} if more else {}
    summary, last = trained(tiny, tmp_path / "out", **settings)
    values = [entry["heldout_alpha_sampled"] for entry in history(tmp_path / "out")]
    best = 5 * max(range(5), key=values.__getitem__)
    assert summary.kept_step == (best if more else 20) and (more or best == 0)
    decided = "alpha (sampled)" if more else ORDER
    assert summary.why.endswith(f"every held-out score was equal; kept by {decided}")
    assert more or equal(tmp_path / "out", last)


class Spoken(Quiet):
    """Collects what a run says."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def greedy_texts(folder, prompts, max_new_tokens):
    """The written model's own greedy answers, by transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer.apply_chat_template(list(prompt.messages), add_generation_prompt=True, return_tensors="pt")
        ids = ids if isinstance(ids, torch.Tensor) else ids["input_ids"]
        written = model.generate(ids, do_sample=False, max_new_tokens=max_new_tokens)
        texts.append(tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


@pytest.mark.parametrize("draft", ["draft", "foreign"])
def test_the_score_counts_the_students_own_greedy_answers(tiny, tmp_path, draft):
    settings = {"method": "sft", "scorer": "exact-match", "keep": "last", "steps": 25, "learning_rate": 1e-2}
    settings["draft"] = str(tiny / draft)
    summary, _ = trained(tiny, tmp_path / "out", temperature=1.0, **settings)
    _, heldout = split_prompts(load_prompts(str(tiny / "prompts.jsonl")), 9)
    texts = greedy_texts(tmp_path / "out", heldout, 6)
    right = sum(text.split() == prompt.answer.split() for text, prompt in zip(texts, heldout, strict=True))
    assert right > 0, "a count of nothing would show nothing"
    assert summary.after["score"] == pytest.approx(right / 9)
    assert history(tmp_path / "out")[-1]["heldout_score"] == pytest.approx(right / 9)


def test_every_evaluation_samples_the_drafts_own_answers_from_the_same_seeds():
    """A draft that did not change gets the same texts, those of the seed that was given."""
    draft, heard = make_model(layers=1), []
    prompts, encoded = [Prompt(f"p{number}", ()) for number in range(4)], [[3, 5 + number, 4] for number in range(4)]
    own = OwnAnswers("score", lambda prompt, text: heard.append(text) or 0.0, prompts, encoded, Sampling(), 6, seed=7)
    for _ in range(3):
        own.sums(draft)
    seeds = [7 * 100_003 + number for number in range(4)]
    written = generate_plain(draft, encoded, sampling=Sampling(), max_new_tokens=6, seeds=seeds)
    assert heard == [draft.decode(answer.token_ids) for answer in written] * 3
    assert len(set(heard)) == 4


def test_answers_that_were_cut_are_said_where_their_number_changes():
    draft, said = make_model(layers=1), []
    prompts, encoded = [Prompt(f"p{number}", ()) for number in range(8)], [[3, 5 + number, 4] for number in range(8)]
    own = OwnAnswers("score", lambda *given: 0.0, prompts, encoded, Sampling(), 20, seed=7, say=said.append)
    seeds = [7 * 100_003 + number for number in range(8)]
    written = generate_plain(draft, encoded, sampling=Sampling(), max_new_tokens=20, seeds=seeds)
    cut = sum(answer.finish_reason == "length" for answer in written)
    assert 0 < cut < 8
    for _ in range(2):
        own.sums(draft)
    assert said == [
        f"warning: {cut} of 8 answers of the draft (held-out score) were cut at --max-new-tokens 20 and scored without "
        "their end; raise it"
    ]


def test_a_run_says_that_held_out_answers_were_cut(tiny, tmp_path):
    said = Said()
    settings = {"method": "sft", "scorer": "exact-match", "steps": 1, "eval_every": 1, "max_new_tokens": 2}
    train_draft(train_config(tiny, tmp_path / "out", **settings), said)
    assert any(
        "of 6 answers of the draft (held-out score) were cut at --max-new-tokens 2" in line for line in said.lines
    )


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_run_that_is_cut_off_after_its_last_step_still_knows_what_it_kept(tiny, tmp_path, monkeypatch, keep):
    """Everything is read back from the checkpoint of the last step."""
    settings = CALM | {"method": "sft", "scorer": "exact-match", "watch": "loss", "learning_rate": 1e-2}
    settings |= {"keep": keep, "resume": True}
    uncut = train(tiny, tmp_path / "uncut", **settings)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("specdistill.distill.train_draft.finish", lambda *given, **named: 1 // 0)
        train(tiny, tmp_path / "cut", **settings)
    resumed = train(tiny, tmp_path / "cut", **settings)
    assert resumed.after == uncut.after != uncut.before
    assert (resumed.kept_step, resumed.best_step, resumed.why) == (uncut.kept_step, uncut.best_step, uncut.why)
    assert same_weights(tmp_path / "cut", tmp_path / "uncut")


REWARDS = """
TEXTS = []

def words(prompt, text):
    TEXTS.append((prompt.id, text))
    return text.split().count("w7")
"""


def test_each_watch_takes_its_own_number_of_the_history(tiny, tmp_path, monkeypatch):
    (tmp_path / "watched_rewards.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    shared = {"method": "gkd", "lmbda": 0.5, "reward": "watched_rewards:words", "scorer": "watched_rewards:words"}
    shared |= {"learning_rate": 2e-2, "steps": 30}
    keys = {
        ("alpha", "greedy"): "heldout_alpha_greedy",
        ("alpha", "argmax_draft"): "heldout_alpha_argmax_draft",
        ("score", "sampled"): "heldout_score",
        ("auto", "sampled"): "heldout_reward",
        ("loss", "sampled"): "heldout_loss",
    }
    best = {}
    for number, ((watch, rule), key) in enumerate(keys.items()):
        output = tmp_path / str(number)
        summary = train(tiny, output, **(CALM | shared), watch=watch, rule=rule)
        entries = history(output)
        assert {entry["watched"] for entry in entries} == {key}
        # Of equals, the best alpha.
        values = [(entry[key] * (-1 if watch == "loss" else 1), entry[f"heldout_alpha_{rule}"]) for entry in entries]
        best[key] = entries[values.index(max(values))]["step"]
        assert summary.best_step == summary.kept_step == best[key]
        kept = [entry["step"] for entry in entries if entry["kept"]]
        assert kept == [entry["step"] for i, entry in enumerate(entries) if values[i] > max(values[:i], default=(-99,))]
    assert len(set(best.values())) > 1, "else any number would do"


def test_the_held_out_loss_is_the_runs_own_on_the_text_that_it_trains_on(tiny, tmp_path):
    """Cross entropy per token of the given answers with their end, by transformers' own loss."""
    train(tiny, tmp_path / "out", method="sft", watch="loss", keep="last", **CALM)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = make_model().tokenizer
    _, heldout = split_prompts(load_prompts(str(tiny / "prompts.jsonl")), 9)
    total = tokens = 0
    for prompt in heldout:
        asked = tokenizer.apply_chat_template(list(prompt.messages), add_generation_prompt=True)
        asked = asked if isinstance(asked, list) else asked["input_ids"]
        answer = [*tokenizer(prompt.answer, add_special_tokens=False)["input_ids"], 1]
        labels = torch.tensor([[-100] * len(asked) + answer])
        loss = model(torch.tensor([[*asked, *answer]]), labels=labels).loss.detach()
        total, tokens = total + float(loss) * len(answer), tokens + len(answer)
    assert history(tmp_path / "out")[-1]["heldout_loss"] == pytest.approx(total / tokens, rel=1e-4)


def test_the_held_out_loss_of_a_distilled_draft_is_its_divergence_alone():
    """At the loss's own temperature, per token of all answers, without the mixed-in parts."""
    target, draft = make_model(), make_model(seed=2, layers=1)
    answers = [example((3, 5, 4), (6, 7, 8, 1)), example((3, 9, 10, 4), (11, 12))]
    settings = {"method": "gkd", "divergence": "rkl", "loss_temperature": 2.0, "reward": "m:f", "ce_weight": 0.3}
    objective = any_config(**settings).objective
    sums, tokens = HeldOutLoss(ModelPair(target, draft), objective, answers, TargetStates(target)).sums(draft)
    batch = collate(answers)
    logits, wanted = (
        (model.hidden_states(batch.input_ids, batch.attention_mask)[batch.predicting] @ model.head_weight.T)
        for model in (draft, target)
    )
    by_hand = divergence(logits[:, :65].detach() / 2, wanted[:, :65].detach() / 2, "rkl").split([4, 2])
    assert tokens.tolist() == [4, 2] and sums == pytest.approx([float(part.sum()) for part in by_hand], rel=1e-4)


# ---- refusals


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"watch": "score"}, "--watch score needs --scorer exact-match, number, json or module:function"),
        ({"watch": "reward"}, "--watch reward needs --reward"),
    ],
)
def test_watching_what_is_not_measured_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        any_config(**settings)


def test_the_default_fits_what_the_run_optimises():
    same = {"target": "m", "draft": "m/"}
    wanted = {
        "alpha": ({}, {"scorer": "number"}, same, same | {"method": "seqkd"}, same | {"method": "sft", "text": "t"}),
        "reward": ({"method": "gkd", "reward": "m:f"},),
        "loss": (same | {"method": "sft"}, {"watch": "loss"}),
        "score": (
            same | {"method": "sft", "scorer": "json"},
            same | {"method": "best-of-n", "scorer": "m:f"},
            {"watch": "score", "scorer": "exact-match"},
        ),
    }
    for watch, cases in wanted.items():
        for settings in cases:
            assert any_config(**settings).watch == watch, settings


def test_one_directory_by_two_names_is_its_own_target(tiny, tmp_path):
    (tmp_path / "link").symlink_to(tiny / "target")
    same = {"target": str(tiny / "target"), "draft": str(tmp_path / "link"), "method": "sft"}
    assert any_config(**same).watch == "loss" and any_config(**same, scorer="json").watch == "score"
    assert any_config(**same | {"draft": str(tiny / "draft")}).watch == "alpha"


FAILING = """
CALLS, LIMIT = [], None

def words(prompt, text):
    CALLS.append(text)
    if LIMIT is not None and len(CALLS) > LIMIT:
        raise ValueError("no more")
    return float(len(text.split()))
"""


def test_a_reward_that_fails_in_the_middle_costs_no_step(tiny, tmp_path, monkeypatch):
    """It fails in step 4, long after the last evaluation; once it is mended the run goes on after step 3."""
    (tmp_path / "failing_reward.py").write_text(FAILING)
    monkeypatch.chdir(tmp_path)
    settings = CALM | {"method": "gkd", "lmbda": 1.0, "reward": "failing_reward:words", "eval_every": 10}
    settings["resume"] = True
    uncut = train(tiny, tmp_path / "uncut", **settings)
    import failing_reward  # pyright: ignore[reportMissingImports]

    failing_reward.CALLS.clear()
    # 9 held-out answers of the start, 8 answers of each step.
    monkeypatch.setattr(failing_reward, "LIMIT", 9 + 3 * 8 + 4)
    with pytest.raises(DataError, match="no more"):
        train(tiny, tmp_path / "cut", **settings)
    assert [path.name for path in (tmp_path / "cut" / "checkpoints").iterdir()] == ["step-000003"]
    monkeypatch.setattr(failing_reward, "LIMIT", None)
    spoken = Spoken()
    resumed = train_draft(train_config(tiny, tmp_path / "cut", **settings), spoken)
    assert "going on after step 3" in spoken.lines
    assert resumed.after == uncut.after and same_weights(tmp_path / "cut", tmp_path / "uncut")


def test_prompts_without_an_answer_are_refused_before_anything_is_loaded(tiny, tmp_path):
    rows = [dict(row) for row in ROWS]
    for row in rows:
        del row["answer"]
    write_rows(tmp_path / "bare.jsonl", rows)
    text = '6 of 6 prompts have no field "answer" .*bare.jsonl, line .* are id, prompt.*, which --scorer'
    with pytest.raises(DataError, match=text):
        train(tiny, tmp_path / "out", prompts=str(tmp_path / "bare.jsonl"), scorer="exact-match")
    assert not (tmp_path / "out").exists()
