"""`make demo`: the case that production has, in some minutes: a model with one narrow job, and a draft for it.

    python benchmarks/studies/demo.py     about 5 minutes on two cores

The target is SmolLM2-135M-Instruct with a small adapter (`examples/mail_adapter`) that turns mails into JSON.
The demo runs the commands that a user would type and prints each: a draft of two layers is cut out of the target,
trained on 640 mails with their JSON, and measured on mails that neither model saw. It ends in four lines.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import webbrowser
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.demo_parts import DEMO_SIZE, demo_lines, run_demo
from benchmarks.support.paths import DEMO, MAIL_ADAPTER, target_file
from specdistill.models.gguf import convert


def open_page(page: Path) -> bool:
    """Opens a page in the browser where somebody sits in front of a screen; whether it did."""
    on_screen = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    return on_screen and webbrowser.open(page.resolve().as_uri())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEMO, help="folder; each run makes a new one inside it")
    options = parser.parse_args()
    start = time.perf_counter()
    print("A draft for a model with one narrow job: cut, train, measure. About 5 minutes on two free cores.")
    print("The commands are those you would type; each names a next one, which you need not type here.")
    folder = options.output / f"mails-{time.strftime('%Y%m%d-%H%M%S')}"
    base = convert(target_file())
    target = ["--target", os.path.relpath(MAIL_ADAPTER), "--target-base", os.path.relpath(base)]
    try:
        report = run_demo(target, folder, DEMO_SIZE)
    except SystemExit:
        print(f"the demo ended early; it starts again in a new folder, and {folder} can be removed", file=sys.stderr)
        raise
    print()
    for line in demo_lines(report, DEMO_SIZE):
        print(line)
    page = folder / "report.html"
    seen = "opened" if open_page(page) else "open"
    print(f"\ndone in {(time.perf_counter() - start) / 60:.1f} minutes; {seen} {page.resolve()}")


if __name__ == "__main__":
    main()
