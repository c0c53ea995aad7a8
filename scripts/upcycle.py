"""Choose again from the repositories of a lock, and propose the merge where it is better now.

    python scripts/upcycle.py hubmerge.lock OWNER/NAME [options of `hubmerge select`]

`hubmerge select` compares with the lock's own choice. If the new one is better beyond the noise, it
is merged, scored and told in the folder `merged`, and a pull request to OWNER/NAME is opened with
it and its new lock; if not, nothing is. Either way this ends well and says so in the job's summary.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hubmerge.cards.markdown import plain
from hubmerge.lock import Lock, parse_lock, read_lock

NEW_LOCK, MERGED = Path("new.lock"), Path("merged")
INCONCLUSIVE = 4
# A token by OIDC lives for an hour, which choosing may outlast; only proposing needs one.
BY_OIDC = "HF_OIDC_RESOURCE"


def upcycle(old_lock: Path, to: str, options: list[str]) -> None:
    """The whole errand; a command that fails ends it with its exit code."""
    old = parse_lock(read_lock(old_lock), str(old_lock))
    candidates = [*old.pick().experts, *(swap for its in old.swaps.values() for swap in its)]
    repos = dict.fromkeys(one.label.partition("@")[0] for one in candidates)
    chosen = hubmerge(
        "select", *repos, "--target", old.method, "--against", old_lock, "--lock", NEW_LOCK,
        *options, may_be=INCONCLUSIVE,
    )  # fmt: skip
    new = parse_lock(read_lock(NEW_LOCK), str(NEW_LOCK))
    if chosen is None:
        tell("Nothing better", f"{said(new)}: that is within the noise, and nothing is proposed.")
        return
    merge = ("merge", "--lock", NEW_LOCK, "--locked", "--out", MERGED)
    hubmerge(*merge, "--replace")
    hubmerge("eval", MERGED)
    hubmerge("card", MERGED)
    proposed = hubmerge(*merge, "--push", to, "--pull-request", oidc=True)
    where = proposed["pull_request"] or f"{to} holds it already"
    tell("A better merge", f"{said(new)}.\n\n{plain(where)}")


def hubmerge(*words: object, may_be: int = 0, oidc: bool = False) -> Any:
    """What a command prints as JSON, None if it ended with the exit code `may_be`."""
    command = [sys.executable, "-m", "hubmerge", *map(str, words), "--json"]
    print("$ hubmerge", *words, flush=True)
    environment = {k: v for k, v in os.environ.items() if oidc or k != BY_OIDC}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode not in (0, may_be):
        tell("Failed", f"`hubmerge {words[0]}` ended with exit code {done.returncode}.")
        sys.exit(done.returncode)
    return None if done.returncode else json.loads(done.stdout)


def said(lock: Lock) -> str:
    """The choice of a lock and what it gains, in a sentence without its stop."""
    pick = lock.pick()
    gain, low, high = (100 * part for part in pick.gain or (0.0, 0.0, 0.0))
    steps = ", ".join(plain(expert.label) for expert in pick.experts)
    return (
        f"{steps} by {plain(lock.method)}: {100 * pick.accuracy:.1f} % on validation, "
        f"{gain:+.1f} points over the old choice (95 % interval {low:+.1f} to {high:+.1f})"
    )


def tell(title: str, text: str) -> None:
    """Say it in the log, and in the summary of a GitHub job if there is one."""
    words = f"## {title}\n\n{text}\n"
    print(words, flush=True)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(words)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    upcycle(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
