"""hubmerge: turn the checkpoints people already have into better models.

The names below are the public API. Each is imported on first use, so `import hubmerge` is fast.
`merge(plan, folder)` merges checkpoints that `open_checkpoint(folder)` opened.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubmerge.callbacks.push_steps import PushSteps as PushSteps
    from hubmerge.errors import HubmergeError as HubmergeError
    from hubmerge.flows.load import load_moe as load_moe
    from hubmerge.manifest import Manifest as Manifest
    from hubmerge.merging.engine import merge as merge
    from hubmerge.merging.plan import Expert as Expert
    from hubmerge.merging.plan import MergePlan as MergePlan
    from hubmerge.merging.registry import METHODS as METHODS
    from hubmerge.merging.registry import method as method
    from hubmerge.merging.registry import parse_params as parse_params
    from hubmerge.refs import ModelRef as ModelRef
    from hubmerge.refs import parse_ref as parse_ref
    from hubmerge.scores import Score as Score
    from hubmerge.scores import upcycling as upcycling
    from hubmerge.weights.checkpoint import Checkpoint as Checkpoint
    from hubmerge.weights.checkpoint import open_checkpoint as open_checkpoint
    from hubmerge.weights.task_vector import TaskVector as TaskVector

__version__ = "0.1.0"

_MODULES = {
    "METHODS": "merging.registry",
    "Checkpoint": "weights.checkpoint",
    "Expert": "merging.plan",
    "HubmergeError": "errors",
    "Manifest": "manifest",
    "MergePlan": "merging.plan",
    "ModelRef": "refs",
    "PushSteps": "callbacks.push_steps",
    "Score": "scores",
    "TaskVector": "weights.task_vector",
    "load_moe": "flows.load",
    "merge": "merging.engine",
    "method": "merging.registry",
    "open_checkpoint": "weights.checkpoint",
    "parse_params": "merging.registry",
    "parse_ref": "refs",
    "upcycling": "scores",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hubmerge' has no attribute {name!r}")
    return getattr(import_module(f"hubmerge.{_MODULES[name]}"), name)
