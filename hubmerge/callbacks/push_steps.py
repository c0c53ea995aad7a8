"""PushSteps: a callback that publishes the steps of a Trainer as tagged revisions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from hubmerge.callbacks.evaluations import read_evaluations, validation_curve
from hubmerge.callbacks.model_facts import describe_model
from hubmerge.callbacks.model_writer import write_base, write_model
from hubmerge.callbacks.processes import plain_model
from hubmerge.callbacks.run_settings import (
    count_rows,
    describe_run,
    trainer_identity,
    trainer_settings,
)
from hubmerge.callbacks.step_loop import StepLoop
from hubmerge.callbacks.step_recorder import StepRecorder, open_recorder
from hubmerge.callbacks.target import DEFAULT_PATIENCE_S, make_target
from hubmerge.callbacks.trainer_access import (
    can_evaluate,
    find_trainer,
    gather_weights,
    is_sharded,
)
from hubmerge.errors import HubmergeError
from hubmerge.refs import step_tag

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

_logger = logging.getLogger("hubmerge")
Event = Callable[..., None]


def _never_stops_training(event: Event) -> Event:
    """Turn every error of an event into one sentence: training goes on."""

    @wraps(event)
    def run(self: PushSteps, args: Any, state: Any, control: Any, **objects: Any) -> None:
        try:
            event(self, args, state, control, **objects)
        except HubmergeError as error:
            self.warn(f"{error.message} {error.hint} Training goes on.")
        except Exception as error:
            self.warn(f"{type(error).__name__}: {error}. Training goes on without it.")

    return run


class PushSteps(TrainerCallback):
    """A callback that publishes every due step of a Trainer as a tagged revision of a repository.

    `Trainer(..., callbacks=[PushSteps(to="you/expert")])`, and in the same way SFTTrainer of TRL
    and SentenceTransformerTrainer. A due step is saved in a folder on disk, and published by a
    background thread as one commit with the tag step<N>; the last step is always due. Training
    never waits for the Hub and never stops because of it: what is missing is one sentence in the
    log `hubmerge`, and is published when the same script runs again.

    `push_every` is `2^k`, a number n (every n steps) or a list of steps. `task` is a name, a YAML
    file or data, as in `hubmerge train --task`. `base` is only needed if the model does not know
    what it was loaded from. `hub="local"` is the embedded Hub. With `evaluate` the Trainer
    evaluates at each due step. `out` is the folder of the run. The end of training waits
    `patience_s` seconds for a Hub that does not answer. Afterwards `commits` has the commit of each
    step, and `folder` is that of the run. Raises UsageError for wrong arguments.
    """

    def __init__(
        self,
        to: str,
        push_every: str | int | Sequence[int] = "2^k",
        *,
        task: str | Path | None = None,
        base: str | Path | None = None,
        hub: str | None = None,
        evaluate: bool = False,
        private: bool = False,
        out: str | Path | None = None,
        patience_s: float = DEFAULT_PATIENCE_S,
    ) -> None:
        self._target = make_target(to, push_every, hub, task, base, out, private, patience_s)
        self._evaluate = evaluate
        self._recorder: StepRecorder | None = None
        self._trainer: Trainer | None = None
        self._waiting = False  # a due step is saved after its evaluation
        self._saved = 0
        self._warned: set[str] = set()
        self.folder: Path | None = None
        self.commits: dict[int, str] = {}

    def loop(
        self,
        model: nn.Module,
        accelerator: Any = None,
        tokenizer: Any = None,
        *,
        steps: int | None = None,
        resumed_at: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> StepLoop:
        """The same for a loop of one's own: `with PushSteps(to=...).loop(model) as steps:`.

        `model` may be wrapped by `accelerator`, which then names the main process and gathers the
        weights; without one, process 0 of torch.distributed publishes. `steps` is the planned
        length, `resumed_at` the step that the model has now, and `settings`, such as lr and seed,
        tell runs apart and are in the manifest of every step.
        """
        return StepLoop(
            self._target,
            model,
            accelerator,
            tokenizer,
            steps,
            resumed_at,
            dict(settings or {}),
            self.warn,
        )

    def warn(self, sentence: str) -> None:
        """Log a sentence, once."""
        if sentence not in self._warned:
            self._warned.add(sentence)
            _logger.warning("%s", sentence.strip())

    @_never_stops_training
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        self._finish()
        self._waiting, self._saved = False, 0
        self._trainer = find_trainer(self)
        if self._evaluate and not can_evaluate(self._trainer, args):
            self.warn("evaluate=True has nothing to evaluate on: the Trainer has no eval_dataset.")
        if beyond := self._target.steps_after(state.max_steps):
            self.warn(f"The run ends at step {state.max_steps}, before step {beyond[0]} is due.")
        if state.is_world_process_zero:
            self._recorder = self._open(args, state, **objects)
        if state.global_step > 0 and self._target.is_due(state.global_step):
            # The Trainer's checkpoint of this step is older than a crash before the step was saved.
            missing = self._recorder is not None and not self._recorder.has(state.global_step)
            if missing or is_sharded(args):
                self._save(args, state, **objects)

    @_never_stops_training
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        self._save_waiting(args, state, **objects)

    @_never_stops_training
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        step = state.global_step
        if not (self._target.is_due(step) or step >= state.max_steps):
            return
        if self._evaluate and can_evaluate(self._trainer, args):
            control.should_evaluate = True
        self._waiting = True
        # An evaluation follows at once, or ends the last epoch: its numbers belong to the step.
        ends_epoch = step >= state.max_steps and args.eval_strategy == "epoch"
        if not (control.should_evaluate or ends_epoch):
            self._save_waiting(args, state, **objects)

    @_never_stops_training
    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        if control.should_training_stop and args.load_best_model_at_end:
            self._save_last(args, state, **objects)

    @_never_stops_training
    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        if control.should_training_stop:
            self._save_last(args, state, **objects)
        self._save_waiting(args, state, **objects)

    @_never_stops_training
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        # The best model replaces the last step before training ends.
        if control.should_training_stop and args.load_best_model_at_end:
            self._save_last(args, state, **objects)

    @_never_stops_training
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **objects: Any
    ) -> None:
        if not args.load_best_model_at_end:
            self._save_last(args, state, **objects)
        elif self._recorder is not None and not self._recorder.has(state.global_step):
            self.warn(
                f"{step_tag(state.global_step)}, the last step, is not saved: the Trainer has "
                "loaded its best model in place of it."
            )
        self._finish()

    def _save_waiting(self, args: Any, state: Any, **objects: Any) -> None:
        if self._waiting:
            self._save(args, state, **objects)

    def _save_last(self, args: Any, state: Any, **objects: Any) -> None:
        """Save the current step, which ends the run, unless it is saved."""
        if state.global_step > self._saved:
            self._save(args, state, **objects)

    def _open(
        self, args: Any, state: Any, model: nn.Module, processing_class: Any = None, **objects: Any
    ) -> StepRecorder:
        model = plain_model(model, getattr(self._trainer, "accelerator", None))
        facts = describe_model(model)
        loader = objects.get("train_dataloader")
        run = describe_run(
            self._target,
            facts,
            trainer_settings(args, state.max_steps),
            trainer_identity(args, getattr(loader, "dataset", None)),
            type(self._trainer or args).__name__,
            state.max_steps,
        )
        base = self._target.base or facts.base
        writer = partial(write_base, model=model, processor=processing_class)
        if base is None and is_sharded(args):
            raise HubmergeError(
                "The model was not loaded from a name, and its weights are spread over processes.",
                "Write base= with the folder or the repository it was made from.",
            )
        handler = getattr(self._trainer, "callback_handler", None)
        beside = tuple(getattr(handler, "callbacks", ()))
        return open_recorder(
            self, beside, self._target, run, base, state.global_step, writer, self.warn
        )

    def _save(
        self, args: Any, state: Any, model: nn.Module, processing_class: Any = None, **_: Any
    ) -> None:
        self._waiting, self._saved = False, state.global_step
        weights: Mapping[str, Tensor] | None = None
        if is_sharded(args):
            weights = gather_weights(self._trainer)
        if self._recorder is None:
            return
        step = state.global_step
        plain = plain_model(model, getattr(self._trainer, "accelerator", None))
        evaluations = read_evaluations(state.log_history, step)
        rows = count_rows(getattr(self._trainer, "eval_dataset", None))
        curve = validation_curve(evaluations, state.log_history, rows)
        try:
            self._recorder.save(
                step,
                partial(write_model, model=plain, state=weights, processor=processing_class),
                evaluations,
                curve,
                step < state.max_steps and not self._target.is_due(step),
            )
        except Exception as error:
            reason = error.message if isinstance(error, HubmergeError) else str(error)
            self.warn(
                f"{step_tag(step)} is missing: it could not be saved ({reason}). Training goes on; "
                "the same script makes it again when it runs from an earlier checkpoint."
            )

    def _finish(self) -> None:
        """Wait for what is not published, and let the folder go."""
        if self._recorder is not None:
            recorder, self._recorder = self._recorder, None
            self.commits = recorder.close()
            self.folder = recorder.folder
