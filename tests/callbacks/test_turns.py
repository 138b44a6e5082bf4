from rank_callbacks.callbacks.turns import Turns

COSTS = {"large": 0.1, "larger": 0.2, "largest": 0.4}


def test_oldest_go_first_and_a_dear_one_is_waited_for() -> None:
    turns = Turns()
    turns.measured(COSTS, step=0, expected=0.7, seconds=0.7)
    turns.measured(["large"], step=10, expected=0.1, seconds=0.1)
    assert turns.due(COSTS, seconds=0.5) == ["larger"]
    assert turns.due(COSTS, seconds=0.65) == ["larger", "largest"]
    turns.measured(["larger"], step=20, expected=0.2, seconds=0.2)
    assert turns.due(COSTS, seconds=0.3) == []
    assert turns.due(COSTS, seconds=0.45) == ["largest"]


def test_a_slow_machine_corrects_the_model() -> None:
    turns = Turns()
    turns.measured(COSTS, step=0, expected=0.7, seconds=2.1)
    assert turns.due(COSTS, seconds=0.8) == ["large"]
    assert turns.due(COSTS, seconds=0.95) == ["large", "larger"]


def test_small_layers_say_nothing_of_what_large_ones_take() -> None:
    """A report of a head alone is mostly calls: a hundred times what its spectrum takes."""
    turns = Turns()
    turns.measured(COSTS, step=0, expected=0.7, seconds=0.7)
    turns.measured(["head"], step=50, expected=1e-5, seconds=1e-3)
    assert turns.due(COSTS, seconds=0.75) == ["large", "larger", "largest"]


def test_age_is_that_of_the_oldest() -> None:
    turns = Turns()
    turns.measured(["large"], step=30, expected=0.1, seconds=0.1)
    assert turns.age(["large"], step=50) == 20
    assert turns.age(COSTS, step=50) == 50
    assert turns.age([], step=50) == 0
