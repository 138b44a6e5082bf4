"""What all monitors share: the group of their tags, which is each one's own."""

from typing import Any

import pytest
from pytorch_lightning import Callback

from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    WeightRankMonitor,
)
from tests.gradients import wide
from tests.models import CLASSES, convnet, mlp
from tests.training import Recorder, fit


@pytest.mark.parametrize(
    ("monitors", "kinds"),
    [
        ([WeightRankMonitor(), WeightRankMonitor(conv="circular_5x5")], "'weight_rank' of WeightRankMonitor and WeightR"),
        ([WeightRankMonitor(layers="network.0"), WeightRankMonitor(layers="network.5")], "'weight_rank' of WeightRankM"),
        ([GradientRankMonitor(["stable_rank"]), GradientRankMonitor()], "'gradient_rank' of GradientRankMonitor and Grad"),
        ([RankCollapseMonitor(CLASSES), RankCollapseMonitor(2)], "'rank_collapse' of RankCollapseMonitor and RankCollapseM"),
        ([WeightRankMonitor(group="all"), GradientRankMonitor(group="all")], "'all' of WeightRankMonitor and GradientR"),
        ([FeatureRankMonitor(group="all"), WeightRankMonitor(group="all")], "'all' of FeatureRankMonitor and WeightRankM"),
        ([NeuralCollapseMonitor(CLASSES, group="all"), GradientRankMonitor(group="all")], "'all' of NeuralCollapseMonitor"),
    ],
    ids=["conv", "layers", "measures", "classes", "weights and gradients", "features and weights", "collapse and gradients"],
)
def test_two_monitors_of_one_group_are_refused_before_training(monitors: list[Callback], kinds: str) -> None:
    model = convnet()
    with pytest.raises(ValueError, match=rf"Expected each monitor to have a group= of its own, got {kinds}"):
        fit(model, *monitors, num_sanity_val_steps=0)
    assert model.losses == []


def rows_of(recorder: Recorder, *groups: str) -> dict[tuple[int, str], float]:
    """Readings under the tags of a default monitor; the names of two do not meet."""
    return {(step, tag.split("/", 1)[1]): value for (step, tag), value in recorder.readings(*groups).items()}


@pytest.mark.parametrize(
    ("group", "change"), [("circular", "circular_change"), ("weight_rank_circular", "weight_change_rank_circular")]
)
def test_weights_in_two_ways_each_have_their_tags(group: str, change: str) -> None:
    recorder = Recorder()
    given: dict[str, Any] = {"measures": ["frobenius_norm"], "change": True, "every_n_steps": 2}
    fit(convnet(), WeightRankMonitor(**given), WeightRankMonitor(**given, conv="circular_5x5", group=group), logger=recorder)
    for default, own in (("weight_rank", group), ("weight_change_rank", change)):
        plain, other = rows_of(recorder, default), rows_of(recorder, own)
        linear, mean = "frobenius_norm/network.5.weight", "frobenius_norm/mean_over_layers"
        for step in (0, 2, 3):
            assert plain[step, linear] == other[step, linear]
            # Each weight of a kernel stands in 25 places of the map on images of 5 x 5.
            kernels = "frobenius_norm/network.0.weight"
            assert other[step, f"{kernels}.circular_5x5"] == pytest.approx(5 * plain[step, kernels], rel=1e-5)
            assert plain[step, mean] < other[step, mean] or step == 0
    of_cost = {tag for _, tag, _ in recorder.rows if tag.startswith("monitor/")}
    assert of_cost == {f"monitor/{what}/{one}" for what in ("seconds", "share_of_training") for one in ("weight_rank", group)}


@pytest.mark.parametrize(
    ("group", "update", "moment"),
    [("heads", "heads_update", "heads_moment"), ("gradient_rank_heads", "update_rank_heads", "moment_rank_heads")],
)
def test_gradients_of_two_monitors_each_have_their_tags(group: str, update: str, moment: str) -> None:
    recorder = Recorder()
    given: dict[str, Any] = {"every_n_steps": 2, "update": True, "moments": True, "subspace_rank": 2}
    fit(wide(), GradientRankMonitor(**given), GradientRankMonitor(**given, layers="network.4", group=group), logger=recorder)
    for default, own in (("gradient_rank", group), ("update_rank", update), ("moment_rank", moment)):
        plain, other = rows_of(recorder, default), rows_of(recorder, own)
        of_layer = {key: value for key, value in plain.items() if "network.4" in key[1]}
        assert {key: value for key, value in other.items() if "over_layers" not in key[1]} == of_layer
        assert of_layer
    assert {tag.split("/")[2] for _, tag, _ in recorder.rows if tag.startswith("monitor/")} == {"gradient_rank", group}


def test_collapse_to_two_numbers_of_classes_each_has_its_tags() -> None:
    recorder = Recorder()
    coarse = RankCollapseMonitor(2, labels=lambda batch: batch[1] % 2, every_n_steps=2, group="coarse")
    fit(mlp(), RankCollapseMonitor(CLASSES, every_n_steps=2), coarse, logger=recorder)
    plain, other = rows_of(recorder, "rank_collapse"), rows_of(recorder, "coarse")
    assert plain.keys() == other.keys()
    rank, distance = "numerical_rank/network.0.weight", "distance_to_rank_k/network.0.weight"
    for step in recorder.steps("rank_collapse"):
        assert plain[step, rank] == other[step, rank]
        assert plain[step, distance] < other[step, distance]
    assert {tag.split("/")[2] for _, tag, _ in recorder.rows if tag.startswith("monitor/")} == {"rank_collapse", "coarse"}


def test_a_group_is_part_of_the_state_key() -> None:
    assert WeightRankMonitor().state_key != WeightRankMonitor(group="other").state_key
    assert GradientRankMonitor().state_key != GradientRankMonitor(group="other").state_key
    assert RankCollapseMonitor(CLASSES).state_key != RankCollapseMonitor(CLASSES, group="other").state_key
