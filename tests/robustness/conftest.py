"""Fuzzing and failure injection. `TENFOLD_FUZZ_EXAMPLES=500 pytest tests/robustness` looks longer than CI does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for drawing, recipes_* and the makers of files
