"""The steps of a loop of one's own, with or without an Accelerator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from hubmerge.callbacks.evaluations import Metrics, plain_metrics, validation_curve
from hubmerge.callbacks.model_facts import describe_model
from hubmerge.callbacks.model_writer import write_base, write_model
from hubmerge.callbacks.processes import (
    as_in_process_0,
    gather_weights,
    is_main_process,
    is_sharded,
    plain_model,
)
from hubmerge.callbacks.run_settings import describe_run
from hubmerge.callbacks.step_recorder import StepRecorder, open_recorder
from hubmerge.callbacks.target import PushTarget
from hubmerge.errors import HubmergeError
from hubmerge.refs import step_tag

_TRAINING = ("step", "loss", "learning_rate")


class StepLoop:
    """Publishes the due steps of a loop: call `step` after every update, and `close` at the end.

    In a `with` block it closes itself. Nothing that goes wrong stops the loop.
    """

    def __init__(
        self,
        target: PushTarget,
        model: nn.Module,
        accelerator: Any,
        tokenizer: Any,
        steps: int | None,
        resumed_at: int,
        settings: dict[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self._target, self._model, self._accelerator = target, model, accelerator
        self._tokenizer, self._steps, self._warn = tokenizer, steps, warn
        self._step, self._saved = resumed_at, resumed_at
        self._history: list[dict[str, float]] = []
        self._earlier: dict[int, Metrics] = {}
        self._recorder: StepRecorder | None = None
        self.commits: dict[int, str] = {}
        if is_main_process(accelerator):
            self._guard(lambda: self._open(settings))
        if resumed_at > 0 and target.is_due(resumed_at):
            self._guard(self._save_unless_there)

    def step(self, number: int, metrics: Mapping[str, float] | None = None) -> None:
        """Report update `number`, counted from 1, in all processes; `metrics` of an evaluation.

        `accuracy`, or the first name with it, becomes the validation curve; `loss` and `lr` are
        those of training.
        """
        self._step = number
        if metrics:
            self._history.append(_log_entry(number, metrics))
        if self._target.is_due(number) or number == self._steps:
            self._save()

    def close(self) -> None:
        """Save the last step, wait until all are published, and name what is left."""
        if self._step > self._saved:
            self._save()
        self._finish()

    def __enter__(self) -> StepLoop:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self._finish()

    def _open(self, settings: dict[str, Any]) -> None:
        model = self._plain_model()
        facts = describe_model(model)
        run = describe_run(self._target, facts, settings, settings, "a loop", self._steps)
        writer = partial(write_base, model=model, processor=self._tokenizer)
        base = self._target.base or facts.base
        if base is None and is_sharded(self._model, self._accelerator):
            raise HubmergeError(
                "The model was not loaded from a name, and its weights are spread over processes.",
                "Write base= with the folder or the repository it was made from.",
            )
        self._recorder = open_recorder(
            self, (), self._target, run, base, self._step, writer, self._warn
        )
        self._earlier = dict(self._recorder.evaluations_before(self._step + 1))

    def _save(self) -> None:
        self._saved = self._step
        try:
            # Weights that are spread over processes are gathered by all of them together.
            weights: Mapping[str, Tensor] | None = None
            if is_sharded(self._model, self._accelerator):
                weights = gather_weights(self._model, self._accelerator)
            if self._recorder is not None:
                self._record(self._recorder, weights)
        except Exception as error:
            reason = error.message if isinstance(error, HubmergeError) else str(error)
            self._warn(f"{step_tag(self._step)} is missing: it could not be saved ({reason}).")

    def _record(self, recorder: StepRecorder, weights: Mapping[str, Tensor] | None) -> None:
        evaluations = self._earlier | _evaluations(self._history)
        curve = validation_curve(evaluations, self._history, 0)
        write = partial(
            write_model, model=self._plain_model(), state=weights, processor=self._tokenizer
        )
        recorder.save(self._step, write, evaluations, curve)

    def _save_unless_there(self) -> None:
        is_there = self._recorder is not None and self._recorder.has(self._step)
        # Processes that gather weights together must agree.
        if is_sharded(self._model, self._accelerator):
            is_there = as_in_process_0(is_there)
        if not is_there:
            self._save()

    def _finish(self) -> None:
        if self._recorder is not None:
            recorder, self._recorder = self._recorder, None
            self._guard(lambda: self.commits.update(recorder.close()))

    def _plain_model(self) -> nn.Module:
        return plain_model(self._model, self._accelerator)

    def _guard(self, work: Callable[[], object]) -> None:
        try:
            work()
        except HubmergeError as error:
            self._warn(f"{error.message} {error.hint} The loop goes on.")
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}. The loop goes on without it.")


def _log_entry(step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics of a step as a Trainer logs them."""
    named = {("learning_rate" if key == "lr" else key): value for key, value in metrics.items()}
    return {**named, "step": step}


def _evaluations(history: Iterable[Mapping[str, float]]) -> dict[int, Metrics]:
    """The metrics of each step that are not those of training."""
    measured: dict[int, Metrics] = {}
    for entry in history:
        metrics = plain_metrics({k: v for k, v in entry.items() if k not in _TRAINING})
        if metrics:
            step = int(entry["step"])
            measured[step] = {**measured.get(step, {}), **metrics}
    return measured
