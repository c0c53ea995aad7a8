"""The repository itself: workflows of CI, the package, the changelog, decision records."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import hubmerge

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
REQUIRED_PACKAGES = {
    *("huggingface_hub", "transformers", "peft", "accelerate", "datasets", "evaluate"),
    *("safetensors", "open_clip_torch", "typer", "rich"),
}
SCHEMAS = [
    ("vendor.github-workflows", WORKFLOWS),
    ("custom.github-workflows-require-timeout", WORKFLOWS),
    ("vendor.citation-file-format", [ROOT / "CITATION.cff"]),
]

# Paths of a real machine (/home/me is the example in texts), and tokens of the Hub.
MACHINE = re.compile(rb"(?<![\w.-])/(?:home/(?!me\b)|Users/(?!me\b)|root/|wor[k]/)\w")
TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


def workflow_steps(workflow: Path) -> Iterator[dict[str, Any]]:
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        yield from job["steps"]


def make_targets(text: str) -> set[str]:
    """The targets of all `make ...` commands in a text."""
    return set(re.findall(r"(?:^|[`\s])make ([a-z][a-z-]*)", text))


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = (ROOT / name for name in listing.stdout.decode().split("\0") if name)
    return [file for file in files if file.is_file()]


@pytest.mark.parametrize(("schema", "files"), SCHEMAS, ids=[name for name, _ in SCHEMAS])
def test_workflows_and_citation_follow_their_schemas(schema: str, files: list[Path]) -> None:
    # The schemas are part of the package: no network is needed.
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        schema,
        *map(str, files),
    ]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actions_are_pinned_and_have_read_permission_only(file: Path) -> None:
    used = [step["uses"] for step in workflow_steps(file) if "uses" in step]
    assert used
    assert [use for use in used if not re.fullmatch(r"[\w-]+/[\w./-]+@[0-9a-f]{40}", use)] == []
    lines = [line for line in file.read_text().splitlines() if "uses:" in line]
    assert [line for line in lines if not re.search(r" # v\d+\.\d+\.\d+$", line)] == []
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    # A job that publishes has an id-token (trusted publishing), and no stored token.
    granted = [job["permissions"] for job in workflow["jobs"].values() if "permissions" in job]
    assert granted in ([], [{"contents": "read", "id-token": "write"}])


def test_each_action_has_one_version() -> None:
    used = {step["uses"] for file in WORKFLOWS for step in workflow_steps(file) if "uses" in step}
    assert len({use.partition("@")[0] for use in used}) == len(used)


def test_every_make_target_in_texts_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [step.get("run", "") for file in WORKFLOWS for step in workflow_steps(file)]
    pages = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", ".ci/run")]
    used = make_targets("\n".join(commands))
    assert {"check", "test", "demo"} <= used
    assert used | make_targets("\n".join(pages)) <= targets


def test_hooks_run_without_a_network() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    assert {hook["language"] for hook in config["repos"][0]["hooks"]} == {"system"}


def test_package_metadata() -> None:
    project = PYPROJECT["project"]
    names = {re.split(r"[^\w-]", line, maxsplit=1)[0] for line in project["dependencies"]}
    assert names >= REQUIRED_PACKAGES
    assert project["scripts"] == {
        "hubmerge": "hubmerge.cli:main",
        "hf-hubmerge": "hubmerge.cli:main",
    }
    assert PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["hubmerge"]
    assert (ROOT / "hubmerge" / "py.typed").is_file()


def test_no_file_has_a_machine_path_or_a_token() -> None:
    matches = [
        (str(file.relative_to(ROOT)), match[0])
        for file in tracked_files()
        for pattern in (MACHINE, TOKEN)
        if (match := pattern.search(file.read_bytes()))
    ]
    assert matches == []


def test_the_version_is_in_changelog_and_citation() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    entry = re.search(
        rf"^## \[{re.escape(hubmerge.__version__)}\] - (.+)$", changelog, re.MULTILINE
    )
    assert entry is not None
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}|unreleased", entry[1])
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == hubmerge.__version__


@pytest.mark.parametrize("file", DECISIONS, ids=lambda file: file.stem)
def test_a_decision_record_has_its_sections_and_number(file: Path) -> None:
    text = file.read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == ["Status", "Context", "Decision", "Consequences"]
    number = int(re.match(r"(\d{4})-[a-z0-9-]+$", file.stem)[1])  # type: ignore[index]
    assert number == DECISIONS.index(file) + 1
    assert text.startswith(f"# {number}. ")
