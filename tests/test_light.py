"""Light commands must not import heavy packages: each runs in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hubmerge.manifest import MANIFEST_JSON, Manifest, Source

HEAVY = ("torch", "transformers", "peft", "datasets", "open_clip", "evaluate", "accelerate")
# Forks for every line of words and environment, before any command was imported.
PROGRAM = f"""
import json, os, sys
from hubmerge.cli import main
for line in sys.stdin:
    if os.fork() == 0:
        sys.argv, environment = json.loads(line)
        os.environ.clear()
        os.environ.update(environment)
        try:
            main()
        except SystemExit as end:
            heavy = [name for name in {HEAVY} if name in sys.modules]
            print("HEAVY", heavy, "CODE", end.code, flush=True)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        os._exit(0)
    os.wait()
    print("END", flush=True)
"""
RunCommand = Callable[[list[str]], str]


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **pipes, text=True) as process:  # type: ignore[call-overload]
        yield process


@pytest.fixture
def run_command(process: subprocess.Popen[str]) -> RunCommand:
    """Run a command; returns what it prints, the heavy packages it imported and its exit code."""

    def run(words: list[str]) -> str:
        assert process.stdin
        assert process.stdout
        request = json.dumps([["hubmerge", *words], dict(os.environ)])
        print(request, file=process.stdin, flush=True)
        return "".join(iter(process.stdout.readline, "END\n"))

    return run


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["train", "--help"],
        ["merge", "--help"],
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
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_light_command_imports_nothing_heavy(
    running_hub: None, run_command: RunCommand, words: list[str]
) -> None:
    output = run_command(words)
    assert "HEAVY [] CODE" in output, output


def test_rendering_a_card_imports_nothing_heavy(run_command: RunCommand, tmp_path: Path) -> None:
    base, *experts = (Source(name, name * 64, name * 64) for name in "abc")
    manifest = Manifest(kind="merge", base=base, experts=tuple(experts), method="average")
    (tmp_path / MANIFEST_JSON).write_bytes(manifest.with_files({}).to_bytes())
    output = run_command(["card", str(tmp_path), "--hub", "local"])
    assert "HEAVY [] CODE 0" in output, output
    assert (tmp_path / "README.md").is_file()
