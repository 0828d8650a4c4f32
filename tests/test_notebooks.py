"""The notebooks run from top to bottom, on tiny models, and are committed without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_models import make_model, save

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
PARAMETERS = {
    "measure_a_pair": 'TARGET, DRAFT, PROMPTS = "big", "small", "p.jsonl"\nNUM_PROMPTS, MAX_NEW_TOKENS = 4, 8',
    "train_a_draft_on_a_cpu": (
        'TARGET, TRAINING, HELD_OUT = "big", "p.jsonl", "q.jsonl"\nLAYERS, VOCAB_KEEP = 1, 40\n'
        "STEPS, MAX_NEW_TOKENS, NUM_PROMPTS = 2, 8, 4\n"
        'CALIBRATION = {"calibration_prompts": 4, "calibration_tokens": 6, "probe_steps": 2}'
    ),
}
"""Text in the place of a notebook's cell `parameters`."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    save(make_model(layers=3), tmp_path / "big")
    save(make_model(layers=1, seed=4), tmp_path / "small")
    for name, first in (("p", 0), ("q", 20)):
        prompts = [json.dumps({"prompt": f"w{first + number}"}) + "\n" for number in range(10)]
        (tmp_path / f"{name}.jsonl").write_text("".join(prompts))
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    cell.source = PARAMETERS[path.stem]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert any(verdict in printed for verdict in ("pays -", "does not pay -", "cannot pay -", "undecided -"))
