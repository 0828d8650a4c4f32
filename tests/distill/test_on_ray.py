"""`generate` and `annotate` on a local Ray cluster of two workers, one of which is killed in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import psutil
import pytest
import ray
from tiny_models import make_model
from tiny_runs import annotate_config, generate_config, prompt_rows, write_folder

from specdistill import annotate, generate
from specdistill.distill.answers import on_ray
from specdistill.distill.answers.shards import find_shards
from specdistill.errors import ConfigError, SpecdistillError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prompts enough that a worker can be killed in the middle."""
    return write_folder(tmp_path_factory.mktemp("ray"), {"target": make_model(layers=3)}, prompt_rows(60))


@pytest.fixture(autouse=True)
def no_cluster_left():
    yield
    ray.shutdown()


def long_answers(folder, output, **settings):
    """Configuration of two long answers to each prompt, in many shards."""
    return generate_config(folder, output, rollouts_per_prompt=2, max_new_tokens=48, shard_size=4, **settings)


def workers():
    """Processes of this test's own cluster that write shards."""
    pids = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            name = " ".join(process.cmdline())
            if name.startswith("ray::") and "Worker" in name:
                pids.append(process.pid)
    return pids


class Killer(threading.Thread):
    """Kills one worker once some shards are there; `killed` says that it happened before the last one."""

    def __init__(self, output, at):
        super().__init__(daemon=True)
        self.output, self.at, self.killed = output, at, 0

    def run(self):
        for _ in range(6000):
            shards = len(list(self.output.glob("*.parquet")))
            if shards >= self.at and (pids := workers()):
                os.kill(pids[0], signal.SIGKILL)
                self.killed = len(list(self.output.glob("*.parquet")))
                return
            time.sleep(0.01)


def same_files(one, two):
    assert [path.name for path in find_shards(one)] == [path.name for path in find_shards(two)]
    return all(a.read_bytes() == b.read_bytes() for a, b in zip(find_shards(one), find_shards(two), strict=True))


def test_a_killed_worker_costs_no_prompt_and_writes_none_twice(folder, tmp_path):
    generate(long_answers(folder, tmp_path / "one"))
    killer = Killer(tmp_path / "two", at=4)
    killer.start()
    summary = generate(long_answers(folder, tmp_path / "two", ray="local", ray_workers=2))
    killer.join()
    assert 4 <= killer.killed < 30, "a worker was killed in the middle"
    assert summary.generators["target"].rollouts == 120
    assert same_files(tmp_path / "one", tmp_path / "two")
    labels = annotate_config(folder, tmp_path / "labels", rollouts=str(tmp_path / "one"))
    annotate(labels)
    on_two = labels.replace(output=str(tmp_path / "labels-two"), ray="local", ray_workers=2)
    annotate(on_two)
    assert same_files(tmp_path / "labels", tmp_path / "labels-two")


def test_a_shard_that_cannot_be_written_ends_the_run_with_one_line():
    # Defined here: workers can't import this file, so it has to travel whole.
    class Failing:
        def write(self, number):
            raise OSError("no space left on device")

    with pytest.raises(SpecdistillError, match="no space left on device") as error:
        on_ray.write_shards(Failing, (), range(3), address="local", workers=1, on_done=lambda done: None)
    assert "\n" not in str(error.value)
    assert not ray.is_initialized(), "the cluster that the run began ends with it"
    # A thread that fetched ahead would outlive the run and start a cluster when it next asks for something.
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("ray", "iter"))]


def test_a_cluster_of_the_callers_own_stays():
    # Defined here: workers can't import this file, so it has to travel whole.
    class Counting:
        def write(self, number):
            return number

    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    done = []
    on_ray.write_shards(Counting, (), range(1, 4), address="local", workers=1, on_done=done.append)
    assert sorted(done) == [1, 2, 3]
    assert ray.is_initialized()


def test_no_cluster_is_said(folder, tmp_path):
    with pytest.raises(SpecdistillError, match="no cluster"):
        generate(long_answers(folder, tmp_path / "out", ray="auto"))


def test_a_missing_ray_is_said_before_anything_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"specdistill\[ray\]"):
        generate(long_answers(folder, tmp_path / "out", ray="local"))
