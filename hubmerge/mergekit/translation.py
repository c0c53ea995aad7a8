"""A configuration of mergekit in our terms; what cannot be done exactly is refused by name.

Verified with mergekit 0.1.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hubmerge.errors import UnknownName, UsageError, raise_together
from hubmerge.mergekit.config import MergekitConfig, MergekitFile, ModelEntry, SourceEntry
from hubmerge.mergekit.merge import MergekitMerge, MergekitSlice, MergekitSource
from hubmerge.mergekit.methods import MERGEKIT_METHODS, NOT_OFFERED, MergekitMethod
from hubmerge.mergekit.model_ref import MergekitRef, parse_mergekit_ref
from hubmerge.mergekit.parameters import ParameterCheck
from hubmerge.merging.registry import method as find_method
from hubmerge.refs import ModelRef
from hubmerge.weights.dtypes import FLOATS, float_dtype_name

_HINT = "docs/mergekit.md lists what is supported, and what to do instead."
_ROWS = (
    "Embeddings keep the rows that have no token, which mergekit leaves out, and a token that none "
    "of the merged models has keeps the base's row, for which mergekit leaves zeros."
)
# With these, a model whose weight is 0 does not count at all.
_BY_WEIGHT = {
    "average", "task_arithmetic", "ties_mergekit", "dare", "dare_ties", "breadcrumbs",
    "breadcrumbs_ties", "della", "della_linear", "multislerp",
}  # fmt: skip


def translate_config(file: MergekitFile) -> MergekitMerge:
    """Translate a configuration; raises UsageError with every problem, also those of the file."""
    config, problems = file.config, list(file.problems)
    if config.merge_method not in MERGEKIT_METHODS:
        unknown = _unknown_method(config.merge_method)
        raise_together(UsageError, [*problems, unknown.message], unknown.hint)
    mergekit = MERGEKIT_METHODS[config.merge_method]
    return _Translation(config, mergekit, problems).translate(file.text)


def _unknown_method(name: str) -> UsageError:
    if name in NOT_OFFERED:
        return UsageError(
            f"mergekit's {name} is not offered.",
            f"The nearest is {NOT_OFFERED[name]}: write `merge_method: {NOT_OFFERED[name]}`.",
        )
    return UnknownName("merge method of mergekit", name, MERGEKIT_METHODS)


@dataclass
class _Translation:
    """The translation of one configuration; problems and notes are collected on the way."""

    config: MergekitConfig
    mergekit: MergekitMethod
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    experts: list[MergekitRef] = field(default_factory=list)

    def translate(self, text: bytes) -> MergekitMerge:
        config = self.config
        is_input = self.mergekit.base != "ignored" and config.base_model is not None
        slices = tuple(self._slices(is_input))
        base = self._base()
        merge = MergekitMerge(
            name=config.merge_method,
            mergekit=self.mergekit,
            method=find_method(self.mergekit.ours),
            fixed={},
            base=base,
            base_is_input=is_input,
            experts=tuple(self.experts),
            slices=slices,
            parameters=config.parameters,
            dtype=self._dtype(),
            vocabulary=self._vocabulary(),
            text=text,
        )
        self._check_adapters(base)
        merge = ParameterCheck(merge, self.problems, self.notes).run()
        self._check_inputs(merge)
        raise_together(UsageError, list(dict.fromkeys(self.problems)), _HINT)
        return replace(merge, notes=tuple(dict.fromkeys(self.notes)))

    def _slices(self, is_input: bool) -> Iterator[MergekitSlice]:
        """The slices; `models` are one slice with all layers, to which mergekit adds the base."""
        base = self.config.base_model
        if self.mergekit.base == "required" and base is None:
            self.problems.append(f"{self.config.merge_method} needs a base_model.")
        if self.config.models:
            entries = list(self.config.models)
            if base and base not in [entry.model for entry in entries]:
                entries.append(ModelEntry(model=base))
                if not is_input:
                    self.notes.append(
                        f"{base}: {self.config.merge_method} takes the base_model as one of the "
                        "models, as in mergekit."
                    )
            yield MergekitSlice(tuple(self._sources(entries, "models", is_input)), {})
        for number, entry in enumerate(self.config.slices):
            where = f"slices.{number}"
            lengths = {stop - start for start, stop in (s.layer_range for s in entry.sources)}
            if len(lengths) > 1:
                self.problems.append(f"{where}: its sources have {_list(sorted(lengths))} layers.")
            if is_input and base not in [source.model for source in entry.sources]:
                self.problems.append(
                    f"{where}: base_model {base} is not one of its sources, and "
                    f"{self.config.merge_method} takes the layers of the base from there."
                )
            sources = tuple(self._sources(entry.sources, where, is_input))
            yield MergekitSlice(sources, entry.parameters)

    def _sources(
        self, entries: Sequence[ModelEntry], where: str, is_input: bool
    ) -> Iterator[MergekitSource]:
        seen: list[MergekitRef] = []
        for entry in entries:
            if entry.model in seen:
                self.problems.append(
                    f"{where}: {entry.model} is in it twice, and mergekit would take one of them."
                )
                continue
            seen.append(entry.model)
            layers = entry.layer_range if isinstance(entry, SourceEntry) else None
            number = None
            if not (is_input and entry.model == self.config.base_model):
                if entry.model not in self.experts:
                    self.experts.append(entry.model)
                number = self.experts.index(entry.model)
            yield MergekitSource(number, layers, entry.parameters)

    def _base(self) -> ModelRef:
        """The base_model; without one, the model of the first source, which is also an expert."""
        named = self.config.base_model
        if named is None:
            return self.experts[0].model
        if named.adapter is not None:
            self.problems.append(
                f"base_model: {named} has an adapter: merge it first, with "
                f"`hubmerge merge {named.adapter} --base {named.model} --method average`."
            )
        return named.model

    def _check_adapters(self, base: ModelRef) -> None:
        for ref in self.experts:
            if ref.adapter is not None and ref.model != base:
                self.problems.append(
                    f"{ref}: an adapter is merged with its own base, and here the base is {base}: "
                    f"make it a model first, with `hubmerge merge {ref.adapter} --base {ref.model} "
                    "--method average`."
                )

    def _check_inputs(self, merge: MergekitMerge) -> None:
        """Each slice must have as many experts as the method takes, and mostly the same ones."""
        for number, part in enumerate(merge.slices):
            where = f"slices.{number}: " if self.config.slices else ""
            if problem := merge.method.count_problem(len(part.experts)):
                self.problems.append(f"{where}{problem}")
                if not merge.base_is_input and self.config.base_model and self.config.models:
                    self.problems.append("mergekit counts the base_model as one of the models.")
        first, last = (len(merge.slices[n].sources) for n in (0, -1))
        if first < last:
            self.problems.append(
                f"slices: the first has {first} sources and the last {last}, of which mergekit "
                f"0.1.5 would use only the first {first} for tensors after the layers."
            )
        same = {frozenset(part.experts) for part in merge.slices}
        if len(same) > 1 and not merge.is_joint and merge.method.name not in _BY_WEIGHT:
            self.problems.append(
                f"slices: {self.config.merge_method} needs the same models in all of them."
            )

    def _dtype(self) -> str | None:
        for key in ("dtype", "out_dtype"):
            name = getattr(self.config, key)
            if name is not None and float_dtype_name(name) not in FLOATS:
                unknown = UnknownName(key, name, ("float16", "bfloat16", "float32", "float64"))
                self.problems.append(f"{unknown.message} {unknown.hint}")
        merged, written = self.config.dtype, self.config.out_dtype
        if merged is not None and float_dtype_name(merged) not in ("F32", "F64"):
            self.notes.append(
                f"dtype: {merged}: values are computed in float32 and rounded once; mergekit "
                f"would compute in {merged}."
            )
        name = written or merged
        return float_dtype_name(name) if name is not None else None

    def _vocabulary(self) -> Literal["base", "union"] | None:
        entry, base = self.config.tokenizer, self.config.base_model
        source = entry.source if entry else self.config.tokenizer_source
        key = "tokenizer.source" if entry else "tokenizer_source"
        if source is None:
            return None
        try:
            is_base = source == "base" or (source != "union" and parse_mergekit_ref(source) == base)
        except ValueError as error:
            self.problems.append(f"{key}: {error}.")
            return None
        if base is None:
            self.problems.append(
                f"{key}: name a base_model, so that it is clear whose rows a model gets for tokens "
                "that it lacks; mergekit takes what its models happen to be ordered by."
            )
        elif source == "union":
            self._check_union(key)
            return "union"
        elif not is_base:
            self.problems.append(
                f"{key}: {source} is not the base_model; write base or union, or leave it out."
            )
        self.notes.append(_ROWS)
        return "base"

    def _check_union(self, key: str) -> None:
        self.notes.append(_ROWS)
        models = {
            frozenset(str(source.model) for source in entry.sources) for entry in self.config.slices
        }
        if len(models) > 1:
            self.problems.append(
                f"{key}: union needs the same models in all slices: mergekit leaves zeros for "
                "tokens that those of the first or last slice lack; write base."
            )


def _list(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
