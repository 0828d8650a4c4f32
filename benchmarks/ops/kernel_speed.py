"""How fast the kernels are on a GPU: against plain torch, vLLM's own kernels and Liger's, in one run.

    python benchmarks/ops/kernel_speed.py                             everything that is installed
    python benchmarks/ops/kernel_speed.py --vllm site-packages/vllm   also vLLM's, from its Python sources

Needs a GPU and specdistill_kernels (installed, or `PYTHONPATH=kernels`). `--vllm` needs no working vLLM, only its
Triton files: questions that they ask of the platform are answered here. Verification runs as a captured graph on random
logits whose draft is close to its target, 151936 ids in bfloat16. vLLM is timed over everything between the head and
the accepted tokens: copy to float32, temperature, filters, `rejection_sample`. Contestants take turns; each number is
the median of 5 rounds, ratios are of medians. Writes benchmarks/results/kernel_speed.json with the device's name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.ops import kernel_contests, loss_contests
from benchmarks.ops.vllm_sources import vllm_kernels
from benchmarks.support.device_timing import Timing, copied_terabytes_per_second
from benchmarks.support.paths import RESULTS
from benchmarks.support.results import write_result_to

TIMING, SIZES = Timing("cuda"), kernel_contests.Sizes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, help="folder of vLLM's package, for its Triton files")
    parser.add_argument("--vllm-version", default="", help="written next to its numbers")
    parser.add_argument("--output", type=Path, default=RESULTS / "kernel_speed.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU")
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "vllm": options.vllm_version,
        "vocab": SIZES.vocab,
        "copy_terabytes_per_second": round(copied_terabytes_per_second(), 3),
    }
    vllm = vllm_kernels(options.vllm, processors) if options.vllm else None
    parts: dict[str, Callable[[], Any]] = {
        "verify": lambda: kernel_contests.verification(TIMING, SIZES, vllm),
        "scoring": lambda: kernel_contests.scoring(TIMING, SIZES),
        "fused_divergence": lambda: loss_contests.divergences(TIMING, loss_contests.Sizes()),
    }
    for name, measure in parts.items():
        result[name] = measure()
        torch.cuda.empty_cache()
        # Written after every part, in case a later one fails.
        write_result_to(options.output, result)


if __name__ == "__main__":
    main()
