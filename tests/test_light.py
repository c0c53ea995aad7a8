"""Light commands answer at once: what they import is measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "peft", "datasets", "open_clip", "evaluate", "accelerate")
PROGRAM = """
import sys
sys.argv = ["hubmerge", *{words!r}]
from hubmerge.cli import main
try:
    main()
except SystemExit as end:
    code = end.code
print("HEAVY", [name for name in {heavy!r} if name in sys.modules], "CODE", code)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["merge", "--help"],
        ["tasks"],
        ["methods", "ties"],
        ["hub", "status"],
        ["steps", "hubmerge/tiny-clip", "--hub", "local"],
        ["merge", "hubmerge/tiny-clip", "hubmerge/tiny-clip", "--base", "hubmerge/tiny-clip",
         "--method", "average", "--hub", "local"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_light_command_imports_nothing_heavy(words: list[str]) -> None:
    program = PROGRAM.format(words=words, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert "HEAVY [] CODE" in done.stdout, done.stdout + done.stderr
