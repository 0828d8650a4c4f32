"""The lossy trade-off of bench: the law that the rule emits, the rows by hand, the judge's seam, tables, refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from bench_report import example_report, spread
from by_hand import answer_logits, plain_model
from matplotlib.figure import Figure
from scipy.stats import chisquare
from tiny_models import make_model, perturbed
from tiny_runs import prompt_rows, write_folder

from specdistill import BenchConfig
from specdistill.data.prompts import load_prompts
from specdistill.decoding import Sampling, SpeculativeDecoder
from specdistill.decoding.answers import write_answers
from specdistill.errors import ConfigError
from specdistill.evaluation.answer_scores import AnswerJudge
from specdistill.evaluation.lenience_sweep import emitted_law, lenience_rows
from specdistill.evaluation.measure import measure_draft
from specdistill.evaluation.measured import Models
from specdistill.evaluation.report import LenienceRow
from specdistill.models import load_model
from specdistill.progress import Quiet
from specdistill.report.html import html_report
from specdistill.report.json_file import json_text
from specdistill.report.plots import lenience_plot
from specdistill.report.terminal import bench_tables
from specdistill_kernels import verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = make_model(layers=3)
    models = {"target": target, "draft": perturbed(target, 0.2)}
    return write_folder(tmp_path_factory.mktemp("sweep"), models, prompt_rows(8))


def config(folder, **settings):
    places = {name: str(folder / name) for name in ("target", "draft")}
    given = {"prompts": str(folder / "prompts.jsonl"), "max_new_tokens": 16, "max_draft_tokens": 3}
    return BenchConfig.flat(**(places | given | {"num_draft_tokens": 2, "temperature": 1.0} | settings))


def test_the_emitted_law_by_hand():
    """p = (0.5, 0.5), q = (0.9, 0.1). At l = 0.8 id 0 is kept up to 0.5 / 0.8; what is rejected becomes id 1."""
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    assert emitted_law(p, q, 1.0)[0].tolist() == pytest.approx([0.5, 0.5])
    assert emitted_law(p, q, 0.8)[0].tolist() == pytest.approx([0.625, 0.375])
    assert emitted_law(p, q, 0.5)[0].tolist() == pytest.approx([0.9, 0.1]), "everything is kept"
    assert emitted_law(p, p, 0.5)[0].tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("lenience", [0.9, 0.6, 0.3])
def test_the_emitted_law_is_the_decoders(lenience):
    """Counts of real verifications of one draft token each."""
    generator = torch.Generator().manual_seed(0)
    rows = 6000
    target, draft = torch.tensor([1.0, 0.5, 0.0, -0.5, -1.5]), torch.tensor([-1.0, 0.0, 1.5, 0.5, 0.0])
    p, q = (logits.double().softmax(-1)[None] for logits in (target, draft))
    proposed = torch.multinomial(q[0], rows, replacement=True, generator=generator)
    verified = verify(
        target.repeat(2 * rows, 1),
        proposed,
        torch.arange(1, rows + 1),
        draft.repeat(rows, 1),
        rule="lenient",
        seeds=torch.arange(rows),
        positions=torch.zeros(rows, dtype=torch.int64),
        lenience=lenience,
        **Sampling().settings,
    )
    emitted = torch.where(verified.num_accepted == 1, proposed, verified.next_token)
    counts = np.bincount(emitted.numpy(), minlength=5)
    assert chisquare(counts, emitted_law(p, q, lenience)[0].numpy() * rows).pvalue > 1e-4


def by_hand(folder, lenience):
    """Mean total variation over the answers that the target writes at the bench's sampling."""
    prompts = load_prompts(str(folder / "prompts.jsonl"))
    target = load_model(str(folder / "target"))
    encoded = [[3, *target.tokenizer(row["prompt"])["input_ids"], 4] for row in prompt_rows(8)]
    answers = write_answers(target, prompts, encoded, Sampling(temperature=0.7), 16, 0, Quiet())
    models = [plain_model(folder / name) for name in ("target", "draft")]
    shares = []
    for answer in answers:
        p, q = ((answer_logits(model, answer) / 0.7).softmax(-1) for model in models)
        kept = torch.minimum(q, p / lenience)
        left = (p - lenience * q).clamp(min=0)
        law = kept + (1 - kept.sum(-1, keepdim=True)) * left / left.sum(-1, keepdim=True)
        shares += ((law - p).abs().sum(-1) / 2).tolist()
    return np.mean(shares)


def test_a_sweep_trades_the_targets_distribution_for_accepted_tokens(folder):
    report = measure_draft(config(folder, lenience_sweep=(0.2, 0.7), temperature=0.7))
    rows = report.lenience_sweep
    assert [row.lenience for row in rows] == [1.0, 0.7, 0.2]
    changed = [row.changed_tokens.mean for row in rows]
    assert changed[0] == pytest.approx(0, abs=1e-9) and changed[0] < changed[1] < changed[2]
    assert changed[1:] == [pytest.approx(by_hand(folder, value), rel=1e-3) for value in (0.7, 0.2)]
    for name in ("acceptance_rate", "mean_acceptance_length"):
        values = [getattr(row, name).mean for row in rows]
        assert values[0] < values[2]
    assert all(row.speedup.mean > 0 and row.score is None for row in rows)
    # The exact row is the timed run again: same prompts, same seeds, same rule.
    assert rows[0].mean_acceptance_length.mean == report.acceptance.mean_acceptance_length.mean
    assert not report.setup.lossy and report.lossless.greedy_identical
    written = json.loads(json_text(report))["lenience_sweep"]
    assert written[1]["lenience"] == 0.7 and "score" not in written[1]


def test_a_report_without_a_sweep_has_no_such_key(folder):
    assert "lenience_sweep" not in measure_draft(config(folder)).to_json()


def test_a_judge_scores_the_answers_of_every_lenience(folder):
    """The scorer counts words; each row's mean is that of its own decoder's answers."""
    models = Models(load_model(str(folder / "target")), load_model(str(folder / "draft")), None)
    prompts = load_prompts(str(folder / "prompts.jsonl"))[:3]
    encoded = [[3, 5 + place, 4] for place in range(3)]

    def score(prompt, text):
        return float(sum(int(word[1:]) for word in text.split() if word[0] == "w"))

    settings = config(folder, lenience_sweep=(0.2,), max_new_tokens=6)
    answers = write_answers(models.target, prompts, encoded, Sampling(), 6, 0, Quiet())
    judge = AnswerJudge("numbers", score, prompts, 8)
    rows = lenience_rows(models, settings, encoded, answers, 2, Quiet(), judge)
    expected = []
    for rule, lenience in (("sampled", 1.0), ("lenient", 0.2)):
        decoder = SpeculativeDecoder(
            models.target, models.draft, num_draft_tokens=2, sampling=Sampling(), rule=rule, lenience=lenience
        )
        written = [decoder.generate([ids], max_new_tokens=6, seeds=[number])[0] for number, ids in enumerate(encoded)]
        scores = [score(None, models.target.decode(answer.token_ids)) for answer in written]
        expected.append(pytest.approx(sum(scores) / 3))
    assert [row.score.mean for row in rows] == expected and rows[0].score.mean != rows[1].score.mean


def test_the_scorer_of_bench_scores_the_sweep(folder):
    report = measure_draft(config(folder, lenience_sweep=(0.2,), scorer="exact-match"))
    assert [row.score.mean for row in report.lenience_sweep] == [0, 0] and report.score.scorer == "exact-match"


ROWS = [
    LenienceRow(
        lenience=value,
        mean_acceptance_length=spread(2 + place),
        acceptance_rate=spread(0.5),
        speedup=spread(1.25 + place / 4),
        changed_tokens=spread(place / 10),
        score=spread(0.75),
    )
    for place, value in enumerate((1.0, 0.6))
]


def test_the_table_is_in_terminal_and_page(capsys):
    report = dataclasses.replace(example_report(), lenience_sweep=ROWS)
    bench_tables(report)
    printed, page = capsys.readouterr().out, html_report(report)
    for text in ("LOSSY", "1 (exact)", "1.50 [1.48, 1.52]", "3.000", "0.100", "0.750", "score"):
        assert text in printed
    for text in ("1 (exact)", "1.50 [1.48, 1.52]", "0.100 [0.080, 0.120]", "0.750 [0.730, 0.770]", "<th>score</th>"):
        assert text in page
    unscored = [dataclasses.replace(row, score=None) for row in ROWS]
    page = html_report(dataclasses.replace(example_report(), lenience_sweep=unscored))
    assert "1 (exact)" in page and "<th>score</th>" not in page


@pytest.mark.parametrize(("scored", "heights", "label"), [(True, [0.75, 0.75], "score"), (False, [0, 0.1], "share of")])
def test_the_plot_shows_speed_against_what_is_lost(scored, heights, label):
    rows = ROWS if scored else [dataclasses.replace(row, score=None) for row in ROWS]
    report = dataclasses.replace(example_report(), lenience_sweep=rows)
    axes = Figure().subplots()
    lenience_plot(axes, report)
    assert axes.lines[0].get_xydata().tolist() == [[1.25, heights[0]], [1.5, heights[1]]]
    assert [text.get_text() for text in axes.texts] == ["1", "0.6"] and axes.get_ylabel().startswith(label)
    assert "What lenience trades" in html_report(report)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"temperature": 0.0}, "--lenience-sweep needs --temperature above 0"),
        ({"lenience_sweep": (1.0,)}, r"--lenience-sweep takes numbers in \(0, 1\), got 1.0"),
        ({"lenience_sweep": (0.5, 0.5)}, "--lenience-sweep names a number twice"),
        ({"draft_length": "auto", "num_draft_tokens": 0}, "at one draft length"),
        ({"engine": "transformers"}, "--lenience-sweep is for our decoder, not for transformers"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(folder, settings, text):
    with pytest.raises(ConfigError, match=text):
        config(folder, **({"lenience_sweep": (0.5,)} | settings))
