"""A served target teaches exactly like a loaded one, and whatever it does, no step is lost."""

from __future__ import annotations

import shutil
import threading
import time

import pytest
import torch
from fake_vllm import FakeVllm
from tiny_models import make_model, make_tokenizer
from tiny_runs import example, gradient, loss_of, same_weights, standard_models, train_config, write_folder

from specdistill import load_model, train_draft
from specdistill.decoding import Sampling, generate_plain
from specdistill.distill.target.served import TargetServer
from specdistill.errors import ConfigError, IncompatibleModelsError, ServerError, SpecdistillError
from specdistill.servers.client import ModelServer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The standard models, and a shell: all that a user of a served target has of it, no weights."""
    folder = write_folder(tmp_path_factory.mktemp("served"), standard_models())
    shutil.copytree(folder / "target", folder / "shell", ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.fixture
def target(folder):
    return load_model(str(folder / "target"))


def config(folder, output, url, **settings):
    """Six steps of a run whose target is served at the URL."""
    served = {"target": str(folder / "shell"), "target_server": url, "server_patience": 20}
    short = {"method": "supervised-kd", "steps": 6, "eval_every": 3}
    return train_config(folder, output, **(served | short | settings))


EXAMPLE = example((3, 5, 8, 4), (7, 9, 11, 30, 1))


def loss_and_gradient(folder, target, soft_labels=None, **settings):
    draft = load_model(str(folder / "draft"))
    loss = loss_of(draft, target, [EXAMPLE], soft_labels=soft_labels, method="supervised-kd", **settings).loss
    return float(loss.detach()), gradient(loss, draft)


@pytest.mark.parametrize("divergence", ["fkl", "rkl", "jsd", "tvd", "lk_lambda"])
def test_the_loss_is_the_local_one_within_the_top_k_bound(folder, target, divergence):
    local, its_gradient = loss_and_gradient(folder, target, divergence=divergence)
    with FakeVllm(target, max_logprobs=65) as served:
        server = ModelServer(served.url, patience=5)
        every = TargetServer(server, target, 65).soft_labels([EXAMPLE])[0]
        some = TargetServer(server, target, 55).soft_labels([EXAMPLE])[0]
    served_loss, served_gradient = loss_and_gradient(folder, target, every, divergence=divergence)
    assert served_loss == pytest.approx(local, abs=1e-5)
    assert torch.allclose(served_gradient, its_gradient, atol=1e-5)
    partial, partial_gradient = loss_and_gradient(folder, target, some, divergence=divergence)
    # Merged outcomes: a divergence is at most that over all ids.
    assert partial <= local + 1e-6
    assert torch.cosine_similarity(partial_gradient, its_gradient, dim=0) > 0.9


@pytest.mark.parametrize(
    ("method", "owner"),
    [("supervised-kd", "vllm"), ("seqkd", "vllm"), ("gkd", "vllm"), ("distillspec", "vllm"), ("distillspec", "sglang")],
)
def test_every_method_trains_without_the_weights(folder, target, tmp_path, method, owner):
    half = {"gkd": {"lmbda": 0.5}, "distillspec": {"target_fraction": 0.5}}.get(method, {})
    settings = {"method": method, "steps": 40, "eval_every": 20} | half
    with FakeVllm(target, owner=owner) as served:
        summary = train_draft(config(folder, tmp_path / "out", served.url, **settings))
    assert summary.steps == 40 and summary.gain["sampled"].low > 0
    assert served.most_at_once <= 8


def test_the_servers_answers_are_those_of_its_model(folder, target):
    with FakeVllm(target) as served:
        server = TargetServer(ModelServer(served.url), target, 20)
        prompts, seeds = [[3, 6, 4], [3, 9, 12, 4]], [5, 6]
        written = server.write(prompts, Sampling(), 12, seeds)
    local = generate_plain(target, prompts, sampling=Sampling(), max_new_tokens=12, seeds=seeds)
    assert [answer.token_ids for answer in written] == [answer.token_ids for answer in local]
    assert [answer.finish_reason for answer in written] == [answer.finish_reason for answer in local]


@pytest.mark.parametrize("status", [429, 500])
def test_an_overloaded_server_is_asked_again(folder, target, tmp_path, status):
    def fault(path, number):
        return (status, {"error": {"message": "busy"}}) if number % 30 == 0 else None

    with FakeVllm(target, fault=fault) as served:
        faulty = train_draft(config(folder, tmp_path / "a", served.url, server_concurrency=2))
    with FakeVllm(target) as served:
        calm = train_draft(config(folder, tmp_path / "b", served.url, server_concurrency=2))
    assert faulty.after == calm.after, "no step was lost or trained otherwise"


def test_a_server_that_restarts_is_waited_for(folder, target, tmp_path):
    first = FakeVllm(target)
    stopped = threading.Event()

    def restart():
        while first.requests < 20:
            time.sleep(0.01)
        first.__exit__()
        stopped.set()
        time.sleep(1.5)
        with FakeVllm(target, port=first.port):
            finished.wait(60)

    finished = threading.Event()
    thread = threading.Thread(target=restart)
    with_first = first.__enter__()
    thread.start()
    try:
        summary = train_draft(config(folder, tmp_path / "out", with_first.url, steps=12, eval_every=6))
    finally:
        finished.set()
        thread.join()
    assert stopped.is_set() and summary.steps == 12


def test_a_server_that_stays_away_ends_the_run_and_resume_loses_no_step(folder, target, tmp_path):
    settings = {"steps": 9, "eval_every": 3, "server_patience": 1, "batch_size": 4, "server_concurrency": 1}
    with FakeVllm(target) as served:
        uncut = train_draft(config(folder, tmp_path / "uncut", served.url, **settings))
        needed = served.requests

    def gone(path, number):
        # In the middle of the seventh step's labels.
        return (503, {"error": {"message": "shutting down"}}) if number > needed - 10 else None

    part = config(folder, tmp_path / "part", "http://unused", **settings)
    with FakeVllm(target, fault=gone) as served, pytest.raises(ServerError, match=r"no answer since.*--resume"):
        train_draft(part.replace(target_server=served.url))
    kept = sorted((tmp_path / "part" / "checkpoints").iterdir())
    assert kept[-1].name == "step-000006", "step 7's labels never came: it is done again, and 1 to 6 are not"
    with FakeVllm(target) as served:
        resumed = train_draft(part.replace(target_server=served.url, resume=True))
    assert resumed.after == uncut.after and resumed.best_step == uncut.best_step
    assert same_weights(tmp_path / "uncut", tmp_path / "part")


def test_sglang_labels_are_vllms(folder, target):
    labels = []
    for owner in ("vllm", "sglang"):
        with FakeVllm(target, owner=owner, max_logprobs=65) as served:
            labels.append(TargetServer(ModelServer(served.url), target, 65).soft_labels([EXAMPLE])[0])
    order = [of_owner.token_ids.argsort(1) for of_owner in labels]
    both = [of_owner.log_probs.gather(1, index) for of_owner, index in zip(labels, order, strict=True)]
    assert torch.equal(*both)


def test_a_text_that_fills_the_context_leaves_room_for_the_servers_token(target):
    with FakeVllm(target) as served:
        assert TargetServer(ModelServer(served.url), target, 5).max_context == target.max_context - 1


@pytest.mark.alone
def test_a_slow_server_is_slow(folder, target):
    with FakeVllm(target, delay=0.2) as served:
        server = TargetServer(ModelServer(served.url, concurrency=4, patience=5), target, 5)
        started = time.monotonic()
        labels = server.soft_labels([EXAMPLE] * 8)
        assert len(labels) == 8 and 0.4 <= time.monotonic() - started < 1.5 and served.most_at_once == 4


def test_an_answer_that_takes_too_long_counts_as_none(target):
    with FakeVllm(target, delay=1.0) as served, pytest.raises(ServerError, match="no answer since"):
        ModelServer(served.url, timeout=0.1, patience=0.5)


def test_no_server_at_all_is_found_before_a_model_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("specdistill.models.load.find", lambda *_, **__: pytest.fail("a model was looked for"))
    with pytest.raises(ServerError, match="no answer since") as error:
        train_draft(config(folder, tmp_path / "out", "http://127.0.0.1:9", server_patience=0))
    assert "\n" not in str(error.value)


def test_a_model_that_is_not_served(folder, target, tmp_path):
    with FakeVllm(target) as served, pytest.raises(ServerError, match="does not serve 'other', but the-target"):
        train_draft(config(folder, tmp_path / "out", served.url, server_model="other"))


def test_another_vocabulary_is_found_before_training(folder, target, tmp_path):
    other = make_model(layers=1)
    other.tokenizer = make_tokenizer(first_word="Speculative")
    with FakeVllm(other) as served, pytest.raises(IncompatibleModelsError, match="whose tokenizer is not that"):
        train_draft(config(folder, tmp_path / "out", served.url))


def test_ids_outside_the_vocabulary_are_refused(folder, target):
    def fault(path, number):
        entry = {"99999": {"logprob": -0.1, "rank": 1, "decoded_token": "x"}}
        return (200, {"choices": [{"prompt_logprobs": [None] + [entry] * 8}]}) if path == "/v1/completions" else None

    with FakeVllm(target, fault=fault) as served, pytest.raises(ServerError, match="don't fit the vocabulary"):
        TargetServer(ModelServer(served.url), target, 5).soft_labels([EXAMPLE])


@pytest.mark.parametrize(
    "body", [b"<html>proxy error</html>", b"[]", {"choices": []}, {"choices": [{"prompt_logprobs": None}]}]
)
def test_garbage_is_named(folder, target, body):
    def fault(path, number):
        return (200, body) if path == "/v1/completions" else None

    with FakeVllm(target, fault=fault) as served, pytest.raises(ServerError) as error:
        TargetServer(ModelServer(served.url), target, 5).soft_labels([EXAMPLE])
    assert "\n" not in str(error.value) and served.url.removesuffix("/v1") in str(error.value)


def test_more_log_probs_than_the_server_allows(folder, target, tmp_path):
    with FakeVllm(target) as served, pytest.raises(ServerError, match="lower --server-top-k, or raise"):
        train_draft(config(folder, tmp_path / "out", served.url, server_top_k=50))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_server": "localhost:8000"}, "http"),
        ({"method": "skd"}, "--method seqkd, supervised-kd, gkd, distillspec"),
        ({"temperature": 0.7}, "temperature 1 only"),
        ({"loss_temperature": 2.0}, "temperature 1 only"),
        ({"reference": "x", "divergence": "fkl"}, "--reference needs the target"),
        ({"soft_labels": "x"}, "choose one"),
    ],
)
def test_bad_settings_are_found_before_a_model_or_server_is_looked_for(folder, tmp_path, settings, message):
    with pytest.raises((ConfigError, SpecdistillError), match=message):
        train_draft(config(folder, tmp_path / "out", **({"url": "http://127.0.0.1:9"} | with_url(settings))))
    assert not (tmp_path / "out").exists()


def with_url(settings):
    return {"url" if name == "target_server" else name: value for name, value in settings.items()}


def test_the_key_goes_along(target, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with FakeVllm(target) as served:
        assert ModelServer(served.url)._client.headers["authorization"] == "Bearer secret"
