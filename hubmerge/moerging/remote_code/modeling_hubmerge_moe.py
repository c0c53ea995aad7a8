"""A mixture of LoRA experts, for AutoModel.from_pretrained(..., trust_remote_code=True).

Opens the base that moe_config.json pins, with its class in transformers, and adds experts and a
router to its linear layers: arXiv 2506.14126, equation 2. Reads JSON and safetensors, runs no other
code, and fetches the base at one commit. The result has the base's class; it is not for saving.
"""

from __future__ import annotations

import json
import re
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils.hub import cached_file

# The options of from_pretrained that are used to fetch files, and to open the base.
_FETCH_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
_OPEN_OPTIONS = ("attn_implementation", "device_map", "dtype")


class ExportedMoeLinear(nn.Module):
    """W x + b plus, for every token, its top-k experts p_e s_e B_e A_e x.

    `lora_A` [E, R, I], `lora_B` [E, O, R], `scale` [E], `router` [E, I]; p is the softmax over the
    top-k of |router x| / temperature, or of router x / temperature if `signed`.
    """

    scale: Tensor

    def __init__(
        self, base: Any, parts: dict[str, Tensor], top_k: int, settings: dict[str, Any]
    ) -> None:
        super().__init__()
        self.base = base
        device, dtype = base.weight.device, base.weight.dtype
        self.lora_A = nn.Parameter(parts["lora_A"].to(device, dtype))
        self.lora_B = nn.Parameter(parts["lora_B"].to(device, dtype))
        self.router = nn.Parameter(parts["router"].to(device, torch.float32))
        self.register_buffer("scale", parts["scale"].to(device, torch.float32), persistent=False)
        self.top_k, self.signed = top_k, settings["signed"]
        self.temperature = settings["temperature"]

    @property
    def weight(self) -> Tensor:  # T5 reads it to learn the dtype
        weight: Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.base.bias
        return bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.router) / self.temperature
        top, chosen = (logits if self.signed else logits.abs()).topk(self.top_k)
        share = torch.zeros_like(logits).scatter(-1, chosen, top.softmax(-1)) * self.scale
        low = torch.einsum("...i,eri->...er", x.to(y.dtype), self.lora_A)
        low = low * share.to(y.dtype).unsqueeze(-1)
        return y + torch.einsum("...er,eor->...o", low, self.lora_B)


class HubmergeMixture:
    """The class that auto_map names: `from_pretrained` returns the base with experts added."""

    @classmethod
    def register_for_auto_class(cls, auto_class: object) -> None:
        """Do nothing; AutoModel requires this method."""

    @classmethod
    def from_pretrained(
        cls, source: str, *args: object, config: Any, revision: str | None = None, **options: Any
    ) -> Any:
        """The mixture of experts at `source`, a folder or a repository, at `revision`.

        In float32 unless `dtype` is given; options not listed above are ignored. Raises ValueError
        for invalid names in moe_config.json.
        """
        fetch_options = {k: options[k] for k in _FETCH_OPTIONS if k in options}

        def fetch(name: str) -> str:
            return str(cached_file(source, name, revision=revision, **fetch_options))

        moe = _read_json(fetch("moe_config.json"))
        _check_names(moe)
        how = {"dtype": "float32", **{k: options[k] for k in _OPEN_OPTIONS if k in options}}
        model = _open_base(moe, config.architectures[0], {**fetch_options, **how})
        router = load_file(fetch("router.safetensors"))
        folders = [f"experts/{expert['name']}" for expert in moe["experts"]]
        experts = [load_file(fetch(f"{folder}/adapter_model.safetensors")) for folder in folders]
        adapters = [_read_json(fetch(f"{folder}/adapter_config.json")) for folder in folders]
        for path in moe["modules"]:
            parts = {
                "lora_A": _stack(experts, f"base_model.model.{path}.lora_A.weight"),
                "lora_B": _stack(experts, f"base_model.model.{path}.lora_B.weight"),
                "scale": torch.tensor([_scale(adapter, path) for adapter in adapters]),
                "router": router[f"{path}.router.weight"],
            }
            layer = ExportedMoeLinear(model.get_submodule(path), parts, moe["top_k"], moe["router"])
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer)
        return model.eval()


def _read_json(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        parsed: dict[str, Any] = json.load(file)
    return parsed


def _check_names(moe: dict[str, Any]) -> None:
    """Raise ValueError for invalid names, as they become paths and URLs."""
    names = [(expert["name"], r"[a-z0-9](?:[a-z0-9_-]|\.(?!\.))*") for expert in moe["experts"]]
    names += [(path, r"\w+(?:\.\w+)*") for path in moe["modules"]]
    names += [(moe["base_model"], r"\w[\w-]*(?:\.[\w-]+)*/\w[\w-]*(?:\.[\w-]+)*")]
    names += [(moe["base_revision"], r"[0-9a-f]{40}")]
    for name, pattern in names:
        if not re.fullmatch(pattern, str(name), re.ASCII):
            raise ValueError(f"moe_config.json has {name!r}, which is not a valid name.")


def _open_base(moe: dict[str, Any], architecture: str, options: dict[str, Any]) -> Any:
    kind: Any = getattr(transformers, architecture, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ValueError(f"{architecture!r} is not a model of transformers.")
    # Always set: otherwise the base's configuration could name code on the Hub.
    options.setdefault("attn_implementation", "sdpa" if kind._supports_sdpa else "eager")
    return kind.from_pretrained(
        moe["base_model"],
        revision=moe["base_revision"],
        use_safetensors=True,
        trust_remote_code=False,
        **options,
    )


def _stack(experts: list[dict[str, Tensor]], name: str) -> Tensor:
    return torch.stack([expert[name] for expert in experts])


def _scale(adapter: dict[str, Any], path: str) -> float:
    alphas = adapter.get("alpha_pattern") or {}
    return float(alphas.get(f"^{re.escape(path)}", adapter["lora_alpha"]) / adapter["r"])
