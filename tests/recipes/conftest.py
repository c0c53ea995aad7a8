"""Recipes are programs beside the package, not in it: make them importable from the checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
