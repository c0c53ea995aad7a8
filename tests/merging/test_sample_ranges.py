"""Which entries of a model are sampled."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hubmerge.merging.deltas import sample_ranges


@given(sizes=st.lists(st.integers(0, 5000), max_size=12), count=st.integers(1, 4000))
@settings(max_examples=200)
def test_ranges_are_in_order_within_their_arrays_and_about_as_many_as_asked_for(
    sizes: list[int], count: int
) -> None:
    ranges = list(sample_ranges(sizes, count))
    assert ranges == sorted(ranges) == list(sample_ranges(sizes, count))
    assert all(0 <= start < stop <= sizes[number] for number, start, stop in ranges)
    if sum(sizes) <= count:  # all of it
        assert sum(stop - start for _, start, stop in ranges) == sum(sizes)
    else:
        assert sum(stop - start for _, start, stop in ranges) <= max(count, 256)


def test_a_pattern_that_repeats_is_sampled_at_all_of_its_places() -> None:
    """At equal distances, every range would be at the same place of rows of that length."""
    count, stretches = 256 * 1000, 1000
    for row in (4096, 65_536):
        size = row * stretches * 4
        places = [start % row for _, start, _ in sample_ranges([size], count)]
        in_first_eighth = sum(place < row / 8 for place in places) / len(places)
        assert 0.08 < in_first_eighth < 0.17
