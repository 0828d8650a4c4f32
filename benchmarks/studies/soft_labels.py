"""How much training on soft labels loses against the target itself: gradients and alpha of a draft.

    python benchmarks/studies/soft_labels.py --output DIR [--server URL]     (resumable: finished rows are kept)

DIR is that of `benchmarks/studies/methods.py`: its start, its answers of SmolLM2-135M-Instruct to HumanEval, its budget
(60 steps of forward KL), and its row `target-fkl`, which had the target in memory and with which every row here is
compared. A row stores K likeliest ids (`top`) or N draws (`drawn`) of each token in float16, or asks a vLLM server of
the target for its 20 likeliest ids (`server`). The cosine is between the gradients of one batch, over all of the
draft's weights: mean and least of 12 batches. Alpha is measured with the real target on 48 held-out prompts; intervals
are paired over them.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.folders import StudyFolder
from benchmarks.studies.labels import LabelKind, StoredLabels, label_once
from benchmarks.studies.method_rows import BUDGET, MAX_NEW_TOKENS, METHOD_ROWS
from benchmarks.studies.method_runs import common_start, prepare, train_from, train_row
from benchmarks.studies.scores import Scores, alpha_over
from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result
from specdistill import TrainConfig
from specdistill.data.batch import Example, collate, join_soft_labels
from specdistill.data.soft_labels import LabelStore
from specdistill.distill.answers.shards import find_shards, read_rollouts, to_example
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.target.place import Labeller
from specdistill.distill.target.served import TargetServer
from specdistill.distill.training.loss import DistillationLoss, StepTotals
from specdistill.models import LanguageModel, load_model
from specdistill.servers.client import ModelServer

STORED = (
    *(StoredLabels(LabelKind.TOP, number) for number in (4, 16, 64, 256)),
    *(StoredLabels(LabelKind.DRAWN, number) for number in (16, 64)),
)
SERVER_TOP_K = 20
SERVED = f"server-{SERVER_TOP_K}"
ONLINE = "target-fkl"
"""The row of `methods.py` that had the target in memory."""
BATCHES, BATCH = 12, 4


@dataclass(frozen=True)
class GradientAgreement:
    """The gradient from labels against the one from the target itself, over batches."""

    mean: float
    """Mean cosine."""
    least: float
    """Least cosine."""
    norm_ratio: float
    """Mean ratio of the norms."""


def gradient(
    draft: LanguageModel, target: LanguageModel, batch: list[Example], labels: Labeller | None
) -> torch.Tensor:
    """Gradient of forward KL over all weights, from labels or, without them, from the target itself."""
    config = TrainConfig.flat(target="t", draft="d", output="o", method="supervised-kd")
    module = DistillationLoss(draft, target, config.objective)
    module.zero_grad()
    totals = StepTotals(sum(len(example.answer_ids) for example in batch), len(batch))
    if labels is None:
        loss = module(collate(batch), torch.cat(TargetStates(target).hidden_states(batch)), totals).loss
    else:
        loss = module(collate(batch), None, totals, soft_labels=join_soft_labels(labels.soft_labels(batch))).loss
    loss.backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def gradient_agreements(
    folder: StudyFolder, stores: dict[str, Labeller], target: LanguageModel
) -> dict[str, GradientAgreement]:
    """Row -> agreement of its labels' gradients."""
    draft = load_model(str(common_start(folder)), "draft")
    examples = [to_example(row) for row in read_rollouts(folder.answers)]
    cosines: dict[str, list[float]] = {row: [] for row in stores}
    norm_ratios: dict[str, list[float]] = {row: [] for row in stores}
    for start in range(0, BATCHES * BATCH, BATCH):
        batch = examples[start : start + BATCH]
        exact = gradient(draft, target, batch, None)
        for row, store in stores.items():
            own = gradient(draft, target, batch, store)
            cosines[row].append(float(torch.cosine_similarity(own.double(), exact.double(), dim=0)))
            norm_ratios[row].append(float(own.norm() / exact.norm()))

    def agreement(row: str) -> GradientAgreement:
        count = len(cosines[row])
        return GradientAgreement(sum(cosines[row]) / count, min(cosines[row]), sum(norm_ratios[row]) / count)

    return {row: agreement(row) for row in stores}


def open_labels(directory: Path) -> LabelStore:
    """Stored labels, each placed at the answer that it belongs to."""
    store = LabelStore(find_shards(directory))
    for number, row in enumerate(store.rows()):
        store.place(to_example(row), number)
    return store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--server", help="URL of a vLLM server of the same target; adds its row")
    options = parser.parse_args()
    folder = StudyFolder(options.output)
    torch.set_num_threads(1)
    prepare(folder)
    train_row(folder, ONLINE, 0)
    scores = Scores(folder, str(target_file()), MAX_NEW_TOKENS)

    def run_of(row: str) -> Path:
        return folder.root / f"soft-{row}"

    def train_on(row: str, **settings: Any) -> None:
        train_from(folder, common_start(folder), run_of(row), **METHOD_ROWS[ONLINE].settings, **BUDGET, **settings)

    sizes = {labels.name: label_once(folder, labels) for labels in STORED}
    for labels in STORED:
        train_on(labels.name, soft_labels=str(labels.directory(folder)))
    stores: dict[str, Labeller] = {labels.name: open_labels(labels.directory(folder)) for labels in STORED}
    if options.server is not None:
        train_on(SERVED, target_server=options.server, rollouts=str(folder.answers), server_top_k=SERVER_TOP_K)
        stores[SERVED] = TargetServer(ModelServer(options.server), scores.target, SERVER_TOP_K)
    online = scores.score_once(folder.run(ONLINE, 0))
    start = scores.score_once(common_start(folder))
    agreements = gradient_agreements(folder, stores, scores.target)

    def entry(row: str) -> dict[str, Any]:
        own = scores.score_once(run_of(row))
        return {
            **(asdict(sizes[row]) if row in sizes else {}),
            "gradient": asdict(agreements[row]),
            "over_start": alpha_over([own], [start]),
            "over_online": alpha_over([own], [online]),
        }

    result = {
        "budget": BUDGET,
        **scores.size,
        "torch": torch.__version__,
        "vocabulary": scores.target.vocab_size,
        "online_over_start": alpha_over([online], [start]),
        "rows": {row: entry(row) for row in stores},
    }
    write_result("soft_labels.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
