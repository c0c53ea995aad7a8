"""Adapters, by peft: a few weights beside a base that stays as it is."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.models.config import read_config
from hubmerge.models.fused_attention import keep_bases_exact
from hubmerge.models.language_model import LanguageModel
from hubmerge.models.layers import ia3_layers, linear_layers, targets
from hubmerge.models.loading import Model
from hubmerge.models.open_clip_folder import OpenClip
from hubmerge.refs import printable
from hubmerge.specs import TrainSpec
from hubmerge.weights.checkpoint import open_checkpoint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KINDS = ("LORA", "IA3", "PREFIX_TUNING")  # DoRA is a LoRA to peft
_PREFIX = "prompt_encoder.default.embedding.weight"
_NO_BASE = "Apply it to the base that it was trained from."


@dataclass(frozen=True)
class Adapted:
    """A model with an adapter in it: `model` runs as before, and only the adapter is trained."""

    model: Model
    peft: PeftModel
    layout: str = "peft"

    @property
    def module(self) -> PeftModel:
        """What `save`'s state is the state of."""
        return self.peft

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write adapter_model.safetensors and adapter_config.json, always the same bytes.

        `state` has the names of `peft.state_dict()` and replaces its values.
        """
        tensors = {n: t.detach().cpu().contiguous() for n, t in self._weights(state).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(_said(self.peft), indent=2, sort_keys=True)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")

    def _weights(self, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if state is not None and self.peft.active_peft_config.is_prompt_learning:
            return {"prompt_embeddings": state[_PREFIX]}  # peft would take them from the module
        # Whether to save embeddings is not peft's to guess: it would ask the Hub about the base.
        return cast(
            "dict[str, Tensor]",
            get_peft_model_state_dict(
                self.peft, None if state is None else dict(state), save_embedding_layers=False
            ),
        )


def adapt(model: Model, spec: TrainSpec, base_id: str, base_sha: str) -> Adapted:
    """Put a new adapter into a model, in place; its first values hang on `spec.seed` alone.

    LoRA (arXiv 2106.09685) and DoRA (2402.09353) are on every linear layer, (IA)^3 (2205.05638) is
    on keys, values and feed-forward inputs; prefix tuning (2101.00190) has `spec.rank` virtual
    tokens. `base_id` and `base_sha` are what the adapter says it belongs to. Raises UsageError
    where the method does not fit the model.
    """
    _check_fits(model, spec)
    config = _CONFIGS[spec.tune](model, spec)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft tells that it takes the folder for the base's name
        torch.default_generator.manual_seed(spec.seed)
        peft = get_peft_model(model.module, config)
    peft.active_peft_config.base_model_name_or_path = base_id
    peft.active_peft_config.revision = base_sha
    return _adapted(model, peft)


def apply_adapter(model: Model, folder: Path) -> Adapted:
    """Put a published adapter into an opened base, in place, for evaluation.

    Raises CheckpointError for pickles, for settings that read other files or run other code, and
    for weights that do not fit the base: one too few, one too many, or of another shape.
    """
    _check_harmless(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what peft only warns of is an error below
            peft = PeftModel.from_pretrained(model.module, str(folder), torch_device="cpu")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = printable(" ".join(str(error).split()))[:400]
        raise CheckpointError(f"{folder} does not fit this {model.name}: {reason}") from error
    adapted = _adapted(model, peft.eval())
    _check_used(adapted, folder)
    return adapted


def _adapted(model: Model, peft: PeftModel) -> Adapted:
    keep_bases_exact(peft)
    if isinstance(model, LanguageModel) and peft.active_peft_config.is_prompt_learning:
        model = replace(model, runs=peft, shares_encoder=False)
    return Adapted(model, peft)


def _check_fits(model: Model, spec: TrainSpec) -> None:
    if spec.tune == "prefix" and not isinstance(model, LanguageModel):
        raise UsageError(
            f"Prefix tuning is for language models, and this is a {model.name}.",
            "Use `tune: lora`.",
        )
    if spec.tune == "prefix" and spec.recompute:
        raise UsageError("Prefix tuning cannot recompute activations.", "Leave `recompute` out.")
    if isinstance(model, OpenClip) and spec.tune in ("dora", "ia3"):
        raise UsageError(
            f"peft has no {spec.tune} for open_clip's attention, whose queries, keys and values "
            "are one matrix.",
            "Use `tune: lora`, or a base in transformers' layout.",
        )
    if isinstance(model, OpenClip) and spec.tune == "lora" and spec.dropout:
        raise UsageError(
            "peft leaves out the dropout of a LoRA on open_clip's attention.",
            "Leave `dropout` out, or use a base in transformers' layout.",
        )


def _lora(model: Model, spec: TrainSpec) -> PeftConfig:
    layers = linear_layers(model)
    return LoraConfig(
        task_type=_task_type(model),
        r=spec.rank,
        lora_alpha=cast(int, int(spec.scaling) if spec.scaling.is_integer() else spec.scaling),
        lora_dropout=spec.dropout,
        use_rslora=spec.rslora,
        use_dora=spec.tune == "dora",
        target_modules=targets(model.module, layers),
        fan_in_fan_out=_are_transposed(model.module, layers),
    )


def _ia3(model: Model, spec: TrainSpec) -> PeftConfig:
    layers, inputs = ia3_layers(model)
    return IA3Config(
        task_type=_task_type(model),
        target_modules=targets(model.module, layers),
        feedforward_modules=targets(model.module, inputs),
        fan_in_fan_out=_are_transposed(model.module, layers),
    )


def _prefix(model: Model, spec: TrainSpec) -> PeftConfig:
    config = PrefixTuningConfig(task_type=_task_type(model), num_virtual_tokens=spec.rank)
    said = model.module.config
    if hasattr(said, "d_kv"):  # a T5's heads need not divide its width, as peft takes for granted
        config.num_attention_heads, config.token_dim = said.num_heads, said.num_heads * said.d_kv
    return config


_CONFIGS = {"lora": _lora, "dora": _lora, "ia3": _ia3, "prefix": _prefix}


def _task_type(model: Model) -> str | None:
    """What peft wraps around language models; an encoder runs as it is."""
    if isinstance(model, LanguageModel):
        return "SEQ_2_SEQ_LM" if model.is_seq2seq else "CAUSAL_LM"
    return None


def _are_transposed(module: nn.Module, layers: tuple[str, ...]) -> bool:
    return isinstance(module.get_submodule(layers[0]), Conv1D)


def _said(peft: PeftModel) -> dict[str, Any]:
    """The config for a file; peft would write its sets in another order on another day."""
    said = {**peft.active_peft_config.to_dict(), "inference_mode": True}
    if said["task_type"] is None:
        base = type(peft.get_base_model())
        said["auto_mapping"] = {
            "base_model_class": base.__name__,
            "parent_library": base.__module__,
        }
    return {key: sorted(value) if isinstance(value, set) else value for key, value in said.items()}


def _check_harmless(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no adapter: {CONFIG} is missing.")
    config = read_config(folder / CONFIG)
    if config.get("peft_type") not in _KINDS:
        raise CheckpointError(
            f"{folder} holds an adapter of kind {config.get('peft_type')!r}.",
            "LoRA, DoRA, (IA)^3 and prefix tuning can be opened.",
        )
    # Some of these import modules by name, others unpickle a file or change the base.
    strange = [key for key, value in config.items() if key.endswith("_config") and value]
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        strange.append("init_lora_weights")
    if strange:
        raise CheckpointError(f"{folder / CONFIG} sets {strange[0]!r}, which is not supported.")
    if open_checkpoint(folder).kind != "lora":  # refuses pickles
        raise CheckpointError(f"{folder} holds whole weights beside an adapter.")


def _check_used(adapted: Adapted, folder: Path) -> None:
    read, used = load_file(folder / WEIGHTS), adapted._weights(None)
    if missing := sorted(set(used) - set(read)):
        raise CheckpointError(f"{folder} lacks {missing[0]!r} of its own adapter.", _NO_BASE)
    if beyond := sorted(set(read) - set(used)):
        name = adapted.model.name
        raise CheckpointError(f"{folder} has {beyond[0]!r}, and this {name} has not.", _NO_BASE)
