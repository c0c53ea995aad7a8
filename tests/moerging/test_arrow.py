"""Arrow's prototypes against the SVD of the whole product; and the other starts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hubmerge.errors import UsageError
from hubmerge.moerging.arrow import prototypes
from hubmerge.moerging.router_init import start

from .worlds import random_tokens


def product_svd(A: Tensor, B: Tensor) -> Tensor:
    """The top right singular vector of B A [O, I], computed whole in float64."""
    return torch.linalg.svd(B.double() @ A.double()).Vh[0]


@given(
    rank=st.integers(1, 8),
    width=st.integers(1, 20),
    out=st.integers(1, 20),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_a_prototype_is_the_top_right_singular_vector(
    rank: int, width: int, out: int, seed: int
) -> None:
    A, B = random_tokens(3, rank, width, seed=seed), random_tokens(3, out, rank, seed=seed + 100)
    rows = prototypes(A, B)
    assert rows.dtype == torch.float32
    for e in range(3):
        assert (rows[e].double() @ product_svd(A[e], B[e])).abs() > 1 - 1e-5


def test_singular_values_that_are_nearly_equal() -> None:
    """s1 / s2 = 1.0001: 15 power iterations would end anywhere between the two."""
    source = torch.Generator().manual_seed(0)
    U, V = (
        torch.linalg.qr(torch.randn(40, 2, generator=source, dtype=torch.float64)).Q
        for _ in range(2)
    )
    B, A = U * torch.tensor([1.0001, 1.0]), V.T
    assert (prototypes(A[None].float(), B[None].float())[0].double() @ V[:, 0]).abs() > 1 - 1e-6


def test_the_largest_entry_is_positive_whatever_the_sign_of_the_svd() -> None:
    A, B = random_tokens(4, 3, 7), random_tokens(4, 5, 3, seed=2)
    rows = prototypes(A, B)
    assert (rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all()
    torch.testing.assert_close(prototypes(-A, B), rows)
    torch.testing.assert_close(prototypes(A, -3 * B), rows)


def test_of_equal_magnitudes_the_first_is_positive() -> None:
    assert torch.allclose(
        prototypes(torch.tensor([[[-3.0, 3.0]]]), torch.ones(1, 1, 1)),
        torch.tensor([[0.5**0.5, -(0.5**0.5)]]),
    )


def test_by_hand() -> None:
    """B A = [[0, 2], [1, 0]]: stretches the second direction most."""
    A, B = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[0.0, 2.0], [1.0, 0.0]]])
    torch.testing.assert_close(prototypes(A, B), torch.tensor([[0.0, 1.0]]))


def test_padding_and_neighbours_change_nothing() -> None:
    A, B = random_tokens(3, 4, 9), random_tokens(3, 7, 4, seed=2)
    rows = prototypes(A, B)
    padded = nn.functional.pad(A, (0, 0, 0, 3)), nn.functional.pad(B, (0, 3))
    torch.testing.assert_close(prototypes(*padded), rows)
    assert torch.equal(prototypes(A.flip(0), B.flip(0)), rows.flip(0))
    assert torch.equal(prototypes(A[1:2], B[1:2]), rows[1:2])


def test_an_untrained_expert_points_where_its_a_does() -> None:
    A = random_tokens(1, 3, 7)
    row = prototypes(A, torch.zeros(1, 5, 3))[0].double()
    assert (row @ torch.linalg.svd(A[0].double()).Vh[0]).abs() > 1 - 1e-6


def test_an_expert_of_zeros_points_nowhere() -> None:
    assert torch.equal(prototypes(torch.zeros(1, 3, 7), torch.zeros(1, 5, 3)), torch.zeros(1, 7))


def test_a_prototype_is_no_part_of_a_graph() -> None:
    A, B = random_tokens(2, 3, 7).requires_grad_(), random_tokens(2, 5, 3).requires_grad_()
    assert not prototypes(A, B).requires_grad


def begun(kind: str, experts: tuple[str, ...], signed: bool = True, **address: object) -> Tensor:
    count = len(experts)
    A, B = random_tokens(count, 3, 7), random_tokens(count, 5, 3)
    said = {"seed": 0, "module": "encoder.fc", **address}
    return start(kind, A, B, signed=signed, experts=experts, **said)  # type: ignore[arg-type]


def test_a_random_row_has_an_address() -> None:
    rows = begun("random", ("mnist", "svhn", "cars"))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert torch.equal(begun("random", ("cars", "mnist")), rows[[2, 0]])
    for other in ({"seed": 1}, {"module": "encoder.fc2"}):
        assert not torch.equal(begun("random", ("mnist", "svhn", "cars"), **other), rows)


def test_zeros_need_signed_scores() -> None:
    assert torch.equal(begun("zero", ("a", "b")), torch.zeros(2, 7))
    with pytest.raises(UsageError, match="cannot learn from unsigned scores"):
        begun("zero", ("a", "b"), signed=False)


def test_arrow_is_the_prototypes() -> None:
    A, B = random_tokens(2, 3, 7), random_tokens(2, 5, 3)
    assert torch.equal(begun("arrow", ("a", "b"), signed=False), prototypes(A, B))
