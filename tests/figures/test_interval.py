import numpy as np
import pytest
from scipy.stats import t

from rank_callbacks.figures.interval import half_width, t_quantile


@pytest.mark.parametrize("degrees", [*range(1, 33), 50, 100, 10_000])
def test_quantile_is_scipys(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(t.ppf(0.975, degrees), abs=1e-3)


def test_no_degree_of_freedom() -> None:
    with pytest.raises(ValueError, match="Expected one degree of freedom or more, got 0"):
        t_quantile(0)


def test_half_width_is_scipys() -> None:
    values = [1.0, 4.0, 2.5, 3.0]
    low, high = t.interval(0.95, 3, loc=np.mean(values), scale=np.std(values, ddof=1) / 2)
    assert half_width(values) == pytest.approx((high - low) / 2, rel=1e-3)


def test_one_value_has_no_interval() -> None:
    assert half_width([3.0]) is None
