"""What a model in somebody's loop is: its base, how it is tuned, and which files it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from hubmerge.refs import ModelRef, parse_ref

_ADAPTER_FIELDS = {
    "r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_rslora": "rslora",
    "target_modules": "target_modules",
}  # fmt: skip


@dataclass(frozen=True)
class ModelFacts:
    """The class of a model, its base as its library recorded it, and how it is tuned.

    `base` is None for a model that was not loaded from a name. `settings` are those of its adapter.
    `parameters` counts all of them, `trained` those that training changes.
    """

    class_name: str
    base: ModelRef | None
    layout: str
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    parameters: int = 0
    trained: int = 0

    @property
    def identity(self) -> list[Any]:
        """What of it decides which run this is."""
        settings = {key: str(value) for key, value in self.settings.items()}
        return [self.class_name, str(self.base), settings, self.parameters, self.trained]


def describe_model(model: nn.Module) -> ModelFacts:
    """The facts of a model that no wrapper hides."""
    adapter = adapter_config(model)
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ModelFacts(
        class_name=type(model).__name__.removeprefix("FSDP"),  # as torch names a sharded model
        base=_base_ref(_base_name(model, adapter)),
        layout="transformers" if adapter is None else "peft",
        settings={"tune": "full"} if adapter is None else _adapter_settings(adapter),
        parameters=sum(count for count, _ in counts),
        trained=sum(count for count, is_trained in counts if is_trained),
    )


def is_sentence_transformer(model: nn.Module) -> bool:
    """Whether a model is made of the modules of sentence-transformers."""
    return any(cls.__module__.startswith("sentence_transformers.") for cls in type(model).__mro__)


def inner_model(model: nn.Module) -> nn.Module:
    """The network of transformers in a model of sentence-transformers; other models unchanged."""
    if not is_sentence_transformer(model):
        return model
    children = (getattr(child, "auto_model", None) for child in model.children())
    return next((child for child in children if isinstance(child, nn.Module)), model)


def adapter_config(model: nn.Module) -> Any:
    """The peft configuration of the active adapter, None for a model without one."""
    configs = getattr(inner_model(model), "peft_config", None)
    if not configs:
        return None
    active = getattr(inner_model(model), "active_adapter", None)
    name = active() if callable(active) else active
    return configs.get(name if isinstance(name, str) else None) or next(iter(configs.values()))


def _base_name(model: nn.Module, adapter: Any) -> str:
    if adapter is not None and adapter.base_model_name_or_path:
        revision = f"@{adapter.revision}" if adapter.revision else ""
        return f"{adapter.base_model_name_or_path}{revision}"
    config = getattr(inner_model(model), "config", None)
    return str(getattr(config, "_name_or_path", "") or "")


def _base_ref(name: str) -> ModelRef | None:
    if not name:
        return None
    if Path(name).is_dir():
        return ModelRef(path=Path(name).absolute())
    return parse_ref(name)


def _adapter_settings(adapter: Any) -> dict[str, Any]:
    fields = {ours: getattr(adapter, theirs, None) for theirs, ours in _ADAPTER_FIELDS.items()}
    kind = getattr(adapter.peft_type, "value", adapter.peft_type)
    settings: dict[str, Any] = {"tune": str(kind).lower()}
    for name, value in fields.items():
        if isinstance(value, set | list | tuple):
            settings[name] = ", ".join(sorted(map(str, value)))
        elif isinstance(value, str | int | float):
            settings[name] = value
    return settings
