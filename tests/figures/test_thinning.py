from itertools import pairwise

import pytest

from rank_callbacks.figures.thinning import thinned


@pytest.mark.parametrize("at_most", [2, 3, 7, 99, 100])
def test_keeps_the_first_and_the_last(at_most: int) -> None:
    kept = thinned(range(100), at_most)
    assert (kept[0], kept[-1], len(kept)) == (0, 99, at_most)
    assert kept == sorted(set(kept))


@pytest.mark.parametrize("many", [0, 1, 2, 5])
def test_few_are_kept_as_they_are(many: int) -> None:
    assert thinned(range(many), 5) == list(range(many))


def test_gaps_are_even() -> None:
    kept = thinned(range(1000), 100)
    assert {later - earlier for earlier, later in pairwise(kept)} <= {10, 11}
