"""Arrow's prototypes compared with the SVD of the full product; other router initialisations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hubmerge.errors import UsageError
from hubmerge.moerging.arrow import arrow_prototypes
from hubmerge.moerging.router_init import init_router

from .builders import random_tokens


def product_svd(A: Tensor, B: Tensor) -> Tensor:
    """The top right singular vector of the full product B A [O, I], in float64."""
    return torch.linalg.svd(B.double() @ A.double()).Vh[0]


@given(
    rank=st.integers(1, 8),
    width=st.integers(1, 20),
    out=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_prototype_is_the_top_right_singular_vector(
    rank: int, width: int, out: int, seed: int
) -> None:
    A, B = random_tokens(3, rank, width, seed=seed), random_tokens(3, out, rank, seed=seed + 100)
    rows = arrow_prototypes(A, B)
    assert rows.dtype == torch.float32
    for e in range(3):
        assert (rows[e].double() @ product_svd(A[e], B[e])).abs() > 1 - 1e-5


def test_nearly_equal_singular_values() -> None:
    """s1 / s2 = 1.0001: 15 power iterations would end between the two vectors."""
    source = torch.Generator().manual_seed(0)
    U, V = (
        torch.linalg.qr(torch.randn(40, 2, generator=source, dtype=torch.float64)).Q
        for _ in range(2)
    )
    B, A = U * torch.tensor([1.0001, 1.0]), V.T
    assert (
        arrow_prototypes(A[None].float(), B[None].float())[0].double() @ V[:, 0]
    ).abs() > 1 - 1e-6


def test_largest_entry_is_positive() -> None:
    A, B = random_tokens(4, 3, 7), random_tokens(4, 5, 3, seed=2)
    rows = arrow_prototypes(A, B)
    assert (rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(arrow_prototypes(-A, B), rows)
    torch.testing.assert_close(arrow_prototypes(A, -3 * B), rows)


def test_first_of_equal_magnitudes_is_positive() -> None:
    assert torch.allclose(
        arrow_prototypes(torch.tensor([[[-3.0, 3.0]]]), torch.ones(1, 1, 1)),
        torch.tensor([[0.5**0.5, -(0.5**0.5)]]),
    )


def test_by_hand() -> None:
    """B A = [[0, 2], [1, 0]] scales the second direction most."""
    A, B = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    torch.testing.assert_close(arrow_prototypes(A, B), torch.tensor([[0.0, 1.0]]))


def test_padding_and_other_experts_change_nothing() -> None:
    A, B = random_tokens(3, 4, 9), random_tokens(3, 7, 4, seed=2)
    rows = arrow_prototypes(A, B)
    padded = nn.functional.pad(A, (0, 0, 0, 3)), nn.functional.pad(B, (0, 3))
    torch.testing.assert_close(arrow_prototypes(*padded), rows)
    assert torch.equal(arrow_prototypes(A.flip(0), B.flip(0)), rows.flip(0))
    assert torch.equal(arrow_prototypes(A[1:2], B[1:2]), rows[1:2])


def test_untrained_expert_gets_the_direction_of_a() -> None:
    A = random_tokens(1, 3, 7)
    row = arrow_prototypes(A, torch.zeros(1, 5, 3))[0].double()
    assert (row @ torch.linalg.svd(A[0].double()).Vh[0]).abs() > 1 - 1e-6


def test_expert_of_zeros_gets_zeros() -> None:
    assert torch.equal(
        arrow_prototypes(torch.zeros(1, 3, 7), torch.zeros(1, 5, 3)), torch.zeros(1, 7)
    )


def test_prototype_needs_no_gradient() -> None:
    A, B = random_tokens(2, 3, 7).requires_grad_(), random_tokens(2, 5, 3).requires_grad_()
    assert not arrow_prototypes(A, B).requires_grad


def make_router(
    kind: str, experts: tuple[str, ...], signed: bool = True, **options: object
) -> Tensor:
    count = len(experts)
    A, B = random_tokens(count, 3, 7), random_tokens(count, 5, 3)
    key = {"seed": 0, "module": "encoder.fc", **options}
    return init_router(kind, A, B, signed=signed, experts=experts, **key)  # type: ignore[arg-type]


def test_random_row_depends_on_seed_module_and_expert() -> None:
    rows = make_router("random", ("mnist", "svhn", "cars"))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert torch.equal(make_router("random", ("cars", "mnist")), rows[[2, 0]])
    for other in ({"seed": 1}, {"module": "encoder.fc2"}):
        assert not torch.equal(make_router("random", ("mnist", "svhn", "cars"), **other), rows)


def test_zeros_need_signed_scores() -> None:
    assert torch.equal(make_router("zero", ("a", "b")), torch.zeros(2, 7))
    with pytest.raises(UsageError, match="cannot learn from unsigned scores"):
        make_router("zero", ("a", "b"), signed=False)


def test_arrow_is_the_prototypes() -> None:
    A, B = random_tokens(2, 3, 7), random_tokens(2, 5, 3)
    assert torch.equal(make_router("arrow", ("a", "b"), signed=False), arrow_prototypes(A, B))
