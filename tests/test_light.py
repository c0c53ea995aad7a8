"""Light commands must not import heavy packages: they run in processes of their own.

What one command imports stays imported, so commands of which none may import anything heavy can
run one after another in one process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hubmerge.manifest import MANIFEST_JSON, Manifest
from hubmerge.source import Source
from tests.merging.builders import write_models
from tests.weights.adapters import save_adapter, write_base

HEAVY = ("torch", "transformers", "peft", "datasets", "open_clip", "evaluate", "accelerate")
# Parts of huggingface_hub, its HTTP client, and what writes a merge.
CLIENT = ("huggingface_hub.hf_api", "huggingface_hub.errors", "httpx2", "asyncio")
WRITING = (
    "hubmerge.merging.engine", "hubmerge.merging.lora_writer", "hubmerge.merging.estimate",
    "hubmerge.cards.card", "jinja2",
)  # fmt: skip
PROGRAM = """
import sys
from hubmerge.cli import main
for words in {commands!r}:
    sys.argv = ["hubmerge", *words]
    try:
        main()
    except SystemExit as end:
        code = end.code
    heavy = [name for name in {heavy!r} if name in sys.modules]
    print(f"\\n{{words}}: HEAVY {{heavy}} CODE {{code}}", flush=True)
"""
COMMANDS = (
    ["--help"],
    ["train", "--help"],
    ["merge", "--help"],
    ["extract", "--help"],
    ["card", "--help"],
    ["verify", "--help"],
    ["verify", "hubmerge/tiny-clip", "--hub", "local"],
    ["report", "--help"],
    ["run", "recipes/fft-vision", "--dry-run"],
    ["difficulty", "--help"],
    ["explain", "--help"],
    ["tasks"],
    ["methods", "ties"],
    ["hub", "status"],
    ["steps", "hubmerge/tiny-clip", "--hub", "local"],
    ["retain", "hubmerge/tiny-clip", "--hub", "local"],
    ["select", "--help"],
    ["merge", "hubmerge/tiny-clip", "hubmerge/tiny-clip", "--base", "hubmerge/tiny-clip",
     "--method", "average", "--hub", "local"],
)  # fmt: skip


@cache
def light_output() -> str:
    """What these commands print, in the home of the first test that asks for it."""
    return run_commands(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_light_command_imports_nothing_heavy(words: list[str]) -> None:
    assert f"{words}: HEAVY [] CODE" in light_output(), light_output()


def test_rendering_a_card_imports_nothing_heavy(tmp_path: Path) -> None:
    base, *experts = (Source(name, name * 64, name * 64) for name in "abc")
    manifest = Manifest(kind="merge", base=base, experts=tuple(experts), method="average")
    (tmp_path / MANIFEST_JSON).write_bytes(manifest.with_files({}).to_bytes())
    output = run_command(["card", str(tmp_path), "--hub", "local"])
    assert "HEAVY [] CODE 0" in output, output
    assert (tmp_path / "README.md").is_file()


def test_merging_adapters_into_an_adapter_imports_nothing_heavy(tmp_path: Path) -> None:
    write_base(tmp_path / "base", {"q.weight": np.zeros((2, 2), np.float32)})
    factors = {
        "q.lora_A.weight": np.ones((1, 2), np.float32),
        "q.lora_B.weight": np.ones((2, 1), np.float32),
    }
    for name in ("one", "two"):
        save_adapter(tmp_path / name, factors)
    words = ["merge", *(str(tmp_path / name) for name in ("one", "two")), "--base",
             str(tmp_path / "base"), "--method", "average", "--as-lora", "1", "--out",
             str(tmp_path / "out"), "--hub", "local"]  # fmt: skip
    output = run_command(words)
    assert "HEAVY [] CODE 0" in output, output
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_a_merge_of_folders_imports_no_client_and_a_merge_that_is_there_no_engine(
    tmp_path: Path,
) -> None:
    ones = np.ones((2, 2), np.float32)
    write_models(tmp_path, {"w": ones}, {"w": 2 * ones}, {"w": 3 * ones})
    base, *experts, out = (str(tmp_path / name) for name in ("base", "e0", "e1", "out"))
    words = ["merge", *experts, "--base", base, "--out", out]
    first = run_command(words, (*HEAVY, *CLIENT))
    assert "HEAVY [] CODE 0" in first, first
    again = run_command(words, (*HEAVY, *CLIENT, *WRITING))
    assert "HEAVY [] CODE 0" in again, again


def test_help_imports_neither_tables_nor_pydantic() -> None:
    output = run_command(
        ["merge", "--help"], ("pydantic.types", "rich.table", "yaml", "numpy", *CLIENT)
    )
    assert "HEAVY [] CODE 0" in output, output


def run_command(words: list[str], heavy: Sequence[str] = HEAVY) -> str:
    """What a command prints, followed by the heavy packages it imported and its exit code."""
    return run_commands([words], heavy)


def run_commands(commands: Sequence[list[str]], heavy: Sequence[str] = HEAVY) -> str:
    """What commands print, each followed by the heavy packages imported and its exit code."""
    program = PROGRAM.format(commands=commands, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return done.stdout + done.stderr
