"""Select again from the repositories of a lock, and propose the new merge if it is better.

    python scripts/upcycle.py hubmerge.lock OWNER/NAME [options of `hubmerge select`]

`hubmerge select` compares with the lock's own choice. If the new one is better beyond the noise, it
is merged, scored and described in the folder `merged`, and a pull request to OWNER/NAME is opened
with it and its new lock; if not, nothing is proposed. The result is in the summary of the job.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hubmerge.cards.markdown import escape_markdown
from hubmerge.lock import Lock
from hubmerge.lock_file import parse_lock, read_lock_bytes
from hubmerge.tasks.chosen_metric import metric_of_id
from hubmerge.tasks.lm_eval_name import is_lm_eval

NEW_LOCK, MERGED = Path("new.lock"), Path("merged")
INCONCLUSIVE = 4
# A token from OIDC is valid for an hour, and selecting may take longer; only proposing needs one.
OIDC_VARIABLE = "HF_OIDC_RESOURCE"


def upcycle(old_lock: Path, to: str, options: list[str]) -> None:
    """Select, merge and propose; exits with the exit code of a command that fails."""
    old = parse_lock(read_lock_bytes(old_lock), str(old_lock))
    candidates = [*old.pick().experts, *(swap for swaps in old.swaps.values() for swap in swaps)]
    repos = dict.fromkeys(candidate.label.partition("@")[0] for candidate in candidates)
    chosen = hubmerge(
        "select", *repos, "--target", old.method, "--against", old_lock, "--lock", NEW_LOCK,
        *lm_eval_options(old, options), *options, accepted_exit_code=INCONCLUSIVE,
    )  # fmt: skip
    new = parse_lock(read_lock_bytes(NEW_LOCK), str(NEW_LOCK))
    if chosen is None:
        report(
            "Nothing better",
            f"{describe_choice(new)}: {describe_reason(new)}, so nothing is proposed.",
        )
        return
    merge = ("merge", "--lock", NEW_LOCK, "--locked", "--out", MERGED)
    hubmerge(*merge, "--replace")
    hubmerge("eval", MERGED)
    hubmerge("card", MERGED)
    proposed = hubmerge(*merge, "--push", to, "--pull-request", oidc=True)
    link = proposed["pull_request"] or f"{to} contains it already"
    report("A better merge", f"{describe_choice(new)}.\n\n{escape_markdown(link)}")


def lm_eval_options(old: Lock, options: list[str]) -> list[str]:
    """The tasks of a lock if they are of lm_eval, which manifests of experts do not name."""
    names = [task.id.partition("@")[0] for task in old.tasks]
    if "--tasks" in options or not all(map(is_lm_eval, names)):
        return []
    chosen = [metric for task in old.tasks if (metric := metric_of_id(task.id)[1])]
    metric = ["--metric", chosen[0]] if chosen and "--metric" not in options else []
    return ["--tasks", ",".join(names), *metric]


def hubmerge(*words: object, accepted_exit_code: int = 0, oidc: bool = False) -> Any:
    """The JSON output of a command, or None if it ended with `accepted_exit_code`."""
    command = [sys.executable, "-m", "hubmerge", *map(str, words), "--json"]
    print("$ hubmerge", *words, flush=True)
    environment = {k: v for k, v in os.environ.items() if oidc or k != OIDC_VARIABLE}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode not in (0, accepted_exit_code):
        report("Failed", f"`hubmerge {words[0]}` ended with exit code {done.returncode}.")
        sys.exit(done.returncode)
    return None if done.returncode else json.loads(done.stdout)


def describe_choice(lock: Lock) -> str:
    """A sentence, without its full stop, on the choice of a lock and its gain."""
    pick = lock.pick()
    gain, low, high = (100 * part for part in pick.gain or (0.0, 0.0, 0.0))
    evidence = (
        f", {gain:+.1f} points over the old choice on rows that did not choose (95 % interval "
        f"{low:+.1f} to {high:+.1f})"
    )
    steps = ", ".join(escape_markdown(expert.label) for expert in pick.experts)
    return (
        f"{steps} by {escape_markdown(lock.method)}: {100 * pick.accuracy:.1f} % on validation"
        + (evidence if pick.gain else "")
    )


def describe_reason(lock: Lock) -> str:
    """Why the choice of a lock is not proposed."""
    pick = lock.pick()
    if lock.outcome == "loss":
        return "the old choice is better"
    return "that is within the noise" if pick.gain else "the gain was not measured"


def report(title: str, text: str) -> None:
    """Print to the log, and append to the summary of a GitHub job if there is one."""
    section = f"## {title}\n\n{text}\n"
    print(section, flush=True)
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(section)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    upcycle(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
