"""Cases of `tests/cli/test_never_unexpected.py`: (command, changed flags, parts of the line that it answers with)."""

from __future__ import annotations

import json
from pathlib import Path

Case = tuple[str, dict[str, "str | None"], tuple[str, ...]]
PROMPTS = {"--prompts": "prompts.jsonl"}
SHORT = {"--max-new-tokens": "4"}
PAIR = {"--target": "target", "--draft": "draft"}
COMMANDS = {
    "plan": {"--target-params": "8B", "--draft-params": "1B", "--json": "out"},
    "advise": {
        **{"--target": "target", "--cut-layers": "1", "--num-prompts": "2", "--json": "out", **PROMPTS, **SHORT},
    },
    "init-draft": {"--target": "target", "--layers": "1", "--calibration-tokens": "4", "--output": "out", **PROMPTS},
    "generate": {"--target": "target", "--output": "out", **PROMPTS, **SHORT},
    "annotate": {"--target": "target", "--output": "out", **PROMPTS, **SHORT},
    "train-draft": {**PAIR, "--steps": "1", "--heldout-prompts": "2", "--output": "out", **PROMPTS, **SHORT},
    "bench": {**PAIR, "--json": "out", "--num-prompts": "2", **PROMPTS, **SHORT},
    "check": {**PAIR, "--json": "out"},
    "carry-head": {"--target": "target", "--base": "draft", "--output": "out"},
    "export": {**PAIR, "--format": "vllm", "--output": "out"},
    "generate --other": {"--target": "target", "--other": "draft", "--output": "out", **PROMPTS, **SHORT},
    "bench --engine transformers": {
        **{**PAIR, "--engine": "transformers", "--num-draft-tokens": "2", "--json": "out"},
        **{"--num-prompts": "2", **PROMPTS, **SHORT},
    },
}
ALL = tuple(COMMANDS)
TARGET = tuple(name for name, flags in COMMANDS.items() if "--target" in flags)
DRAFT = tuple(name for name, flags in COMMANDS.items() if "--draft" in flags)
READING = tuple(name for name, flags in COMMANDS.items() if "--prompts" in flags)
WRITING = tuple(name for name, flags in COMMANDS.items() if "--output" in flags)
REPORTING = tuple(name for name, flags in COMMANDS.items() if "--json" in flags)
SEEDED = READING
ADAPTED = tuple(name for name in TARGET if name != "carry-head")
LOADING = tuple(name for name in TARGET if name not in ("check", "carry-head", "export"))
TABLE = json.loads((Path(__file__).parents[1] / "cli" / "flags.json").read_text())


def model_cases(folder_name: str, *words: str, role: str = "target", commands=LOADING) -> list[Case]:
    """A checkpoint in the place of the target or of the draft."""
    return [(command, {f"--{role}": folder_name}, words) for command in commands]


def each(commands, flags: dict[str, str | None], *words: str) -> list[Case]:
    """The same flags for several commands; None takes a flag away."""
    return [(command, flags, words) for command in commands]


MODELS = [
    *model_cases("./nowhere", "./nowhere does not exist", commands=TARGET),
    *model_cases("./nowhere", "./nowhere does not exist", role="draft", commands=DRAFT),
    *model_cases("no such model", "no such model", commands=TARGET),
    *model_cases("", "--target is empty", commands=TARGET),
    *model_cases("fine.txt", "no .gguf", commands=TARGET),
    *model_cases("empty-directory", "no config.json", commands=TARGET),
    *model_cases("no-config", "no config.json", commands=TARGET),
    *model_cases("broken-config", "config.json", commands=TARGET),
    *model_cases("list-config", "config.json", commands=TARGET),
    *model_cases("unknown-architecture", "t5", commands=LOADING),
    *model_cases("too-many-experts", "9 of 4 experts", "num_experts_per_tok", commands=LOADING),
    *model_cases("adapter", "the base ../nowhere of --target adapter", "--target-base", commands=ADAPTED),
    *model_cases("adapter", "is an adapter; write the merged model first", commands=("carry-head",)),
    *model_cases("no-tokenizer", "no tokenizer files"),
    *model_cases("broken-tokenizer", "broken-tokenizer"),
    *model_cases("no-stop-id", "has no stop id", "eos_token_id"),
    *model_cases("stop-id-beyond", "the stop id 4711, which is beyond the vocabulary"),
    *model_cases("empty-weights", "empty-weights"),
    *model_cases("cut-weights", "cut-weights"),
    *model_cases("no-weights", "holds no weights"),
    *model_cases("pickled", "pickles"),
    *model_cases("missing-weight", "model.layers.0.mlp.up_proj.weight"),
    *model_cases("nan-weights", "NaN"),
    *model_cases("integer-weights", "model.layers.0.mlp.up_proj.weight is stored in integers", "quantization_config"),
    *model_cases("modelopt", "modelopt"),
    *model_cases("gptq", "gptq"),
    *model_cases("cut.gguf", "cut.gguf", commands=TARGET),
    *model_cases("text.gguf", "text.gguf", commands=TARGET),
    *model_cases("empty.gguf", "empty.gguf", commands=TARGET),
    *model_cases("broken-template", "no valid Jinja", commands=READING),
    *model_cases("silent-template", "prompts.jsonl, line 1 gives no token at all", commands=READING),
    *model_cases("two-templates", "rag, tool_use but no default", commands=READING),
    *model_cases("foreign", "id 5 is", role="draft", commands=("train-draft", "bench", "export")),
    *[
        (name, {"--draft": bad}, (bad,))
        for name in ("train-draft", "bench", "export")
        for bad in ("nan-weights", "gptq")
    ],
]
PROMPT_FILES = {
    "": "--prompts is empty",
    " ": "--prompts is empty",
    "none.jsonl": "none.jsonl does not exist",
    "blank.txt": "holds no prompts",
    "empty.jsonl": "holds no prompts",
    "nothing.json": "holds no prompts",
    "scalar.json": "line 1: expected a JSON object, got int",
    "numbers.json": "row 1: expected a JSON object, got int",
    "broken.jsonl": "line 2: not valid JSON",
    "latin.txt": "save the file as UTF-8",
    "cut.parquet": "can't be read as parquet",
    "cut.jsonl.gz": "no complete gzip file",
    "p.docx": "must be a .jsonl",
    "bom.jsonl": "bom.jsonl, line 2",
    "surrogate.jsonl": "line 2: \\ud800 is half a surrogate pair",
    "ids.jsonl": "line 2: the id '1' occurs more than once",
    "other-fields.jsonl": "line 1",
    "image.jsonl": "images are not supported",
    "assistant.jsonl": "holds the assistant's turn alone",
    "long.jsonl": "has 302 tokens",
    "empty-directory": "name a file in it",
    "used": "name a file in it",
    "no-such-set": "can't load prompts 'no-such-set': no such file, and no data set of that name that can be",
}
PROMPT_CASES = [(command, {"--prompts": file}, (text,)) for command in READING for file, text in PROMPT_FILES.items()]
# Prompts that the target writes itself.
WITHOUT_ANSWERS = tuple(name for name in READING if name != "annotate")
for malformed in ("self", "self:0", "self:x", "self:9:test", "self:1.5"):
    PROMPT_CASES += each(READING, {"--prompts": malformed}, f"--prompts {malformed} is no number", "write self:N")
PROMPT_CASES += each(["annotate"], {"--prompts": "self:9"}, "has no answers, which annotate without --rollouts reads")
PROMPT_CASES += each(["train-draft"], {"--prompts": "self:9", "--method": "sft"}, "which --method sft reads")
PROMPT_CASES += each(READING, {"--self-top-p": "0.5"}, "--self-top-p 0.5 has no effect here")
for setting, bad in {"temperature": "0", "top-p": "2", "max-tokens": "1", "seed": "-1"}.items():
    PROMPT_CASES += each(WITHOUT_ANSWERS, {"--prompts": "self:9", f"--self-{setting}": bad}, f"--self-{setting} must")
PROMPT_CASES += each(WITHOUT_ANSWERS, {"--prompts": "self:9", "--self-system": "none.txt"}, "none.txt")
PROMPT_CASES += each(WITHOUT_ANSWERS, {"--prompts": "self:9"}, "--self-max-tokens 256 does not fit the context")
PROMPT_CASES += each(
    WITHOUT_ANSWERS, {"--prompts": "self:9", "--raw-prompts": "true"}, "--raw-prompts is set", "no BOS"
)
PROMPT_CASES += each(READING, {"--prompts": "system.jsonl", "--target": "no-system"}, "line 1", "System role")
TEMPLATE_ARGUMENTS = {
    "3": "must be a JSON object, got 3",
    '""': "must be a JSON object, got ''",
    "": "not valid JSON",
    "null": "must be a JSON object, got None",
    "NaN": "must be a JSON object, got nan",
    "[" * 100_000: "not valid JSON (maximum recursion depth",
    '{"a": NaN}': "JSON does not have",
    "{": "not valid JSON",
    '{"messages": 1}': "'messages' is set by specdistill",
}
CONFIG_FILES = {
    "numeric-key": "1 is no name of a setting",
    "no-name": "None is no name of a setting",
    "repeated": "line 2: seed is set already in line 1",
    "two-spellings": "line 2: top_k is set already in line 1",
    "empty": "is empty; write a setting per line",
    "comment": "is empty; write a setting per line",
    "list": "holds a list in place of settings",
    "scalar": "holds the single value 'hello' in place of settings",
    "broken": "not valid YAML, line",
    "deep": "not valid YAML",
    "python": "not valid YAML, line 1",
    "documents": "found another document",
    "latin": "save the file as UTF-8",
    "nested": "write 'seed: ...' at the top level",
    "several": "seed takes one value, but holds a list",
    "bytes": "seed must be text, a number",
    "unknown": "no setting 'temprature'",
    "missing": "No such file",
}
CONFIG_CASES = [
    *[
        (command, {"--config": f"settings/{name}.yaml"}, (text, f"settings/{name}.yaml"))
        for command in ALL
        for name, text in CONFIG_FILES.items()
    ],
    *each(ALL, {"--config": "settings"}, "Is a directory"),
    *each(ALL, {"--config": ""}, "--config needs a file name"),
]
FLOATS = [
    (command, flag)
    for command in ALL
    for flag, entry in TABLE[command.partition(" ")[0]].items()
    if isinstance(entry.get("default"), float) or flag in ("--beta", "--target-fraction")
]
SETTINGS = [
    *[(command, {flag: value}, (flag,)) for command, flag in FLOATS for value in ("nan", "inf", "-inf")],
    *[
        (command, {"--device": device}, (f"--device {device} can't be used", "leave it out"))
        for command in LOADING
        for device in ("foo", "cuda:99", "0", "meta")
    ],
    *[
        (command, {"--seed": seed}, ("--seed must be in [0, 4294967295]",))
        for command in SEEDED
        for seed in ("-1", "4294967296")
    ],
    *each(SEEDED, {"--seed": str(10**30)}, "--seed must"),
    *each(SEEDED, {"--seed": "1.x"}, "--seed"),
    *each(LOADING, {"--threads": "99999999999"}, "--threads must be at most"),
    *[
        (command, {"--chat-template-kwargs": text}, ("--chat-template-kwargs", part))
        for command in READING
        for text, part in TEMPLATE_ARGUMENTS.items()
    ],
    *each(("train-draft", "generate", "bench", "annotate"), {"--max-new-tokens": "99999"}, "--max-new-tokens"),
    *each(("init-draft",), {"--calibration-tokens": "99999"}, "--calibration-tokens"),
    *each(("init-draft",), {"--vocab-keep": "1000"}, "exceeds the vocabulary of 65"),
    *each(("bench",), {"--max-draft-tokens": str(2**62)}, "--max-draft-tokens must be at most 256"),
    *each(("bench",), {"--html": "out"}, "--json and --html both name out"),
    *each(("bench",), {"--html": "./out"}, "--json and --html both name out"),
    *each(("plan",), {"--target-params": "nan"}, "no number of parameters"),
    *each(("train-draft",), {"--report-to": "nosuch"}, "--report-to nosuch"),
    *[
        ("train-draft", {"--reward": name}, (text,))
        for name, text in {
            "nosuch:f": "can't import nosuch",
            "scores": "must be module:function",
            ".scores:fine": "must be module:function",
            "scores.py:fine": "write scores:fine",
            "scores:number": "scores has no function number",
            "breaks:f": "ZeroDivisionError",
            "leaves:f": "SystemExit",
        }.items()
    ],
]
IDLE = {
    "train-draft": {
        "--eta": ("2", "--divergence lk_lambda"),
        "--select-fraction": ("0.3", "--reference"),
        "--distill-weight": ("0.3", "--reward"),
        "--server-top-k": ("5", "--target-server"),
        "--server-model": ("m", "--target-server"),
        "--server-patience": ("5", "--target-server"),
        "--server-concurrency": ("5", "--target-server"),
        "--engine-memory": ("0.5", "--rollout-engine vllm"),
        "--push-every": ("2", "--rollout-engine vllm"),
        "--lmbda": ("0.3", "--method gkd"),
        "--negative-prompt": ("w1", "--guidance"),
        "--text-block": ("8", "--text"),
        "--online-wait": ("3", "--method online"),
    },
    "generate": {
        "--engine-memory": ("0.5", "--rollout-engine vllm"),
        "--match": ("cost", "--other"),
        "--target-price": ("1", "--other"),
        "--ray-workers": ("2", "--ray"),
    },
    "generate --other": {"--target-price": ("1", "--match cost")},
    "annotate": {
        "--draws": ("3", "--labels sampled"),
        "--ray-workers": ("2", "--ray"),
        "--text": ("fine.txt", "--text"),
        "--text-block": ("8", "--text"),
    },
    "init-draft": {},
    "bench": {
        "--top-p": ("0.9", "--temperature above 0"),
        "--top-k": ("9", "--temperature above 0"),
        "--min-p": ("0.1", "--temperature above 0"),
        "--confidence": ("0.2", "--draft-length confidence"),
        "--engine-args": ("--x", "--engine vllm or llama-cpp"),
        "--url": ("http://h:1/v1", "--engine openai-server"),
        "--server-model": ("m", "--engine openai-server"),
        "--server-timeout": ("3", "--engine vllm"),
        "--server-patience": ("3", "--engine vllm"),
        "--lenience": ("0.5", "--rule lenient"),
    },
    "plan": {"--gpu-tflops": ("3", "--gpu custom")},
    "export": {"--target-gguf": ("t.gguf", "--format gguf"), "--type": ("q8_0", "--format gguf")},
}
SETTINGS += [
    (command, {flag: value}, (flag, text)) for command, flags in IDLE.items() for flag, (value, text) in flags.items()
]
SETTINGS += [
    ("train-draft", {"--ce-weight": "0.3", "--method": "best-of-n"}, ("--ce-weight", "divergence")),
    ("train-draft", {"--top-k": "3", "--temperature": "0"}, ("--top-k 3", "--temperature above 0")),
    ("annotate", {"--top-k": "3", "--labels": "sampled"}, ("--top-k 3", "--labels top-k")),
    ("init-draft", {"--probe-steps": "3", "--choose": "even"}, ("--probe-steps 3", "--choose auto")),
]
WORDS = [
    *each(ALL, {"word": ""}, "'word' belongs to no flag", "--name value"),
    *each(ALL, {"--nosuch": "1"}, "Unknown option: --nosuch"),
    *each(WRITING, {"--output": None}, "--output is required"),
    *each(WRITING, {"--output": ""}, "--output is empty"),
    *each(WRITING, {"--output": "used"}, "used already holds files"),
    *each(WRITING, {"--output": "fine.txt"}, "fine.txt is a file"),
    *each(WRITING, {"--output": "fine.txt/below"}, "can't write fine.txt/below"),
    *each(WRITING, {"--output": "/proc/specdistill"}, "can't write /proc/specdistill"),
    *each((*WRITING,), {"--output": "x" * 300}, "File name too long"),
    *each(REPORTING, {"--json": ""}, "--json is empty"),
    *each(REPORTING, {"--json": "fine.txt"}, "fine.txt already exists"),
    *each(REPORTING, {"--json": "used"}, "used"),
    *each(REPORTING, {"--json": "."}, "."),
    *each(REPORTING, {"--json": "fine.txt/below"}, "can't write fine.txt"),
    *each(REPORTING, {"--json": "x" * 300}, "File name too long"),
]
CASES = [*MODELS, *PROMPT_CASES, *CONFIG_CASES, *SETTINGS, *WORDS]
DAMAGED = ("empty-weights", "cut-weights", "missing-weight", "nan-weights", "cut.gguf")
WEIGHTS = [{role: name} for role in ("--target", "--draft") for name in DAMAGED]
"""Flags that name a file whose damage is found late: what is done until then may be said."""
