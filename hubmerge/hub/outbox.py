"""The outbox: finished step folders on disk that a background thread publishes, in order.

The queue is the disk and the ledger is the Hub: a step folder is published once its tag stands.
A crash loses nothing, and the next run over the same outbox sends what this one did not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hubmerge.errors import HubmergeError, HubUnreachable
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import Publication, publish
from hubmerge.refs import step_of, step_tag

_PAUSES_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
_LAST_ROUNDS = 3


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
        if not self.steps.is_dir():
            return ()
        steps = [step_of(path.name) for path in self.steps.iterdir() if path.name[0] != "."]
        return tuple(sorted(step for step in steps if step is not None))


class Publisher:
    """Publishes an outbox in the background; a Hub that fails for a while only delays it."""

    def __init__(self, hub: Hub, outbox: Outbox, describe: Callable[[int], Publication]) -> None:
        self._hub, self._outbox, self._describe = hub, outbox, describe
        self._published: dict[int, str] = {}
        self._news, self._closing = threading.Event(), threading.Event()
        self._failure: HubmergeError | None = None
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> tuple[int, ...]:
        """The saved steps not known to be on the Hub, rising."""
        return tuple(step for step in self._outbox.saved() if step not in self._published)

    def notify(self) -> None:
        """Tell that a step folder was saved; raises what waiting cannot mend."""
        if self._failure and not isinstance(self._failure, HubUnreachable):
            raise self._failure
        self._news.set()

    def close(self, patience_s: float) -> dict[int, str]:
        """Wait until all is published and return step -> commit; raises what stood in the way."""
        self._closing.set()
        self._news.set()
        self._thread.join(timeout=patience_s)
        if self._failure and not isinstance(self._failure, HubUnreachable):
            raise self._failure
        if waiting := self.waiting:
            reason = self._failure.message if self._failure else "The Hub is slow."
            raise HubUnreachable(
                f"{len(waiting)} of {len(self._outbox.saved())} steps wait in "
                f"{self._outbox.steps}: {reason}",
                "They are safe there: run the same command again to publish them.",
            )
        return dict(sorted(self._published.items()))

    def _run(self) -> None:
        pauses, last_rounds = iter(_PAUSES_S), _LAST_ROUNDS
        while True:
            self._failure = self._round()
            if self._failure and not isinstance(self._failure, HubUnreachable):
                return
            if not self.waiting:
                pauses = iter(_PAUSES_S)
                if self._closing.is_set():
                    return
                self._news.wait()
                self._news.clear()
                continue
            if self._closing.is_set():
                last_rounds -= 1
                if last_rounds == 0:
                    return
            self._closing.wait(next(pauses, _PAUSES_S[-1]))

    def _round(self) -> HubmergeError | None:
        """Publish whatever waits; the error that stopped it, if one did."""
        try:
            for step in self.waiting:
                self._published[step] = publish(self._hub, self._describe(step))
        except HubmergeError as error:
            return error
        except Exception as error:  # a bug must not end the thread unseen
            return HubmergeError(f"Publishing failed: {type(error).__name__}: {error}")
        return None
