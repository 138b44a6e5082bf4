from rank_callbacks.figures.layers import in_order, layer_ticks, short_names
from tests.figures.tables import depths


class TestInOrder:
    def test_numbers_count_as_numbers(self) -> None:
        assert in_order(["b.10", "b.9", "a"], [], "weight_rank") == ["a", "b.9", "b.10"]

    def test_depth_of_the_module_is_that_of_its_weight(self) -> None:
        assert in_order(["a.weight", "b.weight"], depths("b", "a"), "weight_rank") == ["b.weight", "a.weight"]

    def test_depths_of_the_group_come_first(self) -> None:
        rows = depths("a", "b", group="feature_rank") + depths("b", "a", group="network_rank")
        assert in_order(["a", "b"], rows, "network_rank") == ["b", "a"]

    def test_places_where_depths_know_some_alone(self) -> None:
        """Depths of two layers and places of three are on different scales: they do not mix."""
        places = {"c": 0.0, "b": 1.0, "a": 2.0}
        assert in_order(["a", "b", "c"], depths("a", "b"), "feature_rank", places) == ["c", "b", "a"]

    def test_depths_before_places_where_both_know_all(self) -> None:
        assert in_order(["a", "b"], depths("b", "a"), "feature_rank", {"a": 0.0, "b": 1.0}) == ["b", "a"]

    def test_each_once(self) -> None:
        assert in_order(["a", "a"], [], "feature_rank") == ["a"]


class TestShortNames:
    def test_without_what_all_share(self) -> None:
        assert short_names(["net.a.0.weight", "net.b.0.weight"]) == ["a", "b"]

    def test_something_is_left_of_each(self) -> None:
        assert short_names(["net.a", "net.a.0"]) == ["a", "a.0"]

    def test_one_is_kept(self) -> None:
        assert short_names(["net.head.weight"]) == ["net.head.weight"]

    def test_none(self) -> None:
        assert short_names([]) == []

    def test_long_ones_lose_their_middle(self) -> None:
        (first, _) = short_names(["a" * 50 + "_first", "head"])
        assert len(first) < 32
        assert first.endswith("_first")


def test_labels_are_no_markup() -> None:
    assert layer_ticks(["<i>a</i>", "b"])["ticktext"] == ["&lt;i&gt;a&lt;/i&gt;", "b"]
