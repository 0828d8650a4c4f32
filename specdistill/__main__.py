"""`python -m specdistill`, which is what `accelerate launch -m specdistill` starts."""

from __future__ import annotations

import sys

from specdistill.cli import main

sys.exit(main())
