"""Run the client library's own tests against the embedded Hub, and print what passes.

    python scripts/conformance/run.py               with Xet off and on; about ten minutes
    python scripts/conformance/run.py --files hf_api --xet off

Its source distribution is fetched from the package registry into build/conformance; nothing of it
is part of this project. The result is build/conformance/results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from sample_cards import write_sample_cards

from hubmerge.server import lease

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "conformance"
# Tests that need a Hub, or the parts of the client that hubmerge uses.
GROUPS = {
    "hf_api": ["hf_api"],
    "downloads": [
        "file_download", "snapshot_download", "tree_cache", "verification", "offline_utils",
    ],
    "hf_file_system": ["hf_file_system"],
    "cards and commits": [
        "repocard", "hub_mixin", "commit_scheduler", "commit_api", "upload_pipeline",
        "eval_results", "lfs",
    ],
    "xet": ["xet_upload", "xet_download", "xet_utils"],
    "cli": ["cli"],
    "others": ["copy_files", "kernels", "hub_mixin_pytorch", "utils_http"],
}  # fmt: skip
OUTCOMES = ("passed", "failed", "error", "skipped")
_OUTCOME_OF = {"error": "error", "failure": "failed", "skipped": "skipped"}


def fetch_tests() -> Path:
    """The folder of the unpacked source distribution, with our conftest in its tests."""
    name = f"huggingface_hub-{version('huggingface_hub')}"
    BUILD.mkdir(parents=True, exist_ok=True)
    archive = BUILD / f"{name}.tar.gz"
    if not archive.exists():
        requirement = name.replace("_hub-", "_hub==")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run(
            [*pip, "--no-binary", ":all:", "--dest", str(BUILD), requirement], check=True
        )
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(archive) as file:
        file.extractall(BUILD, filter="data")
    tests = folder / "tests"
    shutil.copy(Path(__file__).with_name("client_conftest.py"), tests / "conftest.py")
    (tests / "__init__.py").touch()
    write_sample_cards(tests / "fixtures" / "cards")
    return folder


def point_to(tests: Path, url: str) -> dict[str, str]:
    """Write the Hub's address into the constants of the tests; returns token -> user."""
    path = tests / "testing_constants.py"
    text = path.read_text()
    path.write_text(
        re.sub(r"^ENDPOINT_STAGING = .*$", f'ENDPOINT_STAGING = "{url}"', text, flags=re.M)
    )
    values = dict(re.findall(r'^([A-Z_]+) = "([^"]*)"', text, flags=re.M))
    prefixes = ("", "OTHER_", "ENTERPRISE_")
    return {values[f"{prefix}TOKEN"]: values[f"{prefix}USER"] for prefix in prefixes}


def run_group(
    folder: Path, names: list[str], url: str, home: Path, xet: bool
) -> tuple[Counter[str], list[str]]:
    """The numbers of outcomes of some test files, and the ids of what does not pass."""
    report = home / "report.xml"
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))
    }
    environment |= {"HF_ENDPOINT": url, "HF_HOME": str(home / "hf"), "HF_TOKEN": ""}
    # Without a terminal, tables are cut to 80 columns, and tests look for names in them.
    environment |= {"COLUMNS": "200"}
    environment |= {} if xet else {"HF_HUB_DISABLE_XET": "1"}
    files = [
        f"tests/test_{name}.py" for name in names if (folder / f"tests/test_{name}.py").exists()
    ]
    options = ["-q", "-p", "no:cacheprovider", "-m", "not production", "--timeout=120"]
    options += ["--continue-on-collection-errors"]
    options += ["-o", "addopts=", f"--junitxml={report}"]
    with (home / "log.txt").open("a") as log:
        subprocess.run(
            [sys.executable, "-m", "pytest", *options, *files],
            cwd=folder, env=environment, stdout=log, stderr=log, check=False,
        )  # fmt: skip
    counts, others = Counter[str](), []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case} & _OUTCOME_OF.keys()
        outcome = _OUTCOME_OF[min(kinds)] if kinds else "passed"
        counts[outcome] += 1
        if outcome in ("failed", "error"):
            others.append(f"{case.get('classname')}::{case.get('name')}")
    return counts, others


def main() -> None:
    """Print one line for each group of tests, with and without Xet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", help="Groups, separated by commas.")
    parser.add_argument("--xet", choices=("on", "off", "both"), default="both")
    options = parser.parse_args()
    groups = options.files.split(",") if options.files else list(GROUPS)
    folder, results = fetch_tests(), []
    print(f"{'xet':5}{'tests':20}" + "".join(f"{outcome:>9}" for outcome in OUTCOMES))
    for xet in {"on": [True], "off": [False], "both": [False, True]}[options.xet]:
        home = BUILD / ("xet" if xet else "plain")
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        total = Counter[str]()
        with lease(home / "hub") as server:
            tokens = point_to(folder / "tests", server.url)
            add_users(home / "hub", tokens)
            for group in groups:
                counts, others = run_group(folder, GROUPS[group], server.url, home, xet)
                total += counts
                results.append({"xet": xet, "group": group, **counts, "not_passed": others})
                print(line(xet, group, counts), flush=True)
        print(line(xet, "all", total), flush=True)
    (BUILD / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def add_users(data: Path, users: dict[str, str]) -> None:
    """Give the tests' users their tokens."""
    file = data / "tokens.json"
    known = json.loads(file.read_text())
    known |= {token: {"name": name, "role": "write"} for token, name in users.items()}
    file.write_text(json.dumps(known))
    (data / "users.json").write_text(json.dumps(sorted(users.values())))


def line(xet: bool, group: str, counts: Counter[str]) -> str:
    """One line of the table."""
    return f"{'on' if xet else 'off':5}{group:20}" + "".join(f"{counts[key]:9}" for key in OUTCOMES)


if __name__ == "__main__":
    main()
