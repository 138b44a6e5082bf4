import pytest

from rank_callbacks.figures.selection import nothing
from rank_callbacks.rows import Row
from tests.figures.tables import reading

MEAN = reading("weight_rank", "effective_rank", "mean_over_layers", 9.0)
LAYER = reading("weight_rank", "stable_rank", "fc", 3.0)
OTHER = reading("gradient_rank", "effective_rank", "fc", 3.0)


class TestNothing:
    """What a chart says that finds no layer with its measure."""

    @pytest.mark.parametrize(
        ("rows", "advice"),
        [
            pytest.param([OTHER], "Add WeightRankMonitor to the trainer's callbacks.", id="no monitor"),
            pytest.param([OTHER, MEAN, LAYER], "The runs have these measures of weight_rank: stable_rank.", id="others"),
            pytest.param(
                [OTHER, MEAN], 'mean over layers alone, as of many layers. Give WeightRankMonitor scalars="all".', id="mean"
            ),
        ],
    )
    def test_advice(self, rows: list[Row], advice: str) -> None:
        message = str(nothing(rows, "weight_rank", "effective_rank"))
        assert message.startswith("Expected readings with tags weight_rank/effective_rank/<layer>, got none. ")
        assert message.endswith(advice)
