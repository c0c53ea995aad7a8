"""Write a merge as a LoRA adapter of its base instead of whole weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path

from hubmerge.merging.engine import check_no_input_replaced
from hubmerge.merging.merged_factors import factorize_merge
from hubmerge.merging.plan import MergePlan, check_plan
from hubmerge.progress import Progress
from hubmerge.weights.atomic_folder import atomic_folder, check_target
from hubmerge.weights.dtypes import DTYPES
from hubmerge.weights.extraction import Extraction
from hubmerge.weights.kept_shares import KeptShares
from hubmerge.weights.lora_file import AdapterFields, write_adapter
from hubmerge.weights.lora_modules import LoraModule, ends_other_path, module_path
from hubmerge.weights.writer import check_free_space


@dataclass(frozen=True)
class LoraOutput:
    """How a merge is written as an adapter: its rank, the modules that it may change, and more.

    `dtype` (a safetensors name) is that of its factors.
    """

    rank: int
    modules: tuple[LoraModule, ...]
    fields: AdapterFields
    dtype: str = "F32"

    @property
    def nbytes(self) -> int:
        """The most bytes that its factors take."""
        sides = sum(sum(module.size) for module in self.modules)
        return self.rank * sides * DTYPES[self.dtype].itemsize


def merge_to_lora(
    plan: MergePlan,
    output: LoraOutput,
    out: Path,
    finish: Callable[[Path, KeptShares], None],
    replace: bool = False,
    progress: Progress = lambda stage, done, total: None,
) -> None:
    """Merge into the folder `out`, which is written atomically, as an adapter of the plan's base.

    `finish` is called with the temporary folder once the adapter is written, and with how much of
    the merge it keeps. Raises what `check_plan`, `check_lora_out` and `factorize_merge` raise.
    """
    check_plan(plan)
    check_lora_out(plan, output, out, replace)
    with atomic_folder(out, replace) as folder:
        extraction = factorize_merge(plan, output.modules, output.rank, progress)
        fields = replace_fields(
            output.fields, exact_names=_needs_exact_names(extraction, plan, output)
        )
        write_adapter(folder, extraction.factors, output.rank, fields, output.dtype)
        finish(folder, extraction.shares)


def _needs_exact_names(extraction: Extraction, plan: MergePlan, output: LoraOutput) -> bool:
    changed = [module.path for module in extraction.factors]
    others = {*(module.path for module in output.modules), *map(module_path, plan.base.index)}
    return ends_other_path(changed, others)


def check_lora_out(plan: MergePlan, output: LoraOutput, out: Path, replace: bool = False) -> None:
    """Raise if the adapter cannot be written to `out`; no value is read.

    UsageError if `out` is an input or contains one; CheckpointError if it exists, or if there is
    too little disk space.
    """
    check_no_input_replaced(plan, out)
    check_target(out, replace)
    check_free_space(out, output.nbytes)
