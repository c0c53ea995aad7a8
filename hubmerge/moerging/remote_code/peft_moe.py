"""A mixture of LoRA experts in plain PEFT: Arrow layers with the trained router."""

import json
from pathlib import Path
from typing import Any

from peft import ArrowConfig, LoraConfig, PeftModel
from safetensors.torch import load_file


def load_peft_moe(base: Any, folder: Path) -> PeftModel:
    """Load an exported mixture of experts into its base, a model of transformers, in place."""
    config = json.loads((folder / "moe_config.json").read_text(encoding="utf-8"))
    experts = {f"task_{n}": expert["name"] for n, expert in enumerate(config["experts"])}
    folders = {task: str(folder / "experts" / name) for task, name in experts.items()}
    model = PeftModel.from_pretrained(base, folders.pop("task_0"), adapter_name="task_0")
    for task, expert_folder in folders.items():
        model.load_adapter(expert_folder, adapter_name=task)
    arrow = ArrowConfig(top_k=config["top_k"], router_temperature=config["router"]["temperature"])
    arrow.task_adapter_names, arrow.gks_adapter_names = list(experts), []
    # Like create_arrow_model, but only for these layers, not for others with the same last name.
    lora: Any = model.peft_config["task_0"]
    routing = LoraConfig(r=lora.r, target_modules=lora.target_modules, arrow_config=arrow)
    model.add_adapter("arrow_router", routing)
    model.set_adapter("arrow_router")
    for name, rows in load_file(folder / "router.safetensors").items():
        layer: Any = model.get_submodule(f"base_model.model.{name.removesuffix('.router.weight')}")
        router, lora_A = layer.lora_arrow["arrow_router"], layer.lora_A["task_0"].weight
        router.register_buffer("prototypes", rows.to(lora_A), persistent=False)
        router._protos_ready = True  # otherwise PEFT would compute its own prototypes
    return model.eval()
