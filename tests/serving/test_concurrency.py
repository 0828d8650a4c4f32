"""`bench --engine --concurrency`: the same servers, asked by more clients at a time."""

from __future__ import annotations

import json

import pytest
from fake_vllm import FakeVllm
from tiny_models import make_model, perturbed, save

from specdistill import BenchConfig, bench, load_model
from specdistill.decoding import Generation
from specdistill.errors import ServerError
from specdistill.evaluation.interruption import Interruption
from specdistill.progress import Quiet
from specdistill.serving.concurrency import ask_under_load, at_most, concurrency_section
from specdistill.serving.engine import Answered
from specdistill.serving.speculation import Speculation

GAMMA = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("concurrency")
    target = make_model(layers=2)
    save(target, folder / "target")
    save(perturbed(target, 0.02), folder / "draft")
    prompts = [{"id": f"p{i}", "prompt": f"w{i} w{(7 * i) % 60}"} for i in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return folder


def test_a_servers_rows_come_from_its_own_counters(files):
    target, draft = load_model(str(files / "target")), load_model(str(files / "draft"), "draft")
    places = {"target": str(files / "target"), "draft": str(files / "draft"), "prompts": str(files / "prompts.jsonl")}
    with FakeVllm(target) as plain, FakeVllm(target, draft=draft, num_draft_tokens=GAMMA) as drafting:
        settings = {
            "engine": "openai-server",
            "baseline_url": plain.url,
            "url": drafting.url,
            "num_draft_tokens": GAMMA,
        }
        report = bench(BenchConfig.flat(**places, **settings, max_new_tokens=12, concurrency=(2, 1)))
    assert list(report.load.batch) == [1, 2]
    for size, batches in ((1, 8), (2, 6)):
        row = report.load.batch[size]
        assert (row.batches, row.prompts, row.num_draft_tokens, row.verify_cost) == (batches, 8, GAMMA, None)
        tau = report.acceptance.predicted_mean_acceptance_length[GAMMA]
        assert row.round_cost > 0 and row.predicted_speedup == pytest.approx(tau / row.round_cost)
        assert row.speedup.has_interval
    assert report.load.num_speculative_tokens_per_batch_size is None and report.setup.batch_size == 1


class Clock:
    """An engine whose answers of 11 tokens take as long as the law says: a first second for prompts, then rounds."""

    first_drafted, version, counters = False, "clock", "none"

    def __init__(self, per_round, drafts=0, fails_at=None):
        self.per_round, self.drafts, self.fails_at, self.sizes = per_round, drafts, fails_at, []

    def answer(self, prompts, sampling, max_new_tokens, seeds, on_tokens=lambda count: None):
        size = len(prompts)
        if size == self.fails_at:
            raise ServerError("it is gone")
        self.sizes.append((size, tuple(seeds)))
        # All of two draft tokens are kept but those of the last round, which keeps one.
        rounds = 4 if self.drafts else 10
        seconds = 1 + rounds * self.per_round(size)
        answers = [
            Generation(list(range(11)), finish_reason="length", seconds=seconds, first_token_seconds=1.0)
            for _ in prompts
        ]
        counts = Speculation(rounds * size, 2 * rounds * size, 6 * size) if self.drafts else None
        return Answered(answers, counts)

    def close(self):
        pass


def sweep(plain, drafting, sizes=(1, 4, 8), prompts=8):
    config = BenchConfig.flat(target="t", draft="d", engine="vllm", concurrency=sizes, max_new_tokens=11)
    runs = ask_under_load(config, plain, drafting, [[1]] * prompts, Quiet(), Interruption(lambda text: None))
    return concurrency_section(config, runs, None, 2, prompts, False)


def test_the_crossing_by_the_clock():
    """Plain steps take 1 + b / 10 seconds, rounds 1 + b / 2: at 4 requests 15 seconds against 13, at 8 19 to 21."""
    plain, drafting = Clock(lambda size: 1 + size / 10), Clock(lambda size: 1 + size / 2, drafts=2)
    found = sweep(plain, drafting)
    for size in (1, 4, 8):
        row, slow, fast = found.batch[size], 1 + 10 * (1 + size / 10), 1 + 4 * (1 + size / 2)
        assert row.speedup.mean == pytest.approx(slow / fast)
        assert row.round_cost == pytest.approx((1 + size / 2) / (1 + size / 10))
        assert row.baseline_tokens_per_second == pytest.approx(11 * size / slow)
    assert found.stops_paying_at == 8 and 4 < found.crossing < 8
    assert [size for size, _ in plain.sizes] == [1] * 8 + [4] * 6 + [8] * 6 and plain.sizes == drafting.sizes


def test_a_server_that_fails_leaves_the_smaller_numbers():
    found = sweep(Clock(lambda size: 1), Clock(lambda size: 1, drafts=2, fails_at=4))
    assert list(found.batch) == [1]


def test_servers_are_started_for_the_most_requests():
    config = BenchConfig.flat(target="t", draft="d", engine="vllm", concurrency=(4, 16, 8), batch_size=2)
    assert at_most(config).timing.batch_size == 16 and at_most(config.replace(batch_size=32)).timing.batch_size == 32
    assert at_most(BenchConfig.flat(target="t", draft="d")).timing.batch_size == 1
