"""The matrices of experts in a base that is a mixture of experts itself, stacked or one by one.

In memory, and in the files of some models, one tensor [E, O, I] holds the matrices of all experts.
Other files store each expert's matrix for itself, and gate and up apart, which transformers stacks
when it loads them.

Shapes: E experts, O outputs, I inputs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import NamedTuple

import numpy as np

from hubmerge.weights.checkpoint import Checkpoint, read_tensor
from hubmerge.weights.conversions import Conversion, Stack, conversions_of, convert, stacks_of
from hubmerge.weights.dtypes import DTYPES, Array
from hubmerge.weights.full_names import plain_names
from hubmerge.weights.header import TensorInfo
from hubmerge.weights.model_config import read_model_config


class StackPiece(NamedTuple):
    """A tensor of the file: the matrix of one expert, and which of the parts of its outputs it is.

    `expert` is None for a tensor that is the whole stack.
    """

    tensor: str
    expert: int | None = None
    part: int = 0


@dataclass(frozen=True)
class ExpertStack:
    """A parameter of stacked matrices by its shape, and the tensors of the file that make it up."""

    shape: tuple[int, ...]
    pieces: tuple[StackPiece, ...]

    @property
    def is_whole(self) -> bool:
        return self.pieces[0].expert is None

    def orientations(self, outputs: int, inputs: int) -> list[bool]:
        """Whether inputs come first, as far as the shape allows; matrices of files never do."""
        *_, rows, columns = self.shape
        found = [False] if (rows, columns) == (outputs, inputs) else []
        if self.is_whole and self.shape[0] > 1 and (rows, columns) == (inputs, outputs):
            found.append(True)
        return found


def find_stacks(
    base: Mapping[str, TensorInfo], conversions: Sequence[Conversion], stacks: Sequence[Stack]
) -> dict[str, ExpertStack]:
    """Every stack of a base by its name in memory, whether the file has it whole or in pieces."""
    patterns = [
        (re.compile(_to_pattern(source)), stack.target, part, len(stack.sources))
        for stack in stacks
        for part, source in enumerate(stack.sources)
    ]
    found: dict[str, ExpertStack] = {}
    pieces: dict[str, list[StackPiece]] = defaultdict(list)
    parts_of: dict[str, int] = {}
    for name, tensor in base.items():
        memory = convert(name, conversions)
        if len(tensor.shape) in (2, 3):
            shape = tensor.shape if len(tensor.shape) == 3 else (1, *tensor.shape)
            found[memory] = ExpertStack(shape, (StackPiece(name),))
        for pattern, target, part, parts in patterns:
            if len(tensor.shape) == 2 and (match := pattern.search(memory)):
                stacked = memory[: match.start()] + target + memory[match.end() :]
                pieces[stacked].append(StackPiece(name, int(match[1]), part))
                parts_of[stacked] = parts
                break
    for stacked, members in pieces.items():
        parts, experts = parts_of[stacked], 1 + max(piece.expert or 0 for piece in members)
        shapes = {base[piece.tensor].shape for piece in members}
        if len(shapes) == 1 and len(members) == parts * experts:
            rows, columns = shapes.pop()
            found[stacked] = ExpertStack((experts, parts * rows, columns), tuple(members))
    return found


def restack(base: Checkpoint, expert: Checkpoint) -> Checkpoint:
    """The expert with its stacks of matrices in the form that the base stores them in.

    One file may have them whole and the other in pieces. The same checkpoint if both are alike.
    """
    if expert.kind != "full" or base.index.keys() == expert.index.keys():
        return expert
    config, own_config = map(read_model_config, (base.folder, expert.folder))
    stacks = stacks_of(config)
    if not stacks:
        return expert
    ours = find_stacks(base.index, conversions_of(config), stacks)
    plain = {new: name for name, new in plain_names(expert.index).items()}
    index = {new: expert.index[name] for new, name in plain.items()}
    theirs = find_stacks(index, conversions_of(own_config or config), stacks)
    views: dict[str, tuple[TensorInfo, Callable[[], Array]]] = {}
    replaced: set[str] = set()
    for name, stack in ours.items():
        own = theirs.get(name)
        if own is None or own.shape != stack.shape or own.is_whole == stack.is_whole:
            continue
        replaced |= {plain[piece.tensor] for piece in own.pieces}
        if own.is_whole:
            whole = index[own.pieces[0].tensor]
            for piece in stack.pieces:
                tensor = _place_in_stack(whole, piece, base.index[piece.tensor].shape)
                views[piece.tensor] = tensor, partial(read_tensor, tensor, piece.tensor)
        else:
            first = index[own.pieces[0].tensor]
            target = replace(first, shape=own.shape, start=0, end=first.nbytes * len(own.pieces))
            pieces = [piece._replace(tensor=plain[piece.tensor]) for piece in own.pieces]
            views[stack.pieces[0].tensor] = target, partial(_read_pieces, expert, target, pieces)
    if not views:
        return expert
    kept = {name: tensor for name, tensor in expert.index.items() if name not in replaced}
    return Checkpoint(expert.folder, expert.kind, kept, expert.views).with_views(views)


def _place_in_stack(whole: TensorInfo, piece: StackPiece, shape: tuple[int, ...]) -> TensorInfo:
    """Where the matrix of one expert is in a stack: its rows are next to each other."""
    _, rows, columns = whole.shape
    itemsize = whole.nbytes // prod(whole.shape)
    first = (piece.expert or 0) * rows + piece.part * shape[0]
    start = whole.start + first * columns * itemsize
    return replace(whole, shape=shape, start=start, end=start + prod(shape) * itemsize)


def _read_pieces(expert: Checkpoint, target: TensorInfo, pieces: Sequence[StackPiece]) -> Array:
    values = np.empty(target.shape, DTYPES[target.dtype])
    for piece in pieces:
        matrix = expert.read(piece.tensor)
        first = piece.part * len(matrix)
        values[piece.expert, first : first + len(matrix)] = matrix
    return values


def _to_pattern(source: str) -> str:
    """A pattern of transformers for the names of experts' matrices; its group is their number."""
    return re.escape(source.replace("\\.", ".")).replace(r"\*", r"(\d+)") + "$"
