"""Makes the table of what drafts reached for the benchmarks' targets, which `specdistill advise` reads.

python benchmarks/tables/known_results.py           writes specdistill/evaluation/known_results.json
python benchmarks/tables/known_results.py --check   fails if it is out of date (a test runs this)

Every number comes from a file in benchmarks/results, which the entry names. Tokens of training are answer tokens: where
a result has none, its steps, batch size and the mean length of its held-out answers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.bench_runs import DEPTHS, depth_row
from benchmarks.studies.drifted_rows import DRIFTED_ROWS, WARM
from benchmarks.studies.method_rows import DEPTH_BUDGET
from benchmarks.support.paths import RESULTS, ROOT, main_study_result
from benchmarks.support.results import load_result

TABLE = ROOT / "specdistill/evaluation/known_results.json"
JOBS = {"mails": "mails to JSON", "open": "open chat", "code": "code to complete"}
FINE_TUNED, AS_IT_IS = "SmolLM2-135M-Instruct, fine-tuned on the job", "SmolLM2-135M-Instruct as it is"
RULES = ("greedy", "sampled", "argmax_draft")


def known_jobs() -> dict[str, Any]:
    """The jobs, by the answers of their targets."""
    kinds = load_result("answer_kinds.json")
    return {
        job: {
            "name": JOBS[job],
            "certainty": kind["certainty"]["mean"],
            "suffix_tokens_per_call": kind["suffix_tokens_per_call"]["mean"],
            "source": f"answer_kinds.json, {job}",
        }
        for job, kind in kinds.items()
    }


def known_drafts() -> list[dict[str, Any]]:
    """Every draft that is known."""
    parameters = load_result(main_study_result(0, "greedy.json"))["target"]["parameters"]
    shared = {"target_parameters": parameters, "kind": "independent"}
    mails = {"job": "mails", "target": FINE_TUNED} | shared
    code = {"job": "code", "target": AS_IT_IS} | shared
    chat = {"job": "open", "target": AS_IT_IS} | shared
    drifted, methods = mails | {"study": "drifted.json"}, code | {"study": "methods.json"}
    kinds = [one | {"study": f"kinds_{one['job']}.json"} for one in (mails, code)]
    short, long = self_prompts_point(), main_study_point()
    return [
        *(drifted | {"layers": layers, "points": drifted_points(layers)} for layers in DEPTHS),
        *(methods | {"layers": layers, "points": [methods_point(layers)]} for layers in DEPTHS),
        *(chat | {"study": one["source"].partition(",")[0], "layers": 4, "points": [one]} for one in (short, long)),
        *(one | {"layers": n, "points": ordinary_points(one["study"], n)} for one in kinds for n in (2, 4)),
        *(
            one | {"kind": "parallel", "layers": n, "points": [kinds_point(one["study"], f"parallel-{n}")]}
            for one in kinds
            for n in (2, 4)
        ),
    ]


def drifted_points(layers: int) -> list[dict[str, Any]]:
    """Cuts of the target that was fine-tuned on mails."""
    study = load_result("drifted.json")
    names = [f"fkl-{layers}"] if layers != 4 else [WARM, f"fkl-{layers}", f"long-{layers}"]
    per_step = study["budget"]["batch_size"] * study["heldout_tokens"] / study["heldout_prompts"]
    points = []
    for name in names:
        row = study["rows"][name]
        bench = study["bench"].get(f"{name}-float32-0")
        steps = row["settings"]["steps"]
        assert steps == DRIFTED_ROWS[name].settings["steps"], name
        points.append(_point(f"drifted.json, {name}", round(steps * per_step), study["heldout_prompts"], row, bench))
    return points


def methods_point(layers: int) -> dict[str, Any]:
    """Cuts of the target as it is, on HumanEval's prompts."""
    study, name = load_result("methods.json"), depth_row(layers)
    per_step = DEPTH_BUDGET["batch_size"] * study["heldout_tokens"] / study["heldout_prompts"]
    tokens = round(DEPTH_BUDGET["steps"] * per_step)
    bench = study["bench"][f"{name}-none-0"]
    return _point(f"methods.json, {name}", tokens, study["heldout_prompts"], study["depths"][name], bench)


def self_prompts_point() -> dict[str, Any]:
    """A cut of 4 layers in open chat, trained on the built-in prompts."""
    study = load_result("self_prompts.json")
    row = study["rows"]["builtin"]
    tokens = round(sum(row["tokens_trained"]) / row["seeds"])
    return _point("self_prompts.json, builtin", tokens, study["heldout_prompts"], row, None)


def main_study_point() -> dict[str, Any]:
    """A cut of 4 layers in open chat, trained for longer."""
    history = (RESULTS / main_study_result(0, "history.jsonl")).read_text().splitlines()
    greedy, sampled = (
        load_result(main_study_result(0, name))["acceptance"] for name in ("greedy.json", "sampled.json")
    )
    alpha = {rule: (greedy if rule == "greedy" else sampled)["alpha"][rule] for rule in RULES}
    prompts = load_result(main_study_result(0, "greedy.json"))["setup"]["prompts"]
    tokens = json.loads(history[-1])["tokens_seen"]
    return _point(main_study_result(0, "greedy.json"), tokens, prompts, {"alpha": alpha, "seeds": 1}, greedy)


def ordinary_points(file: str, layers: int) -> list[dict[str, Any]]:
    """Ordinary drafts of the study of kinds, beside which its parallel ones are judged."""
    rows = load_result(file)["rows"]
    return [kinds_point(file, name) for name in (f"start-{layers}", f"single-{layers}") if name in rows]


def kinds_point(file: str, name: str) -> dict[str, Any]:
    """A row of the study of kinds, with the training of the draft that it began with; at temperature 0 alone."""
    study = load_result(file)
    row = study["rows"][name]
    before = 0 if row["start"] is None else _mean_tokens(study["rows"][row["start"]])
    calls = row["tokens_per_call"]
    first = {"mean": calls["1"]["mean"] - 1, "ci95": [end - 1 for end in calls["1"]["ci95"]]}
    tokens = round(before + _mean_tokens(row))
    facts: dict[str, Any] = {"source": f"{file}, {name}", "tokens": tokens, "seeds": len(row["seeds"])}
    if name.startswith("parallel"):
        facts["ordinary_tokens"] = round(before)
    by_length = {length: estimate["mean"] for length, estimate in calls.items()}
    return facts | {
        "prompts": study["heldout_prompts"],
        "alpha": {"greedy": first},
        "tokens_per_call": {"greedy": by_length},
    }


def _mean_tokens(row: dict[str, Any]) -> float:
    return sum(seed["tokens_trained"] for seed in row["seeds"]) / len(row["seeds"])


def _point(source: str, tokens: int, prompts: int, row: dict[str, Any], bench: dict[str, Any] | None) -> dict[str, Any]:
    calls = {} if bench is None else {"greedy": bench["predicted_mean_acceptance_length"]}
    alpha = {rule: row["alpha"][rule] for rule in RULES}
    facts = {"source": source, "tokens": tokens, "seeds": row["seeds"], "prompts": prompts}
    return facts | {"alpha": alpha, "tokens_per_call": calls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where the table is out of date")
    check = parser.parse_args().check
    text = json.dumps({"jobs": known_jobs(), "drafts": known_drafts()}, indent=1) + "\n"
    if check and text != TABLE.read_text():
        sys.exit(f"{TABLE.relative_to(ROOT)} is out of date: run `python benchmarks/tables/known_results.py`")
    if not check:
        TABLE.write_text(text)


if __name__ == "__main__":
    main()
