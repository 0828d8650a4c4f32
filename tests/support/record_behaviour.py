"""Records what every command does to tiny models, as SHA-256 sums, through the command line alone.

    python tests/support/record_behaviour.py FOLDER > sums.json

Two commits behave alike when their sums are equal on one machine. Only the command line and this folder's helpers are
used, so the script runs on commits whose modules differ. FOLDER keeps models and prompts, which both must share. Times
and versions are left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyarrow.parquet
import torch
from fake_vllm import FakeVllm
from safetensors.torch import load_file
from tiny_models import make_model, make_tokenizer, perturbed, save

from specdistill.cli import main

torch.set_num_threads(1)

LEFT_OUT = {
    *("tokens_per_second", "time_to_first_token", "time_per_output_token", "speedup", "engine_efficiency"),
    *("cost_ratio", "verify_cost", "round_cost", "round_cost_ci95", "break_even_alpha", "best_num_draft_tokens"),
    *("predicted_speedup", "perfect_draft_speedup", "verdict", "why", "target_step_seconds", "draft_step_seconds"),
    *("torch", "transformers", "packing_seconds", "engine_version", "threads"),
}
"""Keys of the bench report that times or versions decide."""

TRAIN: dict[str, list[str]] = {
    "sft": ["--method", "sft"],
    "sft --text": ["--method", "sft", "--text", "documents.txt"],
    "seqkd": ["--method", "seqkd"],
    "seqkd, another tokenizer": ["--method", "seqkd", "--draft", "foreign"],
    "best-of-n": ["--method", "best-of-n"],
    "best-of-n --scorer exact-match": ["--method", "best-of-n", "--scorer", "exact-match"],
    "supervised-kd": ["--method", "supervised-kd"],
    "supervised-kd --text": ["--method", "supervised-kd", "--text", "documents.txt"],
    "gkd": ["--method", "gkd"],
    "gkd --lmbda 1 --beta 0.1": ["--method", "gkd", "--lmbda", "1", "--beta", "0.1"],
    "gkd --reward": ["--method", "gkd", "--reward", "rewards:length", "--lmbda", "1"],
    "distillspec": ["--method", "distillspec"],
    "distillspec --target-fraction 0": ["--method", "distillspec", "--target-fraction", "0"],
    "distillspec, fresh cut": ["--method", "distillspec", "--draft", "cut"],
    "distillspec --temperature 0": ["--temperature", "0", "--rollouts-per-prompt", "1", "--rule", "greedy"],
    "distillspec, filtered": ["--temperature", "0.8", "--top-k", "20", "--top-p", "0.9", "--min-p", "0.01"],
    "distillspec --loss-temperature": ["--loss-temperature", "2", "--temperature", "0.7"],
    "distillspec --rollouts": ["--rollouts", "answers"],
    "distillspec --reference": ["--reference", "good", "--select-fraction", "0.5"],
    "distillspec --guidance": ["--guidance", "0.5", "--negative-prompt", "w3 w4"],
    "distillspec --lora-rank 2": ["--lora-rank", "2"],
    "distillspec, micro-batches": ["--micro-batch-size", "3", "--gradient-checkpointing"],
    "distillspec --precision bfloat16": ["--precision", "bfloat16"],
    "distillspec --ce-weight": ["--ce-weight", "0.2", "--weight-decay", "0.01", "--max-grad-norm", "0.5"],
    "skd": ["--method", "skd", "--skd-top-k", "5", "--skd-num-draft-tokens", "3"],
    "online": ["--method", "online", "--online", "log"],
    "supervised-kd --soft-labels": ["--method", "supervised-kd", "--soft-labels", "labels"],
    "distillspec --soft-labels, drawn": ["--soft-labels", "drawn"],
    **{
        f"supervised-kd --divergence {kind}": ["--method", "supervised-kd", "--divergence", kind]
        for kind in ("rkl", "jsd", "jeffreys", "skewed_kl", "tvd", "lk_alpha", "lk_lambda", "lk_argmax")
    },
}

BENCH: dict[str, list[str]] = {
    "greedy, compared": ["--compare", "cut"],
    "sampled": ["--temperature", "1"],
    "argmax_draft": ["--temperature", "1", "--rule", "argmax_draft", "--batch-size", "3"],
    "block, filtered": ["--temperature", "0.9", "--rule", "block", "--top-k", "12", "--top-p", "0.95"],
    "lenient": ["--temperature", "1", "--rule", "lenient", "--lenience", "0.5"],
    "confidence": ["--draft-length", "confidence", "--num-draft-tokens", "3"],
    "in transformers": ["--engine", "transformers"],
    "in transformers, sampled": ["--engine", "transformers", "--temperature", "1"],
}


def prepare(folder: Path) -> None:
    """Writes models, prompts and a rejection log that every commit is run on."""
    target = make_model(layers=4)
    save(target, folder / "target")
    save(perturbed(target, 0.3), folder / "good")
    save(make_model(layers=1, seed=9), folder / "draft")
    save(make_model(layers=1, seed=9, tokenizer=make_tokenizer(50, "other"), vocab_size=55), folder / "foreign")
    shutil.copytree(folder / "target", folder / "shell", ignore=shutil.ignore_patterns("*.safetensors"))
    prompts = [
        {
            "id": f"p{i}",
            "prompt": f"w{i} w{(7 * i) % 60}",
            "answer": f"w{(i + 1) % 60} w{(i + 2) % 60}",
            "category": "even" if i % 2 == 0 else "odd",
        }
        for i in range(24)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    words = [" ".join(f"w{(i * j) % 60}" for j in range(1, 40)) for i in range(1, 12)]
    (folder / "documents.txt").write_text("\n\n".join(words) + "\n")
    (folder / "rewards.py").write_text("def length(prompt, text):\n    return len(text.split()) / 12\n")
    from specdistill.serving.online import RejectionLog

    with RejectionLog(folder / "log", rows_per_file=50) as log:
        for i in range(120):
            ids = torch.tensor([5 + (i + k) % 60 for k in range(6)])
            log.log([3, 5 + i % 60, 4, 5 + (3 * i) % 60], 5, int(ids[0]), ids, torch.arange(6, 0, -1.0), 7.0)


def run(*arguments: str) -> None:
    """Runs a command; any exit code but 0 ends the recording."""
    if main(list(arguments)) != 0:
        raise SystemExit(f"failed: {' '.join(arguments)}")


def digest(value: Any) -> str:
    """SHA-256 of a value's JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def weights(directory: Path) -> str:
    """SHA-256 of a checkpoint's tensors: names, types, shapes and bytes."""
    total = hashlib.sha256()
    for name, tensor in sorted(load_file(directory / "model.safetensors").items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def history(directory: Path) -> str:
    """SHA-256 of a run's history.jsonl."""
    return hashlib.sha256((directory / "history.jsonl").read_bytes()).hexdigest()


def rows(directory: Path) -> str:
    """SHA-256 of all rows of a directory of shards."""
    return digest([pyarrow.parquet.read_table(path).to_pylist() for path in sorted(directory.rglob("*.parquet"))])


def without_times(report: Any) -> Any:
    """The report without the keys that times decide."""
    if isinstance(report, dict):
        return {key: without_times(value) for key, value in report.items() if key not in LEFT_OUT}
    return [without_times(value) for value in report] if isinstance(report, list) else report


def record(work: Path) -> dict[str, str]:
    """Runs everything in the current folder, results below `work`; name -> SHA-256."""
    sums: dict[str, str] = {}
    asked = ["--prompts", "prompts.jsonl"]
    run("init-draft", "--target", "target", "--layers", "2", "--vocab-keep", "40", "--output", "cut", *asked)
    sums["init-draft: weights"] = weights(Path("cut"))
    common = ["--target", "target", *asked, "--max-new-tokens", "12"]
    run("generate", *common, "--output", "answers", "--rollouts-per-prompt", "2", "--shard-size", "8")
    sums["generate"] = rows(Path("answers"))
    run("generate", *common, "--output", f"{work}/two", "--other", "draft", "--rollouts-per-prompt", "2")
    sums["generate --other"] = rows(work / "two")
    run("annotate", "--target", "target", "--rollouts", "answers", "--top-k", "8", "--output", "labels")
    sums["annotate"] = rows(Path("labels"))
    drawn = ["--labels", "sampled", "--draws", "16", "--output", "drawn"]
    run("annotate", "--target", "target", "--rollouts", "answers", *drawn)
    sums["annotate --labels sampled"] = rows(Path("drawn"))
    short = ["--heldout-prompts", "6", "--rollouts-per-prompt", "2", "--max-new-tokens", "12"]
    short += ["--steps", "8", "--eval-every", "4", "--learning-rate", "3e-3"]
    train = {"--target": "target", "--draft": "draft", "--prompts": "prompts.jsonl"}
    train |= dict(zip(short[::2], short[1::2], strict=True))

    def trained(name: str, given: list[str], **changed: str) -> None:
        output = work / f"run-{len(sums)}"
        settings = train | {f"--{flag}": value for flag, value in changed.items()}
        defaults = [word for flag, value in settings.items() if flag not in given for word in (flag, value)]
        run("train-draft", *defaults, *given, "--output", str(output))
        sums[f"train-draft {name}: weights"] = weights(output)
        sums[f"train-draft {name}: history"] = history(output)

    for name, given in TRAIN.items():
        trained(name, given)
    from specdistill import load_model

    for name in ("supervised-kd", "gkd", "seqkd"):
        with FakeVllm(load_model("target")) as server:
            trained(f"{name} --target-server", ["--method", name, "--target-server", server.url], target="shell")
    for name, given in BENCH.items():
        report = work / f"bench-{len(sums)}.json"
        tokens = [] if "--num-draft-tokens" in given else ["--num-draft-tokens", "2"]
        bench = [*common, "--draft", "good", "--max-draft-tokens", "3", *tokens, *given, "--json", str(report)]
        run("bench", *bench)
        sums[f"bench, {name}"] = digest(without_times(json.loads(report.read_text())))
    run("plan", "--target-params", "70B", "--draft-params", "1B", "--json", f"{work}/plan.json")
    sums["plan"] = digest(json.loads((work / "plan.json").read_text()))
    run("check", "--target", "target", "--draft", "good", "--json", f"{work}/check.json")
    sums["check"] = digest(json.loads((work / "check.json").read_text()))
    run("export", "--target", "target", "--draft", "good", "--format", "vllm", "--output", f"{work}/exported")
    sums["export --format vllm: weights"] = weights(work / "exported")
    return sums


if __name__ == "__main__":
    place = Path(sys.argv[1]).resolve()
    if not (place / "prompts.jsonl").exists():
        place.mkdir(parents=True, exist_ok=True)
        prepare(place)
    os.chdir(place)
    for made in ("cut", "answers", "labels", "drawn", "results"):
        shutil.rmtree(place / made, ignore_errors=True)
    output, sys.stdout = sys.stdout, sys.stderr
    found = record(Path("results"))
    json.dump(found, output, indent=1)
    output.write("\n")
