"""Fills the table of docs/families.md from the types that tests/decoding/test_families.py proves.

python tests/support/family_table.py           writes it
python tests/support/family_table.py --check   fails if it is out of date (a test runs this)
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels"), str(Path(__file__).parent)]

from family_models import CUT_CHANGES, DECODE, NO_CUT, PREDICT, STATE, family_config  # noqa: E402
from transformers import logging  # noqa: E402

from specdistill.errors import ModelError  # noqa: E402
from specdistill.models import families  # noqa: E402
from specdistill.serving import gguf_writer  # noqa: E402
from specdistill.serving.model_files import ModelFiles  # noqa: E402

PAGE = ROOT / "docs" / "families.md"
_BLOCK = re.compile(r"(<!-- families -->\n).*?(<!-- /families -->)", re.DOTALL)
_SHORT = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "chunked",
    "indexed_attention": "indexed",
    "linear_attention": "linear",
    "conv": "convolution",
    "compressed_sparse_attention": "compressed",
    "heavily_compressed_attention": "compressed",
}


def attention(kind: str) -> str:
    """Kinds of layers that mix tokens."""
    config = family_config(kind)
    kinds = {_SHORT.get(name, name) for name in families.attention_kinds(config) if name not in ("moe", "mlp")}
    latent = ["latent"] if getattr(config, "kv_lora_rank", None) else []
    return ", ".join(latent + sorted(kinds))


def row(kind: str) -> str:
    """One line of the table."""
    config = family_config(kind)
    # As save_pretrained writes it, which is what engines read.
    files = ModelFiles(kind, PAGE.parent, json.loads(config.to_json_string()), None)
    decode = "yes"
    if kind in PREDICT:
        decode = "no: keeps a state" if PREDICT[kind] == STATE else "no: another cache"
    cut = "no" if kind in NO_CUT else "changes" if kind in CUT_CHANGES else "yes"
    vllm = "two cache groups" if files.mixes_attention else "M-RoPE" if files.m_rope else ""
    assisted = "keeps a state" if files.recurrent else ""
    try:
        gguf_writer.check_supported(config, kind)
        gguf = "yes"
    except ModelError:
        gguf = "by llama.cpp"
    return f"| `{kind}` | {attention(kind)} | {decode} | yes | {cut} | {vllm} | {assisted} | {gguf} |"


def table() -> str:
    """The whole table."""
    head = [
        "| type | attention | decode | predict | cut | vLLM refuses as draft | transformers refuses as draft | .gguf |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(row(kind) for kind in sorted({*DECODE, *PREDICT}))])


def main() -> None:
    logging.set_verbosity_error()
    text = PAGE.read_text()
    wanted = _BLOCK.sub(lambda match: match[1] + table() + "\n" + match[2], text)
    if "--check" in sys.argv[1:]:
        if wanted != text:
            sys.exit("docs/families.md is out of date: run `python tests/support/family_table.py`")
    else:
        PAGE.write_text(wanted)


if __name__ == "__main__":
    main()
