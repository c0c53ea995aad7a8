"""The modules of an embedding model, as sentence-transformers saves them in a folder.

modules.json lists them in order: a transformer, whose files are in the folder itself, then pooling
and others, each in a subfolder such as 1_Pooling, with weights of its own if it has any. Nothing is
imported: modules that are not sentence-transformers' own would run code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hubmerge.errors import CheckpointError
from hubmerge.refs import printable

MODULES_JSON = "modules.json"
MODEL_CONFIG = "config_sentence_transformers.json"
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
MODULE_WEIGHTS = "model.safetensors"
_PICKLED_WEIGHTS = "pytorch_model.bin"
_LIBRARY = "sentence_transformers."
_FOLDER = re.compile(r"\d+_\w+")
# Modules that are merged: those without weights of their own, and those whose weights are tensors
# of one file.
MERGED_MODULES = frozenset({
    *("Transformer", "MLMTransformer", "StaticEmbedding", "Pooling", "SpladePooling"),
    *("Dense", "Normalize", "Dropout", "LayerNorm"),
})  # fmt: skip
# The key of each way of pooling in folders before sentence-transformers 6, in the order in which
# their results are put together.
_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_EMBEDDING = "sentence_embedding"
SAVE_AGAIN_HINT = (
    "Save it again with sentence-transformers 5 or newer: "
    "`SentenceTransformer(FOLDER).save_pretrained(NEW_FOLDER)`."
)


@dataclass(frozen=True)
class EmbeddingModule:
    """One module: the name of its class, its subfolder ("" for the folder), and its settings.

    `settings` are those of its config.json that decide what it computes, spelled alike for all
    versions of sentence-transformers. `is_library` is whether the class is sentence-transformers'.
    """

    kind: str
    path: str
    settings: Mapping[str, Any]
    is_library: bool = True

    def __str__(self) -> str:
        listed = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{printable(self.kind)}({printable(listed)})" if listed else printable(self.kind)


@dataclass(frozen=True)
class EmbeddingStack:
    """The modules of a folder in order, and what belongs to all of them.

    `prompts` maps a name to the text that is put before texts, without empty ones;
    `default_prompt` is the one for texts that are neither queries nor documents. `max_tokens` is
    the length to which texts are cut, None if it is the model's own.
    """

    folder: Path
    modules: tuple[EmbeddingModule, ...]
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    similarity: str = "cosine"
    max_tokens: int | None = None
    lower_case: bool = False

    @cached_property
    def weight_files(self) -> tuple[str, ...]:
        """The weights of modules in subfolders, by their path in the folder."""
        paths = [module.path for module in self.modules if _FOLDER.fullmatch(module.path)]
        return tuple(f"{path}/{MODULE_WEIGHTS}" for path in paths if _is_file(self.folder, path))

    @property
    def is_plain(self) -> bool:
        """Whether it is mean pooling without prompts, which is what a folder without modules is."""
        pooling = [m.settings.get("modes", ["mean"]) for m in self.modules if m.kind == "Pooling"]
        others = {module.kind for module in self.modules} - {"Transformer", "Pooling", "Normalize"}
        has_settings = self.prompts or self.lower_case or self.similarity != "cosine"
        return not others and all(modes == ["mean"] for modes in pooling) and not has_settings

    def files(self) -> tuple[str, ...]:
        """The files that describe the modules, by their path, without those of weights."""
        names = [MODULES_JSON, MODEL_CONFIG, *TRANSFORMER_CONFIGS]
        names += [f"{module.path}/config.json" for module in self.modules if module.path]
        return tuple(name for name in names if (self.folder / name).is_file())


def read_stack(folder: Path) -> EmbeddingStack | None:
    """The modules of a folder, None without modules.json.

    Raises CheckpointError for files that cannot be read, and for a module outside the folder.
    """
    listed = _read_json(folder / MODULES_JSON)
    if listed is None:
        return None
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise CheckpointError(f"{folder / MODULES_JSON} is not a list of modules.")
    modules = tuple(_read_module(folder, entry) for entry in listed)
    model = _read_object(folder / MODEL_CONFIG)
    transformer: Mapping[str, Any] = {}
    for name in reversed(TRANSFORMER_CONFIGS):
        transformer = _read_object(folder / name) or transformer
    prompts = {
        str(name): text
        for name, text in (model.get("prompts") or {}).items()
        if isinstance(text, str) and text
    }
    return EmbeddingStack(
        folder,
        modules,
        prompts,
        prompts.get(str(model.get("default_prompt_name")), ""),
        str(model.get("similarity_fn_name") or "cosine"),
        _positive(transformer.get("max_seq_length")),
        bool(transformer.get("do_lower_case")),
    )


def module_weight_files(folder: Path) -> tuple[str, ...]:
    """The weights of the modules of a folder besides its own, by path; empty without modules.

    Raises CheckpointError for weights that are only pickles.
    """
    stack = read_stack(folder)
    if stack is None:
        return ()
    for module in stack.modules:
        pickled = folder / module.path / _PICKLED_WEIGHTS
        has_weights = f"{module.path}/{MODULE_WEIGHTS}" in stack.weight_files
        if module.path and not has_weights and pickled.is_file():
            raise CheckpointError(
                f"{folder / module.path} has its weights only as pickles, which can run code when "
                "they are read.",
                SAVE_AGAIN_HINT,
            )
    return stack.weight_files


def check_known_modules(stack: EmbeddingStack, allowed: frozenset[str] = MERGED_MODULES) -> None:
    """Raise CheckpointError for a module that is not one of these classes."""
    for problem, hint in find_unknown_modules(stack, allowed):
        raise CheckpointError(problem, hint)


def find_unknown_modules(
    stack: EmbeddingStack, allowed: frozenset[str] = MERGED_MODULES
) -> Iterator[tuple[str, str]]:
    """A sentence and a hint for each module that is not one of these classes."""
    for number, module in enumerate(stack.modules):
        name = printable(module.kind)
        if not module.is_library:
            yield (
                f"{stack.folder} has the module {name}, which runs code of its own.",
                "Use a model whose modules are sentence-transformers' own; without its "
                f"{MODULES_JSON}, the transformer alone is used.",
            )
        elif module.kind not in allowed:
            yield (
                f"{stack.folder} has the module {name}, which is not supported.",
                f"Supported are {', '.join(sorted(allowed))}; without its {MODULES_JSON}, the "
                "transformer alone is used.",
            )
        elif number == 0 and module.path:
            yield f"{stack.folder} has its transformer in {module.path}.", SAVE_AGAIN_HINT


def _read_module(folder: Path, entry: Mapping[str, Any]) -> EmbeddingModule:
    full_name, path = str(entry.get("type", "")), str(entry.get("path", ""))
    if path and (not re.fullmatch(r"\w[\w.-]*", path) or (folder / path).is_symlink()):
        raise CheckpointError(
            f"{folder / MODULES_JSON} has a module in {printable(path)!r}, which is not a "
            "subfolder."
        )
    kind = full_name.rpartition(".")[2]
    config = _read_object(folder / path / "config.json") if path else {}
    is_library = full_name.startswith(_LIBRARY)
    return EmbeddingModule(kind, path, _settings(kind, config), is_library)


def _settings(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result of a module; the size of what it takes follows from the model."""
    if kind == "Pooling":
        modes = config.get("pooling_mode")
        if modes is None:
            modes = [mode for key, mode in _POOLING_KEYS.items() if config.get(key)] or "mean"
        modes = [modes] if isinstance(modes, str) else list(map(str, modes))
        return {"modes": modes, "include_prompt": bool(config.get("include_prompt", True))}
    if kind == "Dense":
        activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
        return {
            "in_features": config.get("in_features"),
            "out_features": config.get("out_features"),
            "bias": bool(config.get("bias", True)),
            "activation_function": activation.rpartition(".")[2],
            "use_residual": bool(config.get("use_residual", False)),
            **_inputs(config),
        }
    return _inputs(config) if kind == "Normalize" else dict(config)


def _inputs(config: Mapping[str, Any]) -> dict[str, Any]:
    """Where a module reads and writes, if that is not the embedding of a text."""
    names = {key: config.get(key) for key in ("module_input_name", "module_output_name")}
    return {key: name for key, name in names.items() if name not in (None, _EMBEDDING)}


def _is_file(folder: Path, path: str) -> bool:
    return (folder / path / MODULE_WEIGHTS).is_file()


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _read_object(path: Path) -> Mapping[str, Any]:
    value = _read_json(path)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object.")
    return value or {}


def _read_json(path: Path) -> Any:
    """The content of a file, None if it does not exist."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON.") from error
