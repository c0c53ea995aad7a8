"""hubmerge hub: the environment of clients, and tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hubmerge.cli.env_formats import EnvFormat, format_env
from hubmerge.server import lease
from tests.command_line import run_command

ODD = {"A": 'it\'s $HOME \\ "quoted"', "B": ""}


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        ("sh", ["export A='it'\"'\"'s $HOME \\ \"quoted\"'", "export B=''"]),
        ("fish", ["set -gx A 'it\\'s $HOME \\\\ \"quoted\"'", "set -gx B ''"]),
        ("powershell", ["$env:A = 'it''s $HOME \\ \"quoted\"'", "$env:B = ''"]),
        ("dotenv", ['A="it\'s \\$HOME \\\\ \\"quoted\\""', 'B=""']),
    ],
)
def test_variables_are_quoted_for_each_shell(target: str, lines: list[str]) -> None:
    assert format_env(ODD, EnvFormat(target)).splitlines() == lines


def test_a_shell_reads_the_variables_back() -> None:
    code = f"import os; print([os.environ[name] for name in {list(ODD)}])"
    script = f"{format_env(ODD, EnvFormat.sh)}\n{sys.executable} -c {code!r}"
    read = subprocess.check_output(["sh", "-c", script], text=True)
    assert read.strip() == str(list(ODD.values()))
    assert json.loads(format_env(ODD, EnvFormat.json)) == ODD


def test_the_environment_is_printed_without_the_token(tmp_path: Path) -> None:
    refused = run_command("hub", "status", "--env", "--data", tmp_path)
    assert (refused.exit_code, "No Hub runs" in refused.output) != (0, False)
    with lease(tmp_path) as server:
        printed = run_command("hub", "status", "--env", "--format", "json", "--data", tmp_path)
        variables = json.loads(printed.stdout)
        assert variables["HF_ENDPOINT"] == server.url
        assert server.token not in printed.output
        environment = {**os.environ, **variables, "HOME": str(tmp_path)}
        code = "from huggingface_hub import HfApi; print(HfApi().whoami()['name'])"
        command = [sys.executable, "-c", code]
        assert subprocess.check_output(command, env=environment, text=True) == "local\n"


def test_a_command_runs_with_the_embedded_hub(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['HF_ENDPOINT'][:16]); sys.exit(3)"
    command = [sys.executable, "-m", "hubmerge", "hub", "run", "--data", str(tmp_path), "--"]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "http://127.0.0.1\n")
    missing = run_command("hub", "run", "--data", tmp_path, "--", "no-such-command")
    assert (missing.exit_code, "no command 'no-such-command'" in missing.output) == (2, True)


def test_tokens_are_created_listed_and_revoked(tmp_path: Path) -> None:
    made = run_command(
        "hub", "token", "create", "--user", "ada", "--role", "write", "--data", tmp_path
    )
    assert made.stdout.startswith("hf_")
    assert oct(tmp_path.stat().st_mode)[-3:] == "700"
    listed = run_command("hub", "token", "list", "--json", "--data", tmp_path)
    (token,) = json.loads(listed.stdout)
    assert (token["user"], token["role"]) == ("ada", "write")
    assert made.stdout.strip() not in listed.output
    assert run_command("hub", "token", "revoke", token["id"], "--data", tmp_path).exit_code == 0
    unknown = run_command("hub", "token", "revoke", "ada", "--data", tmp_path)
    assert "Unknown token or user 'ada'" in unknown.output
    bad = run_command("hub", "token", "create", "--user", "../x", "--data", tmp_path)
    assert (bad.exit_code, "Invalid repository user" in bad.output) == (2, True)
