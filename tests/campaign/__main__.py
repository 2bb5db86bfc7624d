"""`python tests/campaign`: see runner.py."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)  # the tests' folder, as under pytest

if __name__ == "__main__":
    sys.exit(import_module("campaign.runner").main())
