import re

import pytest

from rank_callbacks import FeatureRankMonitor, NetworkRankMonitor, TruncationMonitor, functional
from rank_callbacks.callbacks import feature_readings, network_readings
from rank_callbacks.catalog import MEASURES
from rank_callbacks.feature_catalog import FEATURE_RANK, NETWORK_RANK, TRUNCATION

FEATURES = {"alpha_req", "saturation", "corrected_participation_ratio", "two_nn", "lidar", "dead_fraction", "dormant_ratio"}
rows = [*FEATURE_RANK.values(), *NETWORK_RANK.values(), *TRUNCATION.values()]
every_row = pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def test_every_reading_has_a_row():
    assert set(FEATURE_RANK) == FEATURES | {"samples", "samples_per_feature", "samples_per_class", "depth"}
    assert set(NETWORK_RANK) == {*network_readings._MEASURES, "jacobian_error", "predicted_logit_accuracy"}


@pytest.mark.parametrize(
    ("rows", "monitor", "before"),
    [
        (FEATURE_RANK, FeatureRankMonitor, ""),
        (NETWORK_RANK, NetworkRankMonitor, ""),
        (TRUNCATION, TruncationMonitor, "truncation/"),
    ],
)
def test_the_monitor_tells_of_every_reading(rows, monitor, before):
    for name in rows:
        assert f"``{before}{name}" in monitor.__doc__, name


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_the_monitor_takes_every_measure_of_features(name):
    feature_readings.check_measure(name)


def test_no_name_means_two_measures():
    names = [*MEASURES, *(f"centered_{name}" for name in MEASURES), *FEATURE_RANK]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_a_row_cites_the_address_that_its_function_cites(name):
    assert FEATURE_RANK[name].source.rpartition(", ")[2] in getattr(functional, name).__doc__


@every_row
def test_a_row_is_complete(row):
    assert all(row)
    assert row.title.endswith(".")
    assert row.how_to_read.endswith(".")
    assert re.fullmatch(r".+ \(.+, \d{4}\), (https://\S+)", row.source)
