"""Which files of a model folder are needed besides its weights, decided by their paths alone.

A tokenizer, a processor, the modules of an embedding model, chat templates and a licence belong to
the model. Weights in other formats, code, pictures and data of the card, and what training leaves
behind do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

# The weights that hubmerge reads, and the same weights in formats that it does not read.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WEIGHT_SUFFIXES = (
    ".safetensors", *PICKLE_SUFFIXES, ".h5", ".msgpack", ".onnx", ".onnx_data", ".onnx.data",
    ".gguf", ".ggml", ".tflite", ".mlmodel", ".ot", ".npz", ".npy", ".joblib", ".index.json",
    ".engine", ".nemo", ".tar", ".tar.gz", ".tgz", ".zip",
)  # fmt: skip
_CODE_SUFFIXES = (
    ".py", ".pyc", ".pyi", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".ps1", ".ipynb", ".js",
    ".ts", ".wasm", ".jar",
)  # fmt: skip
# They belong to the card, which is written anew.
_CARD_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".mp4", ".webm", ".mp3", ".wav", ".pdf",
    ".html", ".csv", ".tsv", ".parquet", ".arrow",
)  # fmt: skip
# The card, what training leaves behind, and the files that hubmerge itself writes.
_LEFT_BEHIND = (
    "hubmerge.json", "hubmerge.lock", "delta.json", "moe_config.json", "routing.json",
    "forgotten.json", "difficulty.json", "task.yaml", "validation.jsonl", "trainer_state.json",
    "training_args.*", "events.out.tfevents*",
    "all_results.json", "train_results.json", "eval_results.json", "trainer_log.jsonl", "latest",
    "adapter_config.json", "import.json", "*.log",
)  # fmt: skip
# The modules of an embedding model are in folders such as 1_Pooling, as in modules.json.
_MODULE_FOLDER = re.compile(r"\d+_\w+")
# Checkpoints, the experts of a mixture, other formats and logs, whatever is in them.
_OTHER_FOLDERS = re.compile(
    r"(checkpoint|step|global_step|epoch|iter)[-_]?\d.*"
    r"|experts|onnx|openvino|coreml|original|runs|logs|wandb"
)
_MODULE_WEIGHTS = "model.safetensors"


def side_files(paths: Iterable[str]) -> tuple[str, ...]:
    """The files, of all paths in a folder, that a model needs besides its weights; sorted.

    Paths have "/". A subfolder that has weights is another model or another format of this one, and
    is left out; the modules of an embedding model are not.
    """
    paths = tuple(paths)
    models = {_folder(path) for path in paths if _is_weights(path)} - {""}
    return tuple(sorted(path for path in paths if _is_side_file(path, models)))


def other_files(paths: Iterable[str]) -> tuple[str, ...]:
    """The files that `side_files` leaves out, without hidden ones and those of the card; sorted."""
    paths = tuple(paths)
    sides = set(side_files(paths))
    return tuple(
        sorted(
            path
            for path in paths
            if path not in sides and not _is_hidden(path) and not _belongs_to_card(path)
        )
    )


def _is_side_file(path: str, models: set[str]) -> bool:
    folder, name = _folder(path), path.rpartition("/")[2]
    if _is_hidden(path) or _belongs_to_card(path) or path.endswith(_CODE_SUFFIXES):
        return False
    if any(fnmatchcase(name.lower(), pattern) for pattern in _LEFT_BEHIND):
        return False
    if folder and _OTHER_FOLDERS.fullmatch(folder.partition("/")[0]):
        return False
    if _MODULE_FOLDER.fullmatch(folder):
        return name == _MODULE_WEIGHTS or not _is_weights(path)
    inside_model = any(folder == model or folder.startswith(f"{model}/") for model in models)
    return not inside_model and not _is_weights(path)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _is_weights(path: str) -> bool:
    return path.lower().endswith(WEIGHT_SUFFIXES)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _belongs_to_card(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return name.startswith("readme") or name.endswith(_CARD_SUFFIXES)
