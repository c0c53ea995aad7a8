"""Our merges against the papers' formulas, written anew in torch over whole state dicts.

Nothing is shared with hubmerge.merging: vectors are flattened, sorted and masked as in the authors'
repositories, so that streaming by tensor, histograms and the order of sums are all put to the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import save_file

from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method, parse_params
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

torch = pytest.importorskip("torch")

SHAPES = {"embed.weight": (37, 8), "layer.weight": (8, 16), "layer.bias": (8,), "logit_scale": ()}
EXPERTS = 4


def models(dtype: object, frozen: bool = False) -> list[dict[str, torch.Tensor]]:
    """A base and four experts; changes are heavy-tailed, and of another size in each tensor."""
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


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].float().reshape(-1) for name in sorted(tensors)])


def vectors(dicts: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """The task vectors [experts, entries]."""
    return torch.stack([flat(expert) - flat(dicts[0]) for expert in dicts[1:]])


def read(found: Checkpoint) -> torch.Tensor:
    from safetensors.torch import load_file

    return flat(load_file(found.folder / "model.safetensors"))


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
    dicts = models(kind)
    found = merged(tmp_path, dicts, "ties", density=density, scale=scale)
    expected = flat(dicts[0]) + scale * official_ties(vectors(dicts), density)
    torch.testing.assert_close(read(found), expected.to(kind).float(), rtol=0, atol=0)


def test_ties_scope_of_a_model_with_a_frozen_half(tmp_path: Path) -> None:
    dicts = models(torch.float32, frozen=True)
    trained = [{n: v for n, v in d.items() if n != "text.weight"} for d in dicts]
    (tmp_path / "all").mkdir()
    (tmp_path / "changed").mkdir()
    found = merged(tmp_path / "all", dicts, "ties", scope="all")
    expected = flat(dicts[0]) + official_ties(vectors(dicts), 0.2)
    torch.testing.assert_close(read(found), expected, rtol=0, atol=0)
    found = merged(tmp_path / "changed", dicts, "ties")
    ours = flat({n: v for n, v in split(found).items() if n != "text.weight"})
    expected = flat(trained[0]) + official_ties(vectors(trained), 0.2)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def split(found: Checkpoint) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(found.folder / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_average_and_task_arithmetic(dtype: str, tmp_path: Path) -> None:
    kind = getattr(torch, dtype)
    dicts, weights = models(kind), [0.5, 1.0, 2.0, 0.25]
    shares = torch.tensor(weights).unsqueeze(1)
    (tmp_path / "average").mkdir()
    found = merged(tmp_path / "average", dicts, "average", weights)
    mean = (torch.stack([flat(d) for d in dicts[1:]]) * shares).sum(0) / sum(weights)
    torch.testing.assert_close(read(found), mean.to(kind).float(), rtol=2**-8, atol=1e-6)
    (tmp_path / "ta").mkdir()
    found = merged(tmp_path / "ta", dicts, "task_arithmetic", weights, scale=0.3)
    total = flat(dicts[0]) + 0.3 * (vectors(dicts) * shares).sum(0)
    torch.testing.assert_close(read(found), total.to(kind).float(), rtol=2**-8, atol=1e-6)


def test_dare_is_right_on_the_mean(tmp_path: Path) -> None:
    """Over many seeds, dropping and rescaling is the whole change: the paper's reason for 1/p."""
    dicts = models(torch.float32)
    total = vectors(dicts).sum(0)
    found = []
    for seed in range(200):
        (tmp_path / str(seed)).mkdir()
        out = merged(tmp_path / str(seed), dicts, "dare", density=0.5, seed=seed)
        found.append(read(out) - flat(dicts[0]))
    mean, spread = torch.stack(found).mean(0), torch.stack(found).std(0)
    # 4.5 standard errors: none of the 433 entries should be further off.
    assert ((mean - total).abs() <= 4.5 * spread / 200**0.5 + 1e-6).all()
    # Each expert's entry is kept or not: the spread is that of density 0.5, sqrt(sum tau^2).
    wide = vectors(dicts).pow(2).sum(0).sqrt()
    assert (spread / wide).mean().item() == pytest.approx(1, abs=0.05)
