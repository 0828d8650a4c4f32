"""The README's few numbers, from benchmarks/results."""

from __future__ import annotations

from benchmarks.support.bench_report import BenchReport
from benchmarks.support.results import load_result
from benchmarks.tables.cells import interval_cell, range_cell, table_row

RESULTS_PAGE = "docs/results.md"


def front_sentence() -> str:
    """The sentence under the README's plot."""
    report = load_result("engines.json")
    row = report["temperatures"]["0.0"]["vllm"]
    speed = row["speedup"]["mean"]
    counted, predicted = row["mean_acceptance_length"]["mean"], row["predicted_mean_acceptance_length"]
    return (
        f"*A model that turns mails into JSON, with a small draft: `bench` predicted {predicted:.3f} tokens per call "
        f"of the target, vLLM counted {counted:.3f} and was {speed:.2f} times as fast, on one CPU thread.*"
    )


def results_table() -> str:
    """One number a row, linked to its section of the docs."""
    engines = load_result("engines.json")["temperatures"]["0.0"]
    general = BenchReport.committed("smollm2_greedy.json")
    peers = load_result("decoder_peers.json")["batch_1"]["0"]["4"]["over_peers"]["specdistill-trimmed"]["transformers"]
    step = load_result("training_step.json")["on_policy"]["trl-gkd"]["specdistill_tokens_per_second_over_it"]
    losses = load_result("loss_op.json")["cases"]
    liger = range_cell([case["over_specdistill"]["liger"]["mean"] for case in losses], 2)
    (large,) = [case for case in losses if (case["tokens"], case["vocab"]) == (4096, 49152)]
    exact, labels = load_result("lossless.json"), load_result("soft_labels.json")["rows"]["drawn-64"]
    lengths = f"{exact['draft_lengths'][0]} to {exact['draft_lengths'][-1]}"
    job, training = f"{RESULTS_PAGE}#one-narrow-job-in-real-engines", f"{RESULTS_PAGE}#a-training-step"
    loss = f"{RESULTS_PAGE}#the-loss-on-a-cpu"
    saved = large["peak_mib"]["plain"] / large["peak_mib"]["specdistill"]
    chat = f"a general model in open chat: speed-up, **{general.verdict}**"
    differing = f"differing answers, {exact['prompts']} prompts, {lengths} draft tokens"
    stored = f"stored labels of {labels['bytes_per_token']:.0f} bytes a token: change of acceptance"
    decoder = "our decoder over transformers', 4 draft tokens, packed weights, trimmed head"
    parallel = [
        seed["vllm-0"]["speedup"]["mean"] for seed in load_result("kinds_mails.json")["rows"]["parallel-4"]["seeds"]
    ]
    guesses = f"a parallel draft for that job in vLLM: speed-up, {len(parallel)} seeds"
    rows = (
        ("one narrow job in vLLM: speed-up", interval_cell(engines["vllm"]["speedup"], places=2), job),
        (guesses, range_cell(parallel, 2), "docs/parallel.md#mails-to-json"),
        ("the same draft in llama.cpp: speed-up", interval_cell(engines["llama-cpp"]["speedup"], places=2), job),
        (chat, interval_cell(general.speedup, places=2), f"{RESULTS_PAGE}#a-general-model-as-it-is"),
        (differing, str(len(exact["differences"])), f"{RESULTS_PAGE}#exact-greedy-output"),
        (decoder, interval_cell(peers, places=2), f"{RESULTS_PAGE}#the-decoder"),
        ("a training step over TRL's GKD, tokens per second", interval_cell(step, places=2), training),
        ("Liger's loss on a CPU, time over ours", liger, loss),
        ("plain torch's memory over ours, 4096 tokens", f"{saved:.1f}", loss),
        (stored, interval_cell(labels["over_online"]["sampled"], "+"), f"{RESULTS_PAGE}#stored-labels"),
    )
    lines = ["| | measured |", "|---|---|"]
    lines += [table_row([f"[{label}]({link})", value]) for label, value, link in rows]
    return "\n".join(lines)


def kernels_lines() -> str:
    """The kernels in four lines."""
    report = load_result("kernel_speed.json")
    verify = [row for row in report["verify"] if row["batch"] == 64 and not row["filters"]]
    vllm = range_cell([row["times_ours"]["vllm"] for row in verify], 1)
    single = [row["times_ours"]["vllm"] for row in report["verify"] if row["batch"] == 1]
    losses = [row for row in report["fused_divergence"] if "liger" in row["times_ours"]]
    liger = range_cell([row["times_ours"]["liger"] for row in losses], 1)
    memory = max(row["extra_mebibytes"]["specdistill"] for row in losses)
    theirs = max(row["extra_mebibytes"]["liger"] for row in losses)
    torch = min(row["extra_mebibytes"]["torch"] for row in losses)
    return "\n".join(
        (
            f"- Verification of 64 requests: {vllm} times as fast as vLLM's path, without a copy of the logits.",
            f"- Verification of a single request: {range_cell(single, 1)} times as fast as vLLM's path.",
            f"- The distillation loss on 4096 tokens: {liger} times as fast as Liger's.",
            f"- Memory of that loss: {memory:,.0f} MiB. Liger takes less, {theirs:,.0f}; torch {torch:,.0f} or more.",
        )
    )
