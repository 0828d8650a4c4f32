"""Tables of free drafting and of load, from benchmarks/results."""

from __future__ import annotations

from benchmarks.support.results import load_result
from benchmarks.tables.cells import interval_cell, table_row

_WAYS = {
    "draft": "the draft",
    "ngram": "n-gram",
    "ngram_transformers": "n-gram as transformers",
    "ngram_llama_cpp": "n-gram as llama.cpp",
    "suffix": "suffix",
    "ngram+draft": "n-gram, else the draft",
    "suffix+draft": "suffix, else the draft",
}


def free_table(pair: str) -> str:
    """Every way of drafting in every decoder, for one pair."""
    found = load_result("free_baselines.json")[pair]
    prompts = {row["prompts"] for row in found["decoders"].values()}
    lines = [
        f"{found['pair']}. Greedy, {' or '.join(map(str, sorted(prompts)))} prompts, {found['max_new_tokens']} tokens "
        "at most, batch 1, one thread. Of the answers' runs of 4 tokens "
        f"{interval_cell(found['overlap']['copied_4grams'], places=2)} stand in the prompt.",
        "",
        "| decoder | way | draft tokens | tokens per target call: counted | predicted | speed-up | over the draft |",
        "|---|---|---|---|---|---|---|",
    ]
    for decoder in found["decoders"].values():
        for name, way in decoder["ways"].items():
            predicted = way["predicted_mean_acceptance_length"]
            over = way.get("over_draft")
            cells = [
                decoder["version"] if name == "draft" else "",
                _WAYS[name],
                str(way["num_draft_tokens"]),
                interval_cell(way["mean_acceptance_length"]),
                "" if predicted is None else f"{predicted:.3f}",
                interval_cell(way["speedup"], places=2),
                "" if over is None else interval_cell(over, places=2),
            ]
            lines.append(table_row(cells))
    return "\n".join(lines)


def load_table() -> str:
    """Speed-up over the batch, predicted and measured, for every pair of the sweep."""
    lines = [
        "| pair | batch | draft tokens | verifying them, in plain steps | speed-up: predicted | measured |",
        "|---|---|---|---|---|---|",
    ]
    crossings = []
    for found in load_result("load.json").values():
        for batch, row in found["batch"].items():
            cells = [
                found["pair"] if batch == next(iter(found["batch"])) else "",
                batch,
                str(row["num_draft_tokens"]),
                f"{row['verify_cost']:.2f}",
                f"{row['predicted_speedup']:.2f}",
                interval_cell(row["speedup"], places=2),
            ]
            lines.append(table_row(cells))
        crossings.append(f"- {found['pair']}: {found['why']}")
    return "\n".join([*lines, "", *crossings])
