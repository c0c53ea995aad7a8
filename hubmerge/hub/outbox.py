"""The outbox: finished step folders on disk that a background thread publishes, in order.

The folders are the queue, and the tags on the Hub are the ledger: a step is published when its tag
exists. A crash loses nothing: the next run with the same outbox publishes what is missing.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

from hubmerge.errors import HubmergeError, HubOffline, HubUnreachable
from hubmerge.hub.client import Hub
from hubmerge.hub.client_errors import describe_end, retry_after_s
from hubmerge.hub.publish import Publication, publish
from hubmerge.refs import step_of, step_tag

_RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
# Waits that a user should know of.
_LONG_WAIT_S = 120.0


@dataclass(frozen=True)
class Clock:
    """The time in seconds, and waiting for an event for at most so many of them."""

    now: Callable[[], float] = time.monotonic
    wait: Callable[[threading.Event, float], object] = threading.Event.wait


@dataclass(frozen=True)
class Outbox:
    """The step folders of one run; a folder appears in `steps` only when it is complete."""

    folder: Path

    @property
    def steps_folder(self) -> Path:
        return self.folder / "steps"

    def step_folder(self, step: int) -> Path:
        """The path of a step's folder, which need not exist yet."""
        return self.steps_folder / step_tag(step)

    def saved_steps(self) -> tuple[int, ...]:
        """The steps whose folders are complete, in rising order."""
        folder = self.steps_folder
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        steps = {step for name in names if (step := step_of(name)) is not None}
        return tuple(sorted(step for step in steps if step_tag(step) in names))


class Publisher:
    """Publishes an outbox in the background; no failure of the Hub stops training.

    While the Hub is down or asks to wait, publishing waits, and `warn` gets a sentence if that is
    for minutes or hours. `close` raises the errors that waiting cannot fix.
    """

    def __init__(
        self,
        hub: Hub,
        outbox: Outbox,
        publication_of: Callable[[int], Publication],
        warn: Callable[[str], None] = lambda sentence: None,
        clock: Clock = Clock(),
    ) -> None:
        self._hub, self._outbox, self._publication_of = hub, outbox, publication_of
        self._warn, self._clock = warn, clock
        self._published: dict[int, str] = {}
        self._step_saved, self._closing = threading.Event(), threading.Event()
        self._patience_s = self._give_up_at = math.inf  # while training goes on
        self._failure: HubmergeError | None = None
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    @property
    def unpublished(self) -> tuple[int, ...]:
        """The saved steps that are not known to be on the Hub, in rising order."""
        return tuple(step for step in self._outbox.saved_steps() if step not in self._published)

    def notify(self) -> None:
        """Report that a step folder was saved."""
        self._step_saved.set()

    def close(self, patience_s: float) -> dict[int, str]:
        """Wait until all steps are published and return step -> commit; raises the first error.

        Gives up on a Hub that does not answer when `patience_s` seconds pass without a published
        step.
        """
        self._patience_s, self._give_up_at = patience_s, self._clock.now() + patience_s
        self._closing.set()
        self._step_saved.set()
        self._thread.join()
        if self._failure is None:
            return dict(sorted(self._published.items()))
        steps = f"{len(self.unpublished)} of {len(self._outbox.saved_steps())} steps"
        raise type(self._failure)(
            f"{steps} wait in {self._outbox.steps_folder}: {self._failure.message}",
            self._failure.hint,
        ) from self._failure

    def _run(self) -> None:
        try:
            while True:
                self._step_saved.clear()
                # Read before the saved steps, so that the last round publishes all of them.
                is_last_round = self._closing.is_set()
                for step in self.unpublished:
                    self._published[step] = self._publish(step)
                if is_last_round:
                    return
                self._step_saved.wait()
        except HubmergeError as error:
            self._failure = error
        except Exception as error:  # a bug must not end the thread silently
            self._failure = HubmergeError(f"Publishing failed: {type(error).__name__}: {error}")

    def _publish(self, step: int) -> str:
        """Publish one step; retried while the Hub does not answer."""
        delays = chain(_RETRY_DELAYS_S, repeat(_RETRY_DELAYS_S[-1]))
        while True:
            try:
                commit = publish(self._hub, self._publication_of(step), is_over=self._is_over)
            except HubOffline:
                raise
            except HubUnreachable as error:
                self._wait_before_retry(step, error, next(delays))
            else:
                self._give_up_at = self._clock.now() + self._patience_s
                return commit

    def _is_over(self) -> bool:
        """Whether training has ended and its patience too: a dead Hub must not hold it for long."""
        return self._clock.now() >= self._give_up_at

    def _wait_before_retry(self, step: int, error: HubUnreachable, delay_s: float) -> None:
        """Wait before the next attempt; raise the error if the time is up."""
        asked_s, now = retry_after_s(error), self._clock.now()
        if asked_s is None:
            if (left_s := self._give_up_at - now) <= 0:
                raise error
            self._wait_until(now + min(delay_s, left_s))
            return
        if asked_s >= _LONG_WAIT_S and not self._closing.is_set():
            self._warn(
                f"{error.message.rstrip('.')}. {step_tag(step)} and later steps wait in "
                f"{self._outbox.steps_folder} until {describe_end(asked_s)}; training goes on."
            )
        # When training ends meanwhile, the Hub is not asked again before its time.
        end = now + asked_s
        if not self._closing.is_set():
            self._clock.wait(self._closing, asked_s)
        if self._clock.now() < end:
            if end > self._give_up_at:
                raise error
            self._wait_until(end)

    def _wait_until(self, end: float) -> None:
        """Wait; until `close` is called, wait no longer than its call."""
        closing = threading.Event() if self._closing.is_set() else self._closing
        self._clock.wait(closing, end - self._clock.now())
