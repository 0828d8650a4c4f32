"""Tables of speed and memory, from benchmarks/results."""

from __future__ import annotations

from table_cells import between, load, spread


def speed_table() -> str:
    lines = [
        "| | temperature 0 | temperature 1 |",
        "|---|---|---|",
    ]
    reports = [load("smollm2_greedy.json"), load("smollm2_sampled.json")]

    def row(label: str, cell) -> None:
        lines.append(f"| {label} | " + " | ".join(cell(report) for report in reports) + " |")

    row("draft tokens per target call (chosen by bench)", lambda r: str(r["setup"]["num_draft_tokens"]))
    row("tokens per target call, measured", lambda r: spread(r["acceptance"]["mean_acceptance_length"]))
    row(
        "tokens per target call, predicted",
        lambda r: f"{r['acceptance']['predicted_mean_acceptance_length'][str(r['setup']['num_draft_tokens'])]:.3f}",
    )
    row("draft step, in target steps", lambda r: f"{r['economics']['cost_ratio']:.3f}")
    row(
        "checking the draft, in target steps",
        lambda r: f"{r['economics']['verify_cost'][str(r['setup']['num_draft_tokens'] + 1)]:.2f}",
    )
    row("speed-up, measured", lambda r: spread(r["latency"]["speedup"]))
    row("speed-up of a perfect draft", lambda r: f"{r['economics']['perfect_draft_speedup']:.2f}")
    row("verdict", lambda r: f"**{r['economics']['verdict']}**")
    return "\n".join(lines)


def lossless_line() -> str:
    found = load("lossless.json")
    outcome = "identical in all of them" if found["identical"] else f"{len(found['differences'])} differences"
    return (
        f"{found['prompts']} prompts x draft lengths {found['draft_lengths'][0]} to {found['draft_lengths'][-1]}, "
        f"{found['tokens_per_length']:,} tokens each: {outcome}."
    )


def decoder_table() -> str:
    found = load("decoder_speed.json")
    lines = ["| tokens per second, greedy, float32 | ratio |", "|---|---|"]
    for label, key in (
        ("`auto` over the plain target, this draft", "auto_over_plain_draft"),
        ("`auto` over the plain target, a draft that is never right", "auto_over_plain_useless_draft"),
    ):
        lines.append(f"| {label} | {spread(found[key])} |")
    cells = {(each["weights"], each["threads"]): each for each in load("verify_cost.json")["cells"]}
    lines += [
        "",
        "| weights | plain step, 1 thread | checking 5 tokens, in plain steps: 1 thread | 2 threads "
        "| greedy output as without draft |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for label, kind in (("float32", "float32"), ("`--pack float16`", "float16"), ("`--pack int8`", "int8")):
        one, two = cells[kind, 1], cells[kind, 2]
        entry = found[kind]
        same = (
            f"{entry['greedy_identical_prompts']} of {entry['of_prompts']}"
            if "of_prompts" in entry
            else "all, see below"
        )
        lines.append(
            f"| {label} | {1000 * one['target_step_seconds']:.0f} ms | {one['verify_cost']['5']:.2f} "
            f"| {two['verify_cost']['5']:.2f} | {same} |"
        )
    return "\n".join(lines)


def training_table() -> str:
    found = load("training_step.json")
    lines = [
        "| | tokens/s | ours over it | peak memory | of that, not held before the step |",
        "|---|---|---|---|---|",
    ]
    for name, row in found["on_policy"].items():
        over = row.get("specdistill_tokens_per_second_over_it")
        ours = "" if over is None else spread(over)
        memory = f"{row['peak_mib']:,} MiB | {row['peak_above_held_mib']:,} MiB"
        lines.append(f"| {name} | {row['tokens_per_second']:.1f} | {ours} | {memory} |")
    lines += [
        "",
        "An SKD step that trains on the hidden states of its own check takes "
        f"{spread(found['skd']['seconds_over_second_pass'])} of the time of one with a second target pass.",
    ]
    return "\n".join(lines)


def engines_table() -> str:
    report = load("engines.json")
    lines = [
        f"{report['pair']}; {report['num_draft_tokens']} draft tokens, {report['max_new_tokens']} tokens at most, "
        "batch 1, one thread.",
        "",
        "| engine | temperature | accepts by | tokens per target call: counted | predicted | speed-up "
        "| a round, in target steps | greedy output as alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for temperature, rows in report["temperatures"].items():
        for name, row in rows.items():
            same = row["prompts"] - len(row["differences"])
            cells = [
                row["version"] + (", its verification mended" if name == "vllm-repaired" else ""),
                temperature,
                f"`{row['rule']}`",
                spread(row["mean_acceptance_length"]),
                f"{row['predicted_mean_acceptance_length']:.3f}",
                spread(row["speedup"]),
                f"{row['round_cost']:.2f}",
                f"{same} of {row['prompts']}" if float(temperature) == 0 else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bench_table(study: str) -> str:
    """Bench reports of a study's drafts."""
    lines = [
        "| draft | weights | temperature | draft tokens | tokens per target call: measured | predicted "
        "| draft step | check | speed-up: measured | predicted | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in load(study)["bench"].items():
        draft, pack, temperature = name.rsplit("-", 2)
        gamma = str(row["num_draft_tokens"])
        cells = [draft, "as they are" if pack == "none" else f"`--pack {pack}`", temperature, gamma]
        cells += [spread(row["mean_acceptance_length"]), f"{row['predicted_mean_acceptance_length'][gamma]:.3f}"]
        cells += [f"{row['cost_ratio']:.3f}", f"{row['verify_cost'][str(int(gamma) + 1)]:.2f}"]
        cells += [spread(row["speedup"]), f"{row['predicted_speedup'][gamma]:.2f}", f"**{row['verdict']}**"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def growth_table() -> str:
    report = load("growth.json")
    lines = ["| context | target step | draft step | check of 5 tokens, in steps there |", "|---|---|---|---|"]
    for context, row in report["context"].items():
        cells = [f"{row[name]:.2f}" for name in ("target_step", "draft_step", "check_of_5")]
        lines.append(f"| {context} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| batch | target step, per row | draft step, per row | check of 5 | perfect draft of 4, speed-up |",
        "|---|---|---|---|---|",
    ]
    for batch, row in report["batch"].items():
        names = ("target_step_per_row", "draft_step_per_row", "check_of_5", "perfect_draft_speedup_4")
        lines.append(f"| {batch} | " + " | ".join(f"{row[name]:.2f}" for name in names) + " |")
    heads = report["head"]
    lines += ["", "| ids in the draft's head | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines.append("| draft step, in target steps | " + " | ".join(f"{value:.3f}" for value in heads.values()) + " |")
    return "\n".join(lines)


def peers_lines(lengths: tuple[int, ...]) -> str:
    """Our decoder over its peers: with their models as they are, and with what they don't know."""
    report = load("decoder_peers.json")
    lines = [
        f"{report['pair']}; {report['prompts']} prompts, {report['max_new_tokens']} tokens each.",
        "",
        "| temperature | draft tokens | over transformers | over FlashSpec | `--pack float32`, over transformers "
        "| over FlashSpec | and a trimmed head, over transformers | over FlashSpec | engine efficiency |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ours = ("specdistill", "specdistill-packed", "specdistill-trimmed")
    for temperature, rows in report["batch_1"].items():
        for length in map(str, lengths):
            over = rows[length]["over_peers"]
            cells = [spread(over[name][peer], places=2) for name in ours for peer in ("transformers", "flashspec")]
            cells.append(f"{rows[length]['engine_efficiency']:.3f}")
            lines.append(f"| {float(temperature):g} | {length} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def peers_table() -> str:
    lines = [peers_lines((1, 4, 8)), ""]
    for temperature, row in load("decoder_peers.json")["batch_8"].items():
        over = row["over_one_by_one"]
        lines.append(
            f"A batch of 8 over the same prompts one by one, temperature {float(temperature):g}, 4 draft tokens: "
            f"{spread(over['specdistill'], places=2)}.  "
        )
    return "\n".join(lines)


def loss_op_table() -> str:
    report = load("loss_op.json")
    lines = [
        "| tokens x ids | ours | Liger's time over ours | TRL's | plain torch's "
        "| extra MiB: ours | Liger | TRL | plain |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in report["cases"]:
        cells = [f"{case['tokens']} x {case['vocab']}", f"{case['seconds']['specdistill']:.2f} s"]
        cells += [spread(case["over_specdistill"][name], places=2) for name in ("liger", "trl", "plain")]
        cells += [f"{case['peak_mib'][name]:,}" for name in ("specdistill", "liger", "trl", "plain")]
        lines.append("| " + " | ".join(cells) + " |")
    fetched = []
    for name, owner in (("liger", "Liger's"), ("trl", "TRL's"), ("plain", "plain torch's")):
        found = [case["seconds_glibc"][name] / case["seconds_glibc"]["specdistill"] for case in report["cases"]]
        fetched.append(f"{owner} {between(found, 2)}")
    fetching = "With memory given back after every use and fetched anew, one turn each"
    lines.append(f"\n{fetching}: {', '.join(fetched)} of our time.")
    for kind, case in report["more_kinds"].items():
        times, peak = spread(case["over_specdistill"]["plain"], places=2), case["peak_mib"]
        size = f"{case['tokens']} x {case['vocab']}"
        lines.append(f"`{kind}`, {size}: plain torch's {times}, {peak['specdistill']} MiB for {peak['plain']}.")
    return "\n".join(lines)


def plan_hours_table() -> str:
    report = load("plan_hours.json")
    names = ("target writes", "target labels", "draft writes", "draft trains")
    lines = ["| draft | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for draft in report["drafts"]:
        cells = [f"{draft[name]['utilisation']:.0%}" for name in names]
        lines.append(f"| {draft['draft_params'] / 1e6:.1f}M | " + " | ".join(cells) + " |")
    return "\n".join(lines)
