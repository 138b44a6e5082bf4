from rank_callbacks.compare.network_order import layer_places
from rank_callbacks.compare.run import Run
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag


def run_of(kind: str, *readings: tuple[int, str, str]) -> Run:
    rows = [Row("a", step, Tag("weight_rank", measure, layer), 1.0) for step, measure, layer in readings]
    return Run("a", kind, {}, rows, {}, {})


def test_layers_stand_as_they_were_logged() -> None:
    run = run_of("tensorboard", (0, "stable_rank", "mean_over_layers"), (0, "stable_rank", "z"), (0, "stable_rank", "a"))
    assert layer_places([run]) == {"z": 0.0, "a": 1.0}
    assert layer_places([run], "gradient_rank") == {}


def test_the_fullest_measure_of_the_first_report_counts() -> None:
    """Layers are read in turn where whole spectra are dear."""
    run = run_of(
        "tensorboard",
        (0, "effective_rank", "a"),
        (0, "stable_rank", "z"),
        (0, "stable_rank", "a"),
        (5, "effective_rank", "y"),
    )
    assert layer_places([run_of("tensorboard", (0, "effective_rank", "a")), run]) == {"z": 0.0, "a": 1.0}


def test_logs_that_sort_or_shuffle_tell_nothing() -> None:
    for kind in ("csv", "wandb"):
        assert layer_places([run_of(kind, (0, "stable_rank", "z"), (0, "stable_rank", "a"))]) == {}
