"""Scripts that measure, as a package: any script imports `benchmarks.support` and the parts of other folders.

Every script runs as `python benchmarks/<folder>/<script>.py`; README.md lists them. For that, a script puts the
repository's root on `sys.path`, and this file takes it off again: once this package is imported nobody needs it, and
libraries would take the root's folder `kernels/` for the PyPI package of that name. So scripts never import scripts.
"""

import sys
from pathlib import Path

_ROOT = str(Path(__file__).parents[1])
if sys.path[0] == _ROOT:
    del sys.path[0]
