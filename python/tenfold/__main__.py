"""`python -m tenfold` is the `tenfold` command."""

from __future__ import annotations

import sys

from tenfold.cli import main

sys.exit(main())
