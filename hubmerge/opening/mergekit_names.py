"""The names that mergekit has for the models of a merge."""

from __future__ import annotations

from hubmerge.errors import UsageError, raise_together
from hubmerge.opening.merge_inputs import MergeInputs
from hubmerge.opening.opened_model import OpenedModel


def mergekit_names(inputs: MergeInputs) -> tuple[str, tuple[str, ...]]:
    """The name of the base, and those of the experts; models on a Hub are named at their commit.

    Raises UsageError for those that mergekit cannot name.
    """
    problems: list[str] = []
    base = _name(inputs.base, problems)
    experts = [
        f"{base}+{_name(model, problems)}"
        if model.checkpoint.kind == "lora"
        else _name(model, problems)
        for model in inputs.experts
    ]
    raise_together(UsageError, problems, "Copy them to folders that mergekit can name.")
    return base, tuple(experts)


def _name(model: OpenedModel, problems: list[str]) -> str:
    ref = model.revision.ref
    if ref.subfolder:
        problems.append(f"mergekit cannot name {ref}, which is a folder of a repository.")
    name = str(ref) if ref.is_local else str(ref.repo_id)
    if "@" in name or "+" in name:
        problems.append(f"mergekit cannot name {name}: '@' and '+' have a meaning there.")
    return name if ref.is_local else f"{name}@{model.revision.sha}"
