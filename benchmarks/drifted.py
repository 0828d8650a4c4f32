"""A drifted target: SmolLM2-135M-Instruct fine-tuned on one narrow job."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from methods import SaveLast
from service_mail import records
from smollm2 import target_file

from specdistill import TrainConfig, train_draft
from specdistill.report.progress import TerminalProgress


def fine_tune(folder: Path) -> None:
    (folder / "mails.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records(976, 1)))
    config = TrainConfig(
        target=str(target_file()),
        draft=str(target_file()),
        output=str(folder / "finetuning"),
        method="sft",
        prompts=str(folder / "mails.jsonl"),
        max_new_tokens=160,
        batch_size=8,
        micro_batch_size=8,
        steps=120,
        eval_every=60,
        patience=0,
        learning_rate=2e-4,
        heldout_prompts=8,
        resume=True,
        threads=1,
    )
    train_draft(config, TerminalProgress(), [SaveLast(folder / "finetuning", folder / "finetuning")])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    fine_tune(parser.parse_args().output)
