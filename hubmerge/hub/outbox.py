"""The outbox: finished step folders on disk that a background thread publishes, in order.

The queue is the disk and the ledger is the Hub: a step folder is published once its tag stands.
A crash loses nothing, and the next run over the same outbox sends what this one did not.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

from hubmerge.errors import HubmergeError, HubUnreachable
from hubmerge.hub.client import Hub
from hubmerge.hub.client_errors import retry_after_s
from hubmerge.hub.publish import Publication, publish
from hubmerge.refs import step_of, step_tag

_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)


@dataclass(frozen=True)
class Outbox:
    """The step folders of one run; a folder appears in `steps` only when it is whole."""

    folder: Path

    @property
    def steps(self) -> Path:
        return self.folder / "steps"

    def step_folder(self, step: int) -> Path:
        """Where the folder of a step lies, or will."""
        return self.steps / step_tag(step)

    def saved(self) -> tuple[int, ...]:
        """The steps whose folders are whole, rising."""
        names = {path.name for path in self.steps.iterdir()} if self.steps.is_dir() else set()
        steps = {step for name in names if (step := step_of(name)) is not None}
        return tuple(sorted(step for step in steps if step_tag(step) in names))


class Publisher:
    """Publishes an outbox in the background; nothing that happens on the Hub stops training.

    A Hub that fails for a while only delays it; what waiting cannot mend is told by `close`.
    """

    def __init__(self, hub: Hub, outbox: Outbox, describe: Callable[[int], Publication]) -> None:
        self._hub, self._outbox, self._describe = hub, outbox, describe
        self._published: dict[int, str] = {}
        self._news, self._closing = threading.Event(), threading.Event()
        self._patience_s = self._give_up_at = math.inf  # while training goes on
        self._failure: HubmergeError | None = None
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> tuple[int, ...]:
        """The saved steps not known to be on the Hub, rising."""
        return tuple(step for step in self._outbox.saved() if step not in self._published)

    def notify(self) -> None:
        """Tell that a step folder was saved."""
        self._news.set()

    def close(self, patience_s: float) -> dict[int, str]:
        """Wait until all is published and return step -> commit; raises what stood in the way.

        A Hub that does not answer is given up once `patience_s` pass without a step landing.
        """
        self._patience_s, self._give_up_at = patience_s, time.monotonic() + patience_s
        self._closing.set()
        self._news.set()
        self._thread.join()
        if self._failure is None:
            return dict(sorted(self._published.items()))
        steps = f"{len(self.waiting)} of {len(self._outbox.saved())} steps"
        raise type(self._failure)(
            f"{steps} wait in {self._outbox.steps}: {self._failure.message}", self._failure.hint
        ) from self._failure

    def _run(self) -> None:
        try:
            while True:
                self._news.clear()
                last_round = self._closing.is_set()  # asked first: it sees all that was saved
                for step in self.waiting:
                    self._published[step] = self._publish(step)
                if last_round:
                    return
                self._news.wait()
        except HubmergeError as error:
            self._failure = error
        except Exception as error:  # a bug must not end the thread unseen
            self._failure = HubmergeError(f"Publishing failed: {type(error).__name__}: {error}")

    def _publish(self, step: int) -> str:
        """Publish one step, again and again while the Hub does not answer."""
        pauses = chain(_PAUSES_S, repeat(_PAUSES_S[-1]))
        while True:
            try:
                commit = publish(self._hub, self._describe(step))
            except HubUnreachable as error:
                self._wait(error, next(pauses))
            else:
                self._give_up_at = time.monotonic() + self._patience_s
                return commit

    def _wait(self, error: HubUnreachable, pause_s: float) -> None:
        """Wait before the next try; out of patience, raise the error."""
        left_s, asked_s = self._give_up_at - time.monotonic(), retry_after_s(error) or 0.0
        if left_s <= 0 or asked_s > left_s:
            raise error
        seconds = asked_s or min(pause_s, left_s)
        if self._closing.is_set():
            time.sleep(seconds)
        else:
            self._closing.wait(seconds)
