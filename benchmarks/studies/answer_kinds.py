"""How much choice do the answers of the benchmarks' three jobs leave? `advise` compares yours with them.

    python benchmarks/studies/answer_kinds.py          (not timed; finished jobs stay)

The targets answer greedily, at most 96 tokens: SmolLM2-135M-Instruct with the adapter of `make demo` on mails to JSON,
and as it is on the built-in held-out prompts and on HumanEval. `evaluation.answer_kind` looks at the answers.

Writes benchmarks/results/answer_kinds.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.demo_parts import HELDOUT_SEED
from benchmarks.studies.service_mail import write_records
from benchmarks.support.paths import MAIL_ADAPTER, RESULTS, target_file
from benchmarks.support.results import load_result, write_result
from specdistill.data.prompts import encode_all, load_prompts, spread_over_categories
from specdistill.decoding.answers import write_answers
from specdistill.evaluation.answer_kind import ANSWERS, TOKENS, answer_kind
from specdistill.evaluation.to_json import to_json
from specdistill.models import load
from specdistill.models.gguf import convert
from specdistill.progress import Quiet
from specdistill.settings.sampling import Sampling

FILE = "answer_kinds.json"
JOBS = ("mails", "open", "code")


def look_at(job: str) -> Any:
    """The kind of a job's answers."""
    base = convert(target_file())
    if job == "mails":
        source = load.find(str(MAIL_ADAPTER), "target", print, str(base))
    else:
        source = load.find(str(base), "target", print)
    with tempfile.TemporaryDirectory() as folder:
        mails = Path(folder) / "mails.jsonl"
        write_records(mails, ANSWERS, HELDOUT_SEED)
        names = {"mails": str(mails), "open": "builtin:heldout", "code": "humaneval"}
        prompts = spread_over_categories(load_prompts(names[job]), ANSWERS)
    target = load.load_model(source, "target")
    encoded = encode_all(prompts, target.tokenizer, source.max_context - TOKENS, target.vocab_size)
    answers = write_answers(target, prompts, encoded, Sampling(temperature=0.0), TOKENS, 0, Quiet())
    return to_json(answer_kind(target, answers, Quiet()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="look at all jobs again")
    again = parser.parse_args().again
    torch.set_num_threads(1)
    done = load_result(FILE) if (RESULTS / FILE).exists() and not again else {}
    for job in JOBS:
        if job not in done:
            done[job] = look_at(job)
            write_result(FILE, done)
            print(job, done[job], flush=True)


if __name__ == "__main__":
    main()
