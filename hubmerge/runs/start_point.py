"""A step of an expert from which another run continues: what is known of it, and its weights.

Weights and manifest are on a Hub, the moments of the optimizer are not: they start from zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hubmerge.errors import CheckpointError, IntegrityError, UsageError
from hubmerge.hub.client import Hub
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.references import open_ref, pin
from hubmerge.refs import parse_ref
from hubmerge.specs import TrainSpec, unused_options
from hubmerge.tasks.task import Task
from hubmerge.training_curve import ValidationPoint

if TYPE_CHECKING:
    from hubmerge.runs.expert_model import ExpertModel

# Of the run that ended there, not of the one that continues.
_NOT_CONTINUED = {"start_from"}
NEW_OPTIMIZER = "its moments started from zero: they are not published"


@dataclass(frozen=True)
class StartPoint:
    """The opened step, its number, and the curve up to it if it is of the same task."""

    model: OpenedModel
    step: int
    curve: tuple[ValidationPoint, ...]

    @property
    def identity(self) -> list[Any]:
        """What decides the weights of the runs that continue from it."""
        return [self.model.digest, self.step, [point.to_json() for point in self.curve]]


def recorded_options(hub: Hub, text: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `hubmerge train` that the manifest of a step records, base and task too.

    `given` are those of the user, which win; a recorded option that would have no effect with them
    is left out. Raises UsageError for a model without the manifest of an expert.
    """
    manifest = _expert_manifest(pin(hub, parse_ref(text)).manifest, text)
    base = manifest.base
    recorded: dict[str, Any] = {
        "base": base.name if base.is_local else f"{base.name}@{base.sha}",
        **({"task": manifest.task_name} if manifest.task else {}),
        **{k: v for k, v in manifest.training.items() if k in TrainSpec.model_fields},
    }
    _check_before_end(text, manifest, given.get("steps", recorded.get("steps")))
    if "warmup" in given:
        recorded.pop("warmup_steps", None)
    values = {k: v for k, v in recorded.items() if k not in _NOT_CONTINUED and k not in given}
    unused = unused_options({**values, **given})
    return {name: value for name, value in values.items() if name not in unused}


def open_start(hub: Hub, spec: TrainSpec, base: OpenedModel, task: Task) -> StartPoint | None:
    """Open the step that a run continues from; None for a run from the base.

    Raises IntegrityError for an expert of another base, UsageError for one that was tuned in
    another way, or a step that is not before the last of the run.
    """
    if spec.start_from is None:
        return None
    model = open_ref(hub, parse_ref(spec.start_from))
    manifest = _expert_manifest(model.manifest, spec.start_from)
    label, step = model.revision.label, manifest.step or 0
    if manifest.base.digest != base.digest:
        raise IntegrityError(
            f"{label} was trained from {manifest.base.label}, not from {base.revision.label}.",
            "Leave --base out, or continue from an expert of this base.",
        )
    if (model.checkpoint.kind == "lora") != (spec.tune != "full"):
        kind = "an adapter" if model.checkpoint.kind == "lora" else "a whole model"
        raise UsageError(f"{label} is {kind}, which `tune: {spec.tune}` cannot continue.",
                         "Leave --tune out.")  # fmt: skip
    _check_before_end(label, manifest, spec.steps)
    is_same_task = manifest.task == task.id and manifest.run is not None
    return StartPoint(model, step, manifest.validation if is_same_task else ())


def load_start(expert: ExpertModel, start: StartPoint) -> None:
    """Put the weights of a step into the network, in place; raises CheckpointError."""
    from hubmerge.learners.factory import load_trained_head
    from hubmerge.models.loading import load_model

    folder, task = start.model.folder, expert.task
    if expert.adapted is not None:
        expert.adapted.load(folder)
    else:
        saved = load_model(folder, task.spec.kind)
        try:
            expert.model.module.load_state_dict(saved.module.state_dict())
        except RuntimeError as error:
            raise CheckpointError(
                f"{start.model.revision.label} has other tensors than the base: {error}"
            ) from error
    if task.spec.head == "trained" and expert.head is not None:
        head = load_trained_head(expert.model, task, expert.classes, folder)
        expert.head.load_state_dict(head.state_dict())


def _check_before_end(label: str, manifest: Manifest, end: object) -> None:
    """Raise UsageError for a step that is not before the last of the run."""
    step = manifest.step or 0
    if isinstance(end, int) and step >= end:
        raise UsageError(
            f"{label} is step {step}, and the run ends at step {end}.",
            f"Write --steps with more than {step}.",
        )


def _expert_manifest(manifest: Manifest | None, label: str) -> Manifest:
    if manifest is None or not manifest.is_expert or manifest.step is None:
        raise UsageError(
            f"{label} has no manifest of an expert's step.",
            "Name a step of `hubmerge train`, or publish the run with --base and --task first.",
        )
    return manifest
