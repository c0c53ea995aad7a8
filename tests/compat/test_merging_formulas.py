"""Our merges compared with the papers' formulas, written in torch for whole state dicts.

Nothing is shared with hubmerge.merging: vectors are flattened, sorted and masked as in the authors'
repositories. This tests streaming by tensor, histograms and the order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method, parse_params
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

SHAPES = {"embed.weight": (37, 8), "layer.weight": (8, 16), "layer.bias": (8,), "logit_scale": ()}
EXPERTS = 4


def make_models(dtype: object, frozen: bool = False) -> list[dict[str, torch.Tensor]]:
    """A base and four experts; changes are heavy-tailed, with a different scale in each tensor."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    base = {name: draw(shape).to(dtype) for name, shape in SHAPES.items()}
    if frozen:
        base["text.weight"] = draw((50, 9)).to(dtype)
    experts = []
    for _ in range(EXPERTS):
        change = {n: 0.01 * i * draw(s) ** 3 for i, (n, s) in enumerate(SHAPES.items(), 1)}
        experts.append({n: (v.float() + change.get(n, 0)).to(dtype) for n, v in base.items()})
    return [base, *experts]


def merged(
    folder: Path,
    dicts: list[dict[str, torch.Tensor]],
    name: str,
    weights: Sequence[float] = (1.0,) * EXPERTS,
    **params: object,
) -> Checkpoint:
    for i, tensors in enumerate(dicts):
        (folder / str(i)).mkdir()
        save_file(tensors, folder / str(i) / "model.safetensors")
    experts = tuple(
        Expert(open_checkpoint(folder / str(i)), sha=f"{i:040d}", weight=weight)
        for i, weight in enumerate(weights, 1)
    )
    chosen = method(name)
    plan = MergePlan(open_checkpoint(folder / "0"), experts, chosen, parse_params(chosen, params))
    return merge(plan, folder / "out")


def flatten(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].float().reshape(-1) for name in sorted(tensors)])


def task_vectors(dicts: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The task vectors [experts, entries]."""
    return torch.stack([flatten(expert) - flatten(dicts[0]) for expert in dicts[1:]])


def read_flat(result: Checkpoint) -> torch.Tensor:
    from safetensors.torch import load_file

    return flatten(load_file(result.folder / "model.safetensors"))


def official_ties(taus: torch.Tensor, density: float) -> torch.Tensor:
    """Yadav et al., dis-mean: trim by kthvalue, sign of the sum, zero to the majority, mean."""
    entries = taus.shape[1]
    kth = entries - int(entries * density)
    threshold = taus.abs().kthvalue(kth, dim=1, keepdim=True).values
    trimmed = taus * (taus.abs() >= threshold)
    sign = trimmed.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    agrees = torch.where(sign > 0, trimmed > 0, trimmed < 0)
    return (trimmed * agrees).sum(0) / agrees.sum(0).clamp(min=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("density", "scale"), [(0.2, 1.0), (0.05, 0.4), (0.9, 1.5)])
def test_ties(dtype: str, density: float, scale: float, tmp_path: Path) -> None:
    kind = getattr(torch, dtype)
    dicts = make_models(kind)
    result = merged(tmp_path, dicts, "ties", density=density, scale=scale)
    expected = flatten(dicts[0]) + scale * official_ties(task_vectors(dicts), density)
    torch.testing.assert_close(read_flat(result), expected.to(kind).float(), rtol=0, atol=0)


def test_ties_scope_with_a_frozen_half(tmp_path: Path) -> None:
    dicts = make_models(torch.float32, frozen=True)
    trained = [{n: v for n, v in d.items() if n != "text.weight"} for d in dicts]
    (tmp_path / "all").mkdir()
    (tmp_path / "changed").mkdir()
    result = merged(tmp_path / "all", dicts, "ties", scope="all")
    expected = flatten(dicts[0]) + official_ties(task_vectors(dicts), 0.2)
    torch.testing.assert_close(read_flat(result), expected, rtol=0, atol=0)
    result = merged(tmp_path / "changed", dicts, "ties")
    ours = flatten({n: v for n, v in read_tensors(result).items() if n != "text.weight"})
    expected = flatten(trained[0]) + official_ties(task_vectors(trained), 0.2)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def read_tensors(result: Checkpoint) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(result.folder / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_average_and_task_arithmetic(dtype: str, tmp_path: Path) -> None:
    kind = getattr(torch, dtype)
    dicts, weights = make_models(kind), [0.5, 1.0, 2.0, 0.25]
    shares = torch.tensor(weights).unsqueeze(1)
    (tmp_path / "average").mkdir()
    result = merged(tmp_path / "average", dicts, "average", weights)
    mean = (torch.stack([flatten(d) for d in dicts[1:]]) * shares).sum(0) / sum(weights)
    torch.testing.assert_close(read_flat(result), mean.to(kind).float(), rtol=2**-8, atol=1e-6)
    (tmp_path / "ta").mkdir()
    result = merged(tmp_path / "ta", dicts, "task_arithmetic", weights, scale=0.3)
    total = flatten(dicts[0]) + 0.3 * (task_vectors(dicts) * shares).sum(0)
    torch.testing.assert_close(read_flat(result), total.to(kind).float(), rtol=2**-8, atol=1e-6)


def test_dare_is_unbiased(tmp_path: Path) -> None:
    """The mean over many seeds is the full change, as in the paper."""
    dicts = make_models(torch.float32)
    total = task_vectors(dicts).sum(0)
    changes = []
    for seed in range(50):
        (tmp_path / str(seed)).mkdir()
        out = merged(tmp_path / str(seed), dicts, "dare", density=0.5, seed=seed)
        changes.append(read_flat(out) - flatten(dicts[0]))
    mean, spread = torch.stack(changes).mean(0), torch.stack(changes).std(0)
    # Within 4.5 standard errors for all 433 entries.
    assert ((mean - total).abs() <= 4.5 * spread / 50**0.5 + 1e-6).all()
    # Each expert's entry is kept or not: the spread is that of density 0.5, sqrt(sum tau^2).
    expected_spread = task_vectors(dicts).pow(2).sum(0).sqrt()
    assert (spread / expected_spread).mean().item() == pytest.approx(1, abs=0.05)
