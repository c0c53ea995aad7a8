"""Adapters, using peft: a few trained weights on top of a frozen base model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.models.config import read_config
from hubmerge.models.fused_attention import keep_base_weights_exact
from hubmerge.models.language_model import LanguageModel
from hubmerge.models.layers import (
    ia3_layers,
    linear_layers,
    named_layers,
    saved_modules,
    target_modules,
)
from hubmerge.models.loading import Model
from hubmerge.models.open_clip_folder import OpenClip
from hubmerge.refs import printable
from hubmerge.specs import TrainSpec
from hubmerge.weights.checkpoint import open_checkpoint

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT_TYPES = ("LORA", "IA3", "PREFIX_TUNING")  # DoRA is a LoRA to peft
_PREFIX_WEIGHT = "prompt_encoder.default.embedding.weight"
# What decides how the weights of an adapter are used; a prefix has none of them.
_SAME_FIELDS = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")
_WRONG_BASE_HINT = "Apply it to the base that it was trained from."


@dataclass(frozen=True)
class AdaptedModel:
    """A model with an adapter: `model` is used as before, and only the adapter is trained."""

    model: Model
    peft_model: PeftModel
    layout: str = "peft"

    @property
    def module(self) -> PeftModel:
        """The module whose state dict `save` takes."""
        return self.peft_model

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write adapter_model.safetensors and adapter_config.json, with reproducible bytes.

        `state` has the names of `peft_model.state_dict()` and replaces its values.
        """
        tensors = {n: t.detach().cpu().contiguous() for n, t in self._weights(state).items()}
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(_config_fields(self.peft_model), indent=2, sort_keys=True)
        (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Put the weights of a saved adapter into this one, in place, to train it further.

        Raises CheckpointError for one of other modules, another size or another scaling.
        """
        _check_safe(folder)
        saved, ours = read_config(folder / ADAPTER_CONFIG), self.peft_model.active_peft_config
        for key in _SAME_FIELDS:
            if saved.get(key) != getattr(ours, key, None):
                raise CheckpointError(
                    f"{folder} has {key} {printable(str(saved.get(key)))[:40]}, and this run has "
                    f"{getattr(ours, key, None)}.",
                    "Leave the options of the adapter out: they are those of its manifest.",
                )
        _check_complete(self, folder)
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        try:
            set_peft_model_state_dict(self.peft_model, tensors)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = printable(" ".join(str(error).split()))[:400]
            raise CheckpointError(f"{folder} does not fit this run: {reason}") from error

    def _weights(self, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if state is not None and self.peft_model.active_peft_config.is_prompt_learning:
            # peft would read them from the module and ignore `state`.
            return {"prompt_embeddings": state[_PREFIX_WEIGHT]}
        # save_embedding_layers="auto" would ask the Hub about the base model.
        return cast(
            "dict[str, Tensor]",
            get_peft_model_state_dict(
                self.peft_model, None if state is None else dict(state), save_embedding_layers=False
            ),
        )


def add_adapter(model: Model, spec: TrainSpec, base_id: str, base_sha: str) -> AdaptedModel:
    """Add a new adapter to a model, in place; its initial values depend on `spec.seed` only.

    LoRA (arXiv 2106.09685) and DoRA (2402.09353) adapt every linear layer, or those that the spec
    names, and may train modules whole beside them; (IA)^3 (2205.05638)
    scales keys, values and feed-forward inputs; prefix tuning (2101.00190) has `spec.rank` virtual
    tokens. `base_id` and `base_sha` are recorded in the adapter's config as its base model. Raises
    UsageError if the method does not support the model.
    """
    _check_fits(model, spec)
    config = _CONFIG_BUILDERS[spec.tune](model, spec)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns that it records the folder as the base's name
        torch.default_generator.manual_seed(spec.seed)
        peft_model = get_peft_model(model.module, config)
    peft_model.active_peft_config.base_model_name_or_path = base_id
    peft_model.active_peft_config.revision = base_sha
    return _adapted_model(model, peft_model)


def apply_adapter(model: Model, folder: Path) -> AdaptedModel:
    """Load a saved adapter into its base model, in place, for evaluation.

    Raises CheckpointError for pickles, for settings that read other files or run other code, and
    for weights that do not fit the base: missing, unexpected, or of another shape.
    """
    _check_safe(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `_check_complete` raises for what peft warns about
            peft_model = PeftModel.from_pretrained(model.module, str(folder), torch_device="cpu")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = printable(" ".join(str(error).split()))[:400]
        raise CheckpointError(f"{folder} does not fit this {model.name}: {reason}") from error
    adapted = _adapted_model(model, peft_model.eval())
    _check_complete(adapted, folder)
    return adapted


def _adapted_model(model: Model, peft_model: PeftModel) -> AdaptedModel:
    keep_base_weights_exact(peft_model)
    if isinstance(model, LanguageModel) and peft_model.active_peft_config.is_prompt_learning:
        model = replace(model, forward_module=peft_model, shares_encoder=False)
    return AdaptedModel(model, peft_model)


def _check_fits(model: Model, spec: TrainSpec) -> None:
    if spec.tune == "prefix" and not isinstance(model, LanguageModel):
        raise UsageError(
            f"Prefix tuning is for language models only; this is a {model.name}.",
            "Use `tune: lora`.",
        )
    if spec.tune == "prefix" and spec.recompute:
        raise UsageError("Prefix tuning cannot recompute activations.", "Leave `recompute` out.")
    if isinstance(model, OpenClip) and spec.tune in ("dora", "ia3"):
        raise UsageError(
            f"peft does not support {spec.tune} for open_clip's attention, where queries, keys and "
            "values are one matrix.",
            "Use `tune: lora`, or a base in transformers' layout.",
        )
    if isinstance(model, OpenClip) and spec.tune == "lora" and spec.dropout:
        raise UsageError(
            "peft ignores the dropout of a LoRA on open_clip's attention.",
            "Leave `dropout` out, or use a base in transformers' layout.",
        )


def _lora(model: Model, spec: TrainSpec) -> PeftConfig:
    is_dora, alpha = spec.tune == "dora", spec.lora_alpha
    if spec.target_names:
        layers = named_layers(model, spec.target_names, embeddings=not is_dora)
    else:
        layers = linear_layers(model)
    saved = saved_modules(model, spec.saved_names)
    _check_disjoint(layers, saved)
    return LoraConfig(
        task_type=_task_type(model),
        r=spec.rank,
        lora_alpha=cast(int, int(alpha) if alpha.is_integer() else alpha),
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        use_dora=is_dora,
        target_modules=target_modules(model.module, layers),
        modules_to_save=saved or None,
        fan_in_fan_out=_are_transposed(model.module, layers),
    )


def _check_disjoint(layers: Collection[str], saved: Collection[str]) -> None:
    """Raise UsageError for a module that is to be adapted and to be trained whole."""
    if both := sorted({*layers} & {*saved}):
        raise UsageError(
            f"{', '.join(both)} cannot be adapted and trained whole.",
            "Name the other layers with --target-modules.",
        )


def _ia3(model: Model, spec: TrainSpec) -> PeftConfig:
    layers, inputs = ia3_layers(model)
    return IA3Config(
        task_type=_task_type(model),
        target_modules=target_modules(model.module, layers),
        feedforward_modules=target_modules(model.module, inputs),
        fan_in_fan_out=_are_transposed(model.module, layers),
    )


def _prefix(model: Model, spec: TrainSpec) -> PeftConfig:
    config = PrefixTuningConfig(task_type=_task_type(model), num_virtual_tokens=spec.rank)
    model_config = model.module.config
    if hasattr(model_config, "d_kv"):  # T5: peft assumes width = heads x d_kv, which may not hold
        config.num_attention_heads = model_config.num_heads
        config.token_dim = model_config.num_heads * model_config.d_kv
    return config


_CONFIG_BUILDERS = {"lora": _lora, "dora": _lora, "ia3": _ia3, "prefix": _prefix}


def _task_type(model: Model) -> str | None:
    """peft's task type for a language model; None for an encoder, which needs no wrapper."""
    if isinstance(model, LanguageModel):
        return "SEQ_2_SEQ_LM" if model.is_seq2seq else "CAUSAL_LM"
    return None


def _are_transposed(module: nn.Module, layers: tuple[str, ...]) -> bool:
    return isinstance(module.get_submodule(layers[0]), Conv1D)


def _config_fields(peft_model: PeftModel) -> dict[str, Any]:
    """The config to write; sets are sorted, because peft writes them in arbitrary order."""
    fields = {**peft_model.active_peft_config.to_dict(), "inference_mode": True}
    if fields["task_type"] is None:
        base = type(peft_model.get_base_model())
        fields["auto_mapping"] = {
            "base_model_class": base.__name__,
            "parent_library": base.__module__,
        }
    return {key: sorted(v) if isinstance(v, set) else v for key, v in fields.items()}


def _check_safe(folder: Path) -> None:
    if not (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(f"{folder} is not an adapter: {ADAPTER_CONFIG} is missing.")
    config = read_config(folder / ADAPTER_CONFIG)
    if config.get("peft_type") not in _PEFT_TYPES:
        raise CheckpointError(
            f"{folder} is an adapter of type {config.get('peft_type')!r}, which is not supported.",
            "Use LoRA, DoRA, (IA)^3 or prefix tuning.",
        )
    # Some of these import modules by name, others unpickle a file or change the base.
    unsupported = [key for key, value in config.items() if key.endswith("_config") and value]
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        unsupported.append("init_lora_weights")
    if unsupported:
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} sets {unsupported[0]!r}, which is not supported."
        )
    if open_checkpoint(folder).kind != "lora":  # raises for pickles
        raise CheckpointError(f"{folder} has full model weights next to an adapter.")


def _check_complete(adapted: AdaptedModel, folder: Path) -> None:
    read, used = load_file(folder / ADAPTER_WEIGHTS), adapted._weights(None)
    if missing := sorted(set(used) - set(read)):
        raise CheckpointError(f"{folder} lacks {missing[0]!r} of the adapter.", _WRONG_BASE_HINT)
    if unexpected := sorted(set(read) - set(used)):
        raise CheckpointError(
            f"{folder} has {unexpected[0]!r}, which does not exist in this {adapted.model.name}.",
            _WRONG_BASE_HINT,
        )
