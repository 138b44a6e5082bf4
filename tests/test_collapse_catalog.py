import re

import pytest

from rank_callbacks import functional
from rank_callbacks.callbacks import collapse_readings, neural_collapse, rank_collapse
from rank_callbacks.collapse_catalog import NEURAL_COLLAPSE, RANK_COLLAPSE

# Elsewhere a reading has the name of its function.
FUNCTIONS = {"classifier_equinorm": "equinorm", "classifier_equiangularity": "equiangularity"}

every_row = pytest.mark.parametrize("row", [*NEURAL_COLLAPSE.values(), *RANK_COLLAPSE.values()], ids=lambda row: row.name)


def test_every_reading_of_neural_collapse_has_a_row():
    assert set(NEURAL_COLLAPSE) == {*collapse_readings.MEASURES, "samples_per_class"}


@pytest.mark.parametrize("row", NEURAL_COLLAPSE.values(), ids=list(NEURAL_COLLAPSE))
def test_a_row_cites_the_address_that_its_function_cites(row):
    function = getattr(functional, FUNCTIONS.get(row.name, row.name), None)
    if function is not None and "Reference:" in function.__doc__:
        assert row.source.rpartition(", ")[2] in function.__doc__


@pytest.mark.parametrize(
    ("rows", "monitor"),
    [(NEURAL_COLLAPSE, neural_collapse.NeuralCollapseMonitor), (RANK_COLLAPSE, rank_collapse.RankCollapseMonitor)],
)
def test_the_monitor_tells_of_every_reading(rows, monitor):
    told = re.sub(r"``\n +|\s|``", "", monitor.__doc__)
    for name in rows:
        assert name in told or name.removeprefix("certificate") in told or name.replace("rank_k", "") in told, name


@every_row
def test_a_row_is_complete(row):
    assert all(row)
    assert row.title.endswith(".")
    assert row.how_to_read.endswith(".")
    assert re.fullmatch(r".+ \(.+, \d{4}\), (https://\S+)", row.source)
