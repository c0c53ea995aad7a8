"""Publishes the saved steps of a loop beside it: opens Hub and base, completes steps, pushes them.

Nothing here stops the loop: what goes wrong becomes one sentence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

from hubmerge.callbacks.closing import show_waiting
from hubmerge.callbacks.run_settings import LoopRun
from hubmerge.callbacks.step_drafts import StepDrafts
from hubmerge.callbacks.target import PushTarget
from hubmerge.errors import HubmergeError, HubUnreachable, IntegrityError, NotOnHub, UsageError
from hubmerge.file_digests import remember_in
from hubmerge.hub.client import Hub
from hubmerge.hub.environment import connect_inside, find_cached, home
from hubmerge.hub.outbox import Publisher
from hubmerge.hub.publish import Publication, ensure_repo
from hubmerge.kinds import EXPERT
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.publication import step_publication
from hubmerge.opening.references import open_ref
from hubmerge.refs import ModelRef
from hubmerge.runs.run import check_steps_of

# How long the start of training waits for the Hub, so that a refusal is read before the first step.
_START_PATIENCE_S = 5.0
_HINT = "Choose another repository with to=."
OTHER_REPOSITORY = "OTHER/REPOSITORY"


class StepPublisher:
    """Publishes what is in an outbox, in a background thread; `warn` gets sentences for the user.

    `base` is where the base of the steps is looked for, None if it is not known.
    """

    def __init__(
        self,
        target: PushTarget,
        run: LoopRun,
        drafts: StepDrafts,
        base: ModelRef | None,
        warn: Callable[[str], None],
    ) -> None:
        self._target, self._run, self._drafts, self._base_ref = target, run, drafts, base
        self._warn = warn
        self._hub: Hub | None = None
        self._base: OpenedModel | None = None
        self._is_checked = False
        self._publisher: Publisher | None = None
        self._refusal: HubmergeError | None = None
        self._resources = ExitStack()
        self._opening = threading.Thread(target=self._open, name="open-hub", daemon=True)
        self._opening.start()
        self._opening.join(_START_PATIENCE_S)

    @property
    def unpublished(self) -> tuple[int, ...]:
        """The saved steps that are not known to be on the Hub."""
        if self._publisher is not None:
            return self._publisher.unpublished
        return self._drafts.outbox.saved_steps()

    def notify(self) -> None:
        """Report that a step was saved."""
        if self._publisher is not None:
            self._publisher.notify()

    def close(self, patience_s: float) -> dict[int, str]:
        """Wait until all steps are published, with progress; returns step -> commit.

        Gives up on a Hub that does not answer after `patience_s` seconds without a published step.
        Steps that are left get their manifests, and a sentence says where they are.
        """
        commits: dict[int, str] = {}
        self._opening.join(patience_s)
        try:
            if self._publisher is not None:
                publisher = self._publisher
                commits = show_waiting(
                    lambda: publisher.close(patience_s), lambda: len(publisher.unpublished)
                )
        except HubmergeError as error:  # its cause does not repeat where the steps are
            cause = error.__cause__
            self._refusal = cause if isinstance(cause, HubmergeError) else error
        self._complete_left()
        if left := self.unpublished:
            self._warn(self._describe_left(len(left)))
        self._resources.close()
        return commits

    def _open(self) -> None:
        try:
            remember_in(home())
            self._hub = self._resources.enter_context(connect_inside(self._target.hub))
            try:
                self._ready(self._hub)
            except HubUnreachable as error:  # the publisher tries again
                self._warn(f"{error.message} Steps wait in {self._drafts.outbox.steps_folder}.")
            self._publisher = Publisher(
                self._hub, self._drafts.outbox, self._publication, self._warn
            )
        except HubmergeError as error:
            self._refuse(error)
        except Exception as error:  # a bug must not end the thread silently
            self._refuse(HubmergeError(f"{type(error).__name__}: {error}"))

    def _refuse(self, error: HubmergeError) -> None:
        self._refusal = error
        self._warn(
            f"Training goes on, and its steps are saved in {self._drafts.outbox.steps_folder}, "
            f"but not published: {error.message} {error.hint}"
        )

    def _ready(self, hub: Hub) -> OpenedModel:
        """The opened base, once the token may write and the repository has no other run."""
        if self._base is None:
            self._base = open_base_of_loop(hub, self._base_ref)
        if not self._is_checked:
            self._check(hub, self._base)
            ensure_repo(hub, self._target.to, self._target.private)
            self._is_checked = True
        return self._base

    def _check(self, hub: Hub, base: OpenedModel) -> None:
        check_steps_of(hub, self._target.to, EXPERT, base, self._run.id, _HINT)

    def _publication(self, step: int) -> Publication:
        assert self._hub is not None
        base = self._ready(self._hub)
        self._check(self._hub, base)  # another run may have started to publish there
        manifest = self._drafts.complete(step, base)
        return step_publication(self._drafts.outbox.step_folder(step), manifest, self._target.to)

    def _complete_left(self) -> None:
        """Write the manifests of the steps that are left, if the base is known by now."""
        if self._base is None:
            return
        for step in self.unpublished:
            try:
                self._drafts.complete(step, self._base)
            except HubmergeError as error:
                self._warn(error.message)

    def _describe_left(self, count: int) -> str:
        steps, error = self._drafts.outbox.steps_folder, self._refusal
        left = f"{count} step{' is' if count == 1 else 's are'} in {steps} and not on the Hub"
        # A repository that has something else stays as it is.
        to = OTHER_REPOSITORY if isinstance(error, IntegrityError) else self._target.to
        command = self._target.publish_command(steps, to)
        again = (
            "Run the script again, or publish" if isinstance(error, HubUnreachable) else "Publish"
        )
        reason = f": {error.message}" if error else "."
        return f"{left}{reason} {again} them with: {command}"


def open_base_of_loop(hub: Hub, ref: ModelRef | None) -> OpenedModel:
    """Open the base of a loop: from the Hub, or where transformers keeps what it downloaded.

    Raises UsageError if the base is not known, and NotOnHub if it is nowhere.
    """
    if ref is None:
        raise UsageError(
            "The base of the model is not known: it was not loaded from a name, and its first step "
            "was not seen.",
            "Write base= with the folder or the repository it was made from.",
        )
    if ref.path is not None:
        return open_ref(hub, ref)
    cached = find_cached(str(ref.repo_id), ref.revision)
    pinned = ref if ref.revision or cached is None else _at_commit(ref, cached.name)
    try:
        return open_ref(hub, pinned)
    except NotOnHub:
        if cached is None:
            raise
        return open_ref(hub, ModelRef(path=cached))


def _at_commit(ref: ModelRef, commit: str) -> ModelRef:
    return ModelRef(repo_id=ref.repo_id, revision=commit, subfolder=ref.subfolder)
