import math

from rank_callbacks.compare.run import Run
from rank_callbacks.compare.summary import summary
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag
from tests.compare.sweeps import LAYERS, distances, made_run, ranks, sweep_of


def sentence(runs: list[Run], word: str) -> str:
    (found,) = [text for text in summary(runs) if word in text]
    return found


def test_a_clean_sweep() -> None:
    texts = summary(sweep_of())
    assert texts[:3] == [
        "3 of 3 runs are compared, with 3 values of weight_decay.",
        "From weight_decay 0 to 0.01 the effective rank of the weights, mean over layers, falls from 30 to 10 (most in "
        "net.a.weight: 40 to 13.3), while the accuracy falls from 0.95 to 0.942.",
        "3 of 3 runs are on the Pareto front of low rank and high accuracy: the best accuracy is 0.95, at rank 30 "
        "(weight_decay 0); the lowest rank within 1 point of it has wd=0.01 (weight_decay 0.01, at rank 10 and accuracy "
        "0.942).",
    ]
    assert "Over 4 layers of 2 runs" in texts[3]
    assert "to the power 1 (95 % interval 1 to 1), which explains 100%" in texts[3]
    assert texts[3].endswith("The interval holds 1, a distance in proportion to TCV/λ as in the bound of Zangrando et al.")
    assert texts[4].startswith("The joint certificate holds for 6 of 6 weights")


def test_seeds_are_a_mean() -> None:
    seeds = [made_run(f"s{rank}", 0.0, ranks(rank, rank), 0.9 + rank / 1000) for rank in (10.0, 20.0)]
    text = sentence([*seeds, made_run("b", 0.1, ranks(5.0, 6.0), 0.925)], "From weight_decay")
    assert "falls from 15 to 5.5" in text
    assert "rises from 0.915 to 0.925" in text


def seeded(name: str, decay: float, seed: int, rank: float, accuracy: float, **more: float) -> Run:
    run = made_run(name, decay, ranks(rank, rank), accuracy)
    return run._replace(hyperparameters={"weight_decay": decay, "seed": seed, **more})


# Settings a and b, of which a has one lucky seed.
LUCKY = [
    seeded("a0", 0.0, 0, 20.0, 0.99),
    seeded("a1", 0.0, 1, 30.0, 0.91),
    seeded("b0", 0.1, 0, 9.0, 0.955),
    seeded("b1", 0.1, 1, 11.0, 0.945),
]


def test_means_over_seeds_are_judged_and_no_lucky_run() -> None:
    assert sentence(LUCKY, "Pareto") == (
        "1 of 2 settings, as means over seeds with 95 % intervals, are on the Pareto front of low rank and high accuracy: the "
        "best accuracy is 0.95 ± 0.064, at rank 10 (weight_decay 0.1, 2 seeds); no setting of lower rank is within 1 point "
        "of it."
    )


def test_lowest_rank_of_means_within_a_point() -> None:
    cheap = [seeded("c0", 0.2, 0, 4.0, 0.95), seeded("c1", 0.2, 1, 6.0, 0.94)]
    text = sentence([*LUCKY, *cheap], "Pareto")
    assert text.endswith(
        "the lowest rank within 1 point of it has weight_decay 0.2 (at rank 5 and accuracy 0.945 ± 0.064, 2 seeds)."
    )


def test_runs_that_differ_in_more_than_the_seed_are_no_seeds() -> None:
    runs = [run._replace(hyperparameters={**run.hyperparameters, "lr": float(run.name == "a0")}) for run in LUCKY[:3]]
    assert "the best accuracy is 0.99, at rank 20 (weight_decay 0)" in sentence(runs, "Pareto")


def test_a_seed_by_another_name() -> None:
    runs = [
        run._replace(hyperparameters={"weight_decay": run.hyperparameters["weight_decay"], "s": place})
        for place, run in enumerate(LUCKY)
    ]
    assert "the best accuracy is 0.99" in sentence(runs, "Pareto")
    (text,) = [text for text in summary(runs, seed="s") if "Pareto" in text]
    assert text == sentence(LUCKY, "Pareto")


def test_unsound_runs_are_counted_and_not_spoken_of() -> None:
    odd = made_run("odd", 0.1, ranks(1.0, 1.0), 0.999, notes=["still running"])
    texts = summary([*sweep_of(), odd])
    assert texts[0] == (
        "3 of 4 runs are compared, with 3 values of weight_decay. 1 cannot be and is in no mean, fit or front; why is below."
    )
    assert texts[1:] == summary(sweep_of())[1:]


def test_accuracy_in_percent() -> None:
    runs = [made_run("a", 0.0, ranks(9.0, 9.0), 95.0), made_run("b", 0.1, ranks(3.0, 3.0), 93.5)]
    assert sentence(runs, "Pareto").endswith("no run of lower rank is within 1 point of it.")
    runs[1] = made_run("b", 0.1, ranks(3.0, 3.0), 94.5)
    assert "within 1 point of it has b" in sentence(runs, "Pareto")


def test_nan_accuracy_is_no_best() -> None:
    runs = [*sweep_of(), made_run("nan", 0.1, ranks(1.0, 1.0), math.nan)]
    assert "the best accuracy is 0.95" in sentence(runs, "Pareto")
    assert "accuracy" not in sentence(runs, "From weight_decay")


def test_one_setting_moves_nowhere() -> None:
    assert not [text for text in summary(sweep_of([0.1])) if text.startswith("From")]


def test_settings_in_words() -> None:
    runs = [
        made_run(name, 0.0, ranks(4.0, rank))._replace(hyperparameters={"opt": name})
        for name, rank in (("sgd", 2.0), ("adam", 6.0))
    ]
    assert (
        "From opt adam to sgd the effective rank of the weights, mean over layers, falls from 5 to 3"
        in summary(runs, "opt")[1]
    )


def law_of(power: float) -> str:
    runs = [
        made_run(f"r{d}", d, distances(d, (0.5, 0.2), [1e-4 * (v / d) ** power for v in (0.5, 0.2)]))
        for d in (0.001, 0.01, 0.1)
    ]
    return sentence(runs, "Zangrando")


def test_verdict_says_what_the_interval_allows() -> None:
    assert "holds 1" in law_of(1)
    assert "more steeply" in law_of(2)
    assert "less steeply" in law_of(0.5)
    assert "rises where TCV/λ falls" in law_of(-1)


def test_interval_that_holds_zero_is_no_law() -> None:
    far = {0.001: (0.1, 0.9), 0.01: (0.9, 0.1), 0.1: (0.2, 0.5)}
    runs = [made_run(f"r{d}", d, distances(d, (0.5, 0.2), both)) for d, both in far.items()]
    assert sentence(runs, "Over 6 layers").endswith("too few, or too different, to show that the distance follows TCV/λ.")


def test_certificate_that_is_crossed_is_counted() -> None:
    readings = distances(0.1, (0.5, 0.2), (0.4, 0.1)) | {("rank_collapse", "certificate_joint", LAYERS[0]): 0.1}
    text = sentence([made_run("a", 0.1, readings)], "certificate")
    assert text.startswith("The joint certificate holds for 1 of 2 weights")
    assert text.endswith("for 2.")


def test_least_used_gradient() -> None:
    readings = {("gradient_rank", "utilization", layer): share for layer, share in zip(LAYERS, (0.9, 0.3), strict=True)}
    text = sentence([made_run("a", 0.1, ranks(1.0, 2.0) | readings)], "gradients")
    assert "have 60% of the rank" in text
    assert "least has net.b.weight in a, 30%" in text


def truncated(run: Run, *at: tuple[float, float, float], as_trained: float = 0.9) -> Run:
    """With tolerances, accuracies and shares."""
    values = {"accuracy": as_trained}
    for rtol, accuracy, share in at:
        values |= {f"accuracy_at_rtol_{rtol:g}": accuracy, f"parameters_at_rtol_{rtol:g}": share}
    return run._replace(
        rows=[*run.rows, *(Row(run.name, 9, Tag("truncation", name, "network"), value) for name, value in values.items())]
    )


def test_truncation_at_the_largest_tolerance_that_costs_little() -> None:
    first, *others, last = sweep_of()
    runs = [
        truncated(first, (0.03, 0.9, 0.8), (0.1, 0.7, 0.5)),
        *others,
        truncated(last, (0.03, 0.9, 0.3), (0.1, 0.895, 0.08)),
    ]
    assert [text for text in summary(runs) if "runcation" in text] == [
        "At weight_decay 0.01 truncation at 0.1 keeps 8% of the parameters at accuracy 0.895 (0.9 without); at weight_decay 0 "
        "truncation at 0.03 keeps 80% of the parameters at accuracy 0.9 (0.9 without). These are the largest of the "
        "tolerances tried that cost 1 point at most."
    ]


def test_truncation_of_seeds_is_their_mean_at_tolerances_that_all_have() -> None:
    seeds = [truncated(made_run(str(seed), 0.1, ranks(9.0, float(seed))), (0.1, 0.9, 0.1 * seed)) for seed in (1, 3)]
    seeds[0] = truncated(seeds[0], (0.1, 0.9, 0.1), (0.3, 0.9, 0.01))
    assert "truncation at 0.1 keeps 20% of the parameters" in sentence(seeds, "runcation")


def test_truncation_that_costs_much_everywhere() -> None:
    text = sentence([truncated(made_run("a", 0.1, ranks(9.0, 9.0)), (0.1, 0.5, 0.1), (0.3, 0.2, 0.1))], "runcation")
    assert text.startswith("At weight_decay 0.1 truncation at 0.1 and above costs more than 1 point of 0.9.")


def test_seeds_of_other_tolerances_are_not_mixed() -> None:
    """Or the share at each would be of another seed alone."""
    seeds = [truncated(made_run(str(rtol), 0.1, ranks(9.0, rtol)), (rtol, 0.9, rtol)) for rtol in (0.1, 0.3)]
    assert not [text for text in summary(seeds) if "runcation" in text]


def test_truncation_without_samples_has_no_sentence() -> None:
    run = truncated(made_run("a", 0.1, ranks(9.0, 9.0)), (0.1, math.nan, 0.1), as_trained=math.nan)
    assert not [text for text in summary([run]) if "runcation" in text]


def test_what_reads_the_same_does_not_move() -> None:
    runs = [made_run(name, decay, ranks(rank, rank)) for name, decay, rank in (("a", 0.0, 9.001), ("b", 0.1, 9.002))]
    assert "stays at 9" in sentence(runs, "From weight_decay")


def test_the_accuracy_is_that_of_the_table() -> None:
    """Which counts runs that are not compared as well."""
    runs = [run._replace(metrics={"test_acc": [(9, 0.7)], "val_acc": [(9, 0.8)]}) for run in sweep_of()]
    odd = [
        made_run(str(at), 0.1, ranks(1.0, 1.0), notes=["failed"])._replace(metrics={"val_acc": [(9, 0.1)]}) for at in range(4)
    ]
    assert "the best accuracy is 0.8" in sentence([*runs, *odd], "Pareto")


def test_layers_of_the_same_run_tell_of_the_variation_alone() -> None:
    assert "between layers of a run it goes as the TCV ratio to the power 2." in law_of(2)
