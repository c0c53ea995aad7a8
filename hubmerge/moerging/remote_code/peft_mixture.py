"""A mixture of LoRA experts in plain PEFT: its Arrow layers, with the trained router in them."""

import json
from pathlib import Path
from typing import Any

from peft import ArrowConfig, LoraConfig, PeftModel
from safetensors.torch import load_file


def load_mixture(base: Any, folder: Path) -> PeftModel:
    """Put the mixture of an exported folder into its base, a model of transformers, in place."""
    said = json.loads((folder / "moe_config.json").read_text(encoding="utf-8"))
    experts = {f"task_{n}": expert["name"] for n, expert in enumerate(said["experts"])}
    places = {task: str(folder / "experts" / name) for task, name in experts.items()}
    model = PeftModel.from_pretrained(base, places.pop("task_0"), adapter_name="task_0")
    for task, place in places.items():
        model.load_adapter(place, adapter_name=task)
    arrow = ArrowConfig(top_k=said["top_k"], router_temperature=said["router"]["temperature"])
    arrow.task_adapter_names, arrow.gks_adapter_names = list(experts), []
    # As create_arrow_model does, but for these layers and no others whose names end alike.
    lora: Any = model.peft_config["task_0"]
    routing = LoraConfig(r=lora.r, target_modules=lora.target_modules, arrow_config=arrow)
    model.add_adapter("arrow_router", routing)
    model.set_adapter("arrow_router")
    for name, rows in load_file(folder / "router.safetensors").items():
        layer: Any = model.get_submodule(f"base_model.model.{name.removesuffix('.router.weight')}")
        router, lora_A = layer.lora_arrow["arrow_router"], layer.lora_A["task_0"].weight
        router.register_buffer("prototypes", rows.to(lora_A), persistent=False)
        router._protos_ready = True  # or PEFT would compute prototypes of its own
    return model.eval()
