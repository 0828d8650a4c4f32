"""Flags that take several values."""

from __future__ import annotations

import pytest

from specdistill.cli import app, main
from specdistill.errors import ConfigError

PAIR = ["bench", "--target", "t", "--draft", "d"]


@pytest.fixture
def asked(monkeypatch):
    """Configurations that reached the command."""
    found = []

    def bench(config, *arguments):
        found.append(config)
        raise ConfigError("far enough")

    monkeypatch.setattr("specdistill.serving.bench.bench", bench)
    return found


@pytest.mark.parametrize("words", [["1", "2", "4"], ["1,2,4"], ["1,", "2,", "4"], ["1,2", "4"], ["1, 2,4,"]])
def test_spaces_and_commas_are_the_same(asked, words, capsys):
    assert main([*PAIR, "--batch-sizes", *words]) == 2
    assert "far enough" in capsys.readouterr().err
    assert asked[0].load.batch_sizes == (1, 2, 4)


def test_names_and_choices_take_commas_too(asked, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    assert main([*PAIR, "--compare", "one,two", "a,b", "--temperature", "1", "--lenience-sweep", "0.9,0.5"]) == 2
    # A directory of that name is one draft.
    assert asked[0].compare == ("one", "two", "a,b") and asked[0].acceptance.lenience_sweep == (0.9, 0.5)
    (tmp_path / "r.yaml").write_text("target: t\ndraft: d\nbatch_sizes: 1,2\n")
    assert main(["bench", "--config", "r.yaml"]) == 2
    assert asked[1].load.batch_sizes == (1, 2)


@pytest.mark.parametrize("flag", ["--batch-sizes", "--concurrency", "--compare", "--lenience-sweep", "--compare-kv"])
@pytest.mark.parametrize("more", [[], ["--seed", "1"], [",", "--seed", "1"]])
def test_a_flag_without_a_value_is_refused(asked, flag, more, capsys):
    """It was the same as no flag at all."""
    assert main([*PAIR, flag, *more]) == 2
    assert capsys.readouterr().err == f"specdistill: {flag} needs a value, or several with spaces between them\n"
    assert asked == [] and app.config == ()


def test_what_is_no_number_is_named(asked, capsys):
    assert main([*PAIR, "--batch-sizes", "1,x"]) == 2
    assert "--batch-sizes must be a whole number, got x" in capsys.readouterr().err
