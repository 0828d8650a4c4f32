"""What soft labels lose: gradients and alpha of a draft trained from them, against the target itself.

    python benchmarks/soft_labels.py --output DIR [--server URL]     (resumable: finished rows are kept)

DIR is that of `benchmarks/methods.py`: its start, its answers of SmolLM2-135M-Instruct to HumanEval, its budget (60
steps of forward KL), and its row `target-fkl`, which had the target in memory and is what every row here is compared
with. A row stores K likeliest ids (`top`) or N draws (`drawn`) of each token in float16, or asks a vLLM server of the
target for its 20 likeliest ids (`server`). The cosine is between the gradients of one batch, over all of the draft's
weights: mean and least of 12 batches. Alpha is measured with the real target on 48 held-out prompts; intervals are
paired over them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from methods import BUDGET, MAX_NEW, ROWS, distil, label, prepare, train
from smollm2 import RESULTS, target_file
from study_scores import Scores, over

from specdistill import TrainConfig
from specdistill.data.batch import Example, collate, join_soft_labels
from specdistill.data.soft_labels import LabelStore
from specdistill.distill.answers.annotate import to_sequence
from specdistill.distill.answers.shards import find_shards, read_rollouts
from specdistill.distill.sequences.sources import Labels
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.target.served import TargetServer
from specdistill.distill.training.loss import DistillationLoss, StepTotals
from specdistill.models import LanguageModel, load_model
from specdistill.servers.client import ModelServer

TOP, DRAWN, SERVER_TOP_K = (4, 16, 64, 256), (16, 64), 20
BATCHES, BATCH = 12, 4


def gradient(draft: LanguageModel, target: LanguageModel, batch: list[Example], labels: Labels | None) -> torch.Tensor:
    """Of forward KL, over all weights, from labels or from the target itself."""
    config = TrainConfig.flat(target="t", draft="d", output="o", method="supervised-kd")
    module = DistillationLoss(draft, target, config)
    module.zero_grad()
    totals = StepTotals(sum(len(each.answer_ids) for each in batch), len(batch))
    if labels is None:
        loss = module(collate(batch), torch.cat(TargetStates(target).of(batch)), totals).loss
    else:
        loss = module(collate(batch), None, totals, soft_labels=join_soft_labels(labels.of(batch))).loss
    loss.backward()
    return torch.cat([each.grad.flatten() for each in module.parameters() if each.grad is not None])


def cosines(folder: Path, stores: dict[str, Labels], target: LanguageModel) -> dict[str, dict[str, float]]:
    draft = load_model(str(folder / "start"), "draft")
    sequences = [to_sequence(row) for row in read_rollouts(folder / "answers")]
    found: dict[str, list[tuple[float, float]]] = {row: [] for row in stores}
    for start in range(0, BATCHES * BATCH, BATCH):
        batch = sequences[start : start + BATCH]
        exact = gradient(draft, target, batch, None)
        for row, store in stores.items():
            own = gradient(draft, target, batch, store)
            cosine = float(torch.cosine_similarity(own.double(), exact.double(), dim=0))
            found[row].append((cosine, float(own.norm() / exact.norm())))
    return {
        row: {
            "mean": sum(each for each, _ in values) / len(values),
            "least": min(each for each, _ in values),
            "norm_ratio": sum(each for _, each in values) / len(values),
        }
        for row, values in found.items()
    }


def opened(directory: Path) -> LabelStore:
    store = LabelStore(find_shards(directory))
    for number, row in enumerate(store.rows()):
        store.place(to_sequence(row), number)
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--server", help="URL of a vLLM server of the same target; adds its row")
    options = parser.parse_args()
    folder: Path = options.output
    torch.set_num_threads(1)
    prepare(folder)
    train(folder, "target-fkl", 0)
    scores = Scores(folder, str(target_file()), MAX_NEW)
    target = scores.target

    def train_as(row: str, settings: dict[str, Any]) -> None:
        distil(folder, "start", f"soft-{row}", ROWS["target-fkl"] | BUDGET | settings)

    rows = [*(f"top-{number}" for number in TOP), *(f"drawn-{number}" for number in DRAWN)]
    costs = {row: label(folder, row) for row in rows}
    for row in rows:
        train_as(row, {"soft_labels": str(folder / "labels" / row)})
    stores: dict[str, Labels] = {row: opened(folder / "labels" / row) for row in rows}
    if options.server is not None:
        row = f"server-{SERVER_TOP_K}"
        served = {"target_server": options.server, "rollouts": str(folder / "answers"), "server_top_k": SERVER_TOP_K}
        train_as(row, served)
        stores[row] = TargetServer(ModelServer(options.server), target, SERVER_TOP_K)
    online, start = scores.of(folder / "target-fkl-seed0" / "last"), scores.of(folder / "start")
    angles = cosines(folder, stores, target)

    def entry(row: str) -> dict[str, Any]:
        own = scores.of(folder / f"soft-{row}" / "last")
        keys = ("labels_per_token", "bytes_per_token", "planned_bytes_per_token")
        return {
            **{key: costs[row][key] for key in keys if row in costs},
            "gradient": angles[row],
            "over_start": over([own], [start]),
            "over_online": over([own], [online]),
        }

    result = {
        "budget": BUDGET,
        **scores.size,
        "torch": torch.__version__,
        "vocabulary": target.vocab_size,
        "online_over_start": over([online], [start]),
        "rows": {row: entry(row) for row in stores},
    }
    (RESULTS / "soft_labels.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
