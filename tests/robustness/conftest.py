"""Fuzzing and failure injection. With TENFOLD_FUZZ_EXAMPLES=500 in the environment it looks longer."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for drawing, recipes_* and the makers of files
