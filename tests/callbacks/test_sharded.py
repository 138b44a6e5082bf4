"""Sharded models, in two processes and in four: readings are those of the whole matrices."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rank_callbacks.callbacks.gathering import sends_gram
from rank_callbacks.callbacks.sharing import check_shards, is_tensor_parallel
from rank_callbacks.functional import rounding_noise
from rank_callbacks.matrices.sharded import like, read_on_first, row_shard, settled, shard_of, whole
from tests import processes
from tests.callbacks.two_processes_sharded import MEASURES, SHAPES
from tests.training import QUIET, assert_identical

# Parameters of the model that are one matrix as they stand.
LAYERS = ["uneven", "convolution", "embedding", "attention.out_proj", "row", "tall", "last"]
QKV = ["q", "k", "v"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes have saved what they saw."""
    path = tmp_path_factory.mktemp("processes")
    processes.run_script("tests.callbacks.two_processes_sharded", path)
    return path


seen = cache(processes.seen)


def spectrum(matrix: Tensor) -> NDArray[np.float64]:
    """By LAPACK; NumPy's threads would wait for those of other processes."""
    return torch.linalg.svdvals(matrix.to(torch.complex128) if matrix.is_complex() else matrix.double()).numpy()


def assert_spectra(values: dict[str, Tensor], matrices: dict[str, Tensor]) -> None:
    assert list(values) == list(matrices)
    for name, matrix in matrices.items():
        expected = spectrum(matrix)
        np.testing.assert_allclose(values[name], expected, rtol=0, atol=1e-10 * expected[0], err_msg=name)


@pytest.mark.parametrize(
    ("file", "way"),
    [("pieces", f"cut along {dim}") for dim in (0, 1)]
    + [
        ("grid", "both"),
        ("grid", "hybrid"),
        ("grid", "copies"),
    ],
)
def test_spectra_are_those_of_the_whole_matrices(folder: Path, file: str, way: str) -> None:
    processes = seen(folder, file)
    assert len(processes) == (2 if file == "pieces" else 4)
    for process in processes:
        assert_spectra(process[way]["values"], process["matrices"])


def test_spectra_of_every_type(folder: Path) -> None:
    for process in seen(folder, "pieces"):
        assert_spectra(process["types"]["values"], process["of_types"])


def test_fully_sharded_and_tensor_parallel_at_once(folder: Path) -> None:
    for process in seen(folder, "grid"):
        assert_spectra(process["model"]["values"], process["model"]["before"])


@pytest.mark.parametrize(("file", "way"), [("pieces", "cut along 0"), ("pieces", "cut along 1"), ("grid", "hybrid")])
def test_noise_is_that_of_the_whole_matrix(folder: Path, file: str, way: str) -> None:
    for process in seen(folder, file):
        expected = {name: float(rounding_noise(m, torch.bfloat16)) for name, m in process["matrices"].items()}
        assert process[way]["noise"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("file", "way"), [("pieces", "cut along 0"), ("pieces", "cut along 1"), ("grid", "hybrid")])
def test_sums_over_row_shards_are_those_over_all_rows(folder: Path, file: str, way: str) -> None:
    for process in seen(folder, file):
        for name, matrix in process["matrices"].items():
            rows = matrix.double().mT if way.endswith("1") else matrix.double()
            torch.testing.assert_close(process[way]["products"][name], rows.mT @ rows.sum(1))


@pytest.mark.parametrize("dim", [0, 1])
def test_bytes_sent_are_those_of_the_smaller_of_gram_matrix_and_part(folder: Path, dim: int) -> None:
    # A flag and the singular values of each matrix go to all; the tall ones' triangles, or a half of any other, to its owner.
    expected = {"all_reduce": 4 * len(SHAPES) + 8 * sum(map(min, SHAPES.values())), "reduce": 0, "gather": 0}
    for name, shape in SHAPES.items():
        long, short = shape[dim], shape[1 - dim]
        if name in ({0: ("embedding", "tall"), 1: ("wide",)}[dim]):
            expected["reduce"] += 8 * short * (short + 1) // 2
        else:
            expected["gather"] += 4 * -(-long // 2) * short
    assert expected["reduce"] < sum(4 * SHAPES[name][0] * SHAPES[name][1] // 2 for name in ("embedding", "tall"))
    for process in seen(folder, "pieces"):
        assert process[f"cut along {dim}"]["bytes"] == expected


def test_nan_in_the_last_part_is_nan_on_all(folder: Path) -> None:
    for process in seen(folder, "pieces"):
        assert process["spoilt"]["values"].keys() == SHAPES.keys()
        assert all(values.isnan().all() for values in process["spoilt"]["values"].values())


def test_failure_of_a_process_is_nan_on_all_and_nobody_waits(folder: Path) -> None:
    first, second = seen(folder, "pieces")
    for process in (first, second):
        assert process["failed"]["values"]["impossible"].isnan().all()
        assert process["failed"]["values"]["possible"].tolist() == [1, 1, 1]
        assert process["refused"]["values"]["owned"].isnan().all()
        assert process["refused"]["values"]["other"].tolist() == [1, 1, 1]


def test_kernels_stay_in_parts_where_the_parts_are_even(folder: Path) -> None:
    for process in seen(folder, "pieces"):
        for one in process["kernels"]:
            assert torch.equal(one["view"], one["is"]), one["conv"]
        stays = {one["conv"].partition("(")[0] + one["conv"].rpartition(")")[2] for one in process["kernels"] if one["stays"]}
        assert stays == {
            *("Conv2d cut along 0 as filters", "Conv2d cut along 1 as filters", "Conv1d cut along 0 as filters"),
            *("ConvTranspose2d cut along 0 as filters", "ConvTranspose2d cut along 1 as filters"),
        }


def test_weights_that_are_computed_are_gathered(folder: Path) -> None:
    for process in seen(folder, "pieces"):
        before, after = process["adapters"]["before"], process["adapters"]["after"]
        assert {name.partition(".")[0] for name in before} == {"lora_BA", "pruned", "old", "new", "bilinear", "recurrent"}
        assert_identical(after, before)


def test_training_is_bit_identical_with_and_without_the_monitors(folder: Path) -> None:
    watched, unwatched = seen(folder, "sharded"), seen(folder, "unwatched")
    assert len(watched) == len(unwatched) == 2
    assert watched[0]["metrics"]
    assert not unwatched[0]["metrics"]
    assert watched[0]["outcome"]["losses"] != watched[1]["outcome"]["losses"]
    for with_monitors, without in zip(watched, unwatched, strict=True):
        assert_identical(with_monitors["outcome"], without["outcome"])


def measures(matrix: Tensor) -> dict[str, float]:
    values = spectrum(matrix.flatten(1))
    shares = values / values.sum()
    return {
        "frobenius_norm": np.linalg.norm(values),
        "stable_rank": (values**2).sum() / values[0] ** 2,
        "effective_rank": np.exp(-(shares * np.log(shares, where=shares > 0, out=np.zeros_like(shares))).sum()),
    }


def readings(rows: dict[tuple[int, str], float], group: str) -> dict[tuple[int, str, str], float]:
    """By step, layer and measure."""
    found = {(step, *tag.split("/")): value for (step, tag), value in rows.items()}
    return {(s, layer, measure): v for (s, of, measure, layer), v in found.items() if of == group}


def expected(matrices: dict[int, dict[str, Tensor]], layers: list[str], suffix: str = "") -> dict[tuple[int, str, str], float]:
    return {
        (step, f"{layer}.weight{suffix}", measure): value
        for step, of_layers in matrices.items()
        for layer in layers
        for measure, value in measures(of_layers[f"{layer}.weight"]).items()
    }


def of_network(layers: list[str]) -> list[str]:
    return [f"network.{layer}" for layer in layers]


@pytest.mark.parametrize("run", ["sharded", "resumed", "split"])
def test_readings_of_weights_are_those_of_the_whole_model(folder: Path, run: str) -> None:
    first, second = seen(folder, run)
    layers = of_network(["0", "2", "4"] if run == "split" else LAYERS)
    read = readings(first["rows"], "weight_rank")
    assert second["rows"] == {}
    assert set(first["weights"]) == ({2, 3, 4} if run == "resumed" else {0, 1, 2} if run == "sharded" else {0, 1, 2, 3})
    wanted = expected(first["weights"], layers)
    # A resumed run has its first report from the run before.
    assert {key: read[key] for key in wanted if key in read} == pytest.approx(
        {key: value for key, value in wanted.items() if key in read}, rel=1e-10
    )
    assert {step for step, *_ in read} == set(first["weights"]) - ({2} if run == "resumed" else set())


def test_fused_projection_and_computed_weight_are_read(folder: Path) -> None:
    first = seen(folder, "sharded")[0]
    read = readings(first["rows"], "weight_rank")
    name = "network.attention.in_proj_weight"
    for step, weights in first["weights"].items():
        parts = dict(zip(QKV, weights[name].chunk(3), strict=True))
        direction = weights["network.normed.parametrizations.weight.original1"].double()
        lengths = weights["network.normed.parametrizations.weight.original0"].double()
        normed = lengths * direction / direction.norm(dim=1, keepdim=True)
        for layer, matrix in {f"{name}.{part}": rows for part, rows in parts.items()}.items():
            for measure, value in measures(matrix).items():
                assert read[step, layer, measure] == pytest.approx(value, rel=1e-10)
        for measure, value in measures(normed).items():
            assert read[step, "network.normed.weight", measure] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("run", ["sharded", "resumed"])
def test_readings_of_change_are_from_the_first_weights(folder: Path, run: str) -> None:
    """Also where a checkpoint has held them."""
    first, start = seen(folder, run)[0], seen(folder, "sharded")[0]["weights"][0]
    changes = {
        step: {name: weight.double() - start[name].double() for name, weight in weights.items() if weight.dim() > 1}
        for step, weights in first["weights"].items()
        if step > (2 if run == "resumed" else 0)
    }
    wanted, read = expected(changes, of_network(LAYERS)), readings(first["rows"], "weight_change_rank")
    assert {key: read[key] for key in wanted} == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("run", ["sharded", "split"])
def test_readings_of_gradients_and_momentum_are_those_of_the_whole_model(folder: Path, run: str) -> None:
    first = seen(folder, run)[0]
    layers = of_network(["0", "2", "4"] if run == "split" else LAYERS)
    for group, matrices, suffix in (("gradient_rank", "gradients", ""), ("moment_rank", "moments", ".exp_avg")):
        wanted, read = expected(first[matrices], layers, suffix), readings(first["rows"], group)
        for key, value in wanted.items():
            # What is below the noise of a sketch or of a Gram matrix has its share in the entropy.
            assert read[key] == pytest.approx(value, rel=1e-5 if key[2] == "effective_rank" else 1e-10), key


@pytest.mark.parametrize("run", ["sharded", "split"])
def test_readings_of_updates_are_those_of_the_whole_model(folder: Path, run: str) -> None:
    first = seen(folder, run)[0]
    layers, weights = of_network(["0", "2", "4"] if run == "split" else LAYERS), first["weights"]
    updates = {
        step: {name: weights[step + 1][name].double() - weight.double() for name, weight in weights[step].items()}
        for step in first["gradients"]
    }
    updates = {step: {name: change for name, change in of.items() if change.dim() > 1} for step, of in updates.items()}
    wanted, read = expected(updates, layers), readings(first["rows"], "update_rank")
    assert {key: read[key] for key in wanted} == pytest.approx(wanted, rel=1e-9)


def test_bounds_are_of_the_batches_of_both_processes(folder: Path) -> None:
    bounds = {k: v for k, v in readings(seen(folder, "sharded")[0]["rows"], "gradient_rank").items() if k[2] == "bound"}
    assert {
        layer: value for (_, layer, _), value in bounds.items() if layer in {"network.tall.weight", "network.last.weight"}
    } == {
        "network.tall.weight": 8,
        "network.last.weight": 3,
    }


def test_no_bound_under_tensor_parallelism(folder: Path) -> None:
    read = {measure for _, _, measure in readings(seen(folder, "split")[0]["rows"], "gradient_rank")}
    assert read == {*MEASURES, "subspace_overlap_2"}


def test_monitors_that_need_all_refuse_tensor_parallelism(folder: Path) -> None:
    for refused in seen(folder, "refusals"):
        of_layers = "Under tensor parallelism a process sees but a part of what passes through a layer"
        assert refused["FeatureRankMonitor"].startswith(of_layers)
        assert refused["NeuralCollapseMonitor"].startswith(of_layers)
        assert refused["RankCollapseMonitor"].startswith("ModelParallelStrategy shards parameters over processes")
        assert refused["TruncationMonitor"].startswith("ModelParallelStrategy shards parameters over processes")


@pytest.mark.parametrize("run", ["sharded", "split"])
def test_subspaces_are_compared_as_in_the_whole_model(folder: Path, run: str) -> None:
    first = seen(folder, run)[0]
    read = {k: v for k, v in readings(first["rows"], "gradient_rank").items() if k[2] == "subspace_overlap_2"}
    compared = {k[:2]: v for k, v in read.items() if not k[1].endswith("_over_layers") and "in_proj" not in k[1]}
    wanted = {}
    for step, layer in compared:
        gradients = (first["gradients"][s][layer].double().flatten(1) for s in (step - 1, step))
        before, after = (torch.linalg.svd(gradient, full_matrices=False)[0].numpy()[:, :2] for gradient in gradients)
        wanted[step, layer] = np.square(before.T @ after).sum() / 2
    assert compared == pytest.approx(wanted, abs=1e-3)
    assert len(compared) >= 3


@pytest.mark.parametrize("name", ["sharded", "resumed", "split"])
def test_callback_metrics_are_equal_on_both_processes(folder: Path, name: str) -> None:
    """But for what is said of the rows of a process's own batch."""
    first, second = seen(folder, name)
    alike = [tag for tag in first["metrics"] if "/input_rank/" not in tag and "/delta_rank/" not in tag]
    groups = {"weight_rank", "weight_change_rank", "gradient_rank", "update_rank", "moment_rank"}
    assert {tag.split("/")[0] for tag in alike} == groups
    assert {tag: first["metrics"][tag] for tag in alike} == {tag: second["metrics"][tag] for tag in alike}


@pytest.mark.parametrize("data", ["train", "val", "loader"])
def test_readings_of_features_are_those_of_one_process_on_all_samples(folder: Path, data: str) -> None:
    (one,), (first, second) = seen(folder, f"features-{data}-1"), seen(folder, f"features-{data}-2")
    assert {tag.split("/")[0] for _, tag in first["rows"]} == {"neural_collapse", "feature_rank"}
    assert {"neural_collapse/nc1_pinv/penultimate", "neural_collapse/self_duality/penultimate"} < {t for _, t in one["rows"]}
    assert first["rows"] == pytest.approx(one["rows"], rel=1e-4, abs=1e-6)
    assert first["metrics"] == second["metrics"] != {}
    assert second["rows"] == {}


@pytest.mark.parametrize("data", ["train", "val", "loader"])
def test_training_is_bit_identical_with_and_without_monitors_of_features(folder: Path, data: str) -> None:
    for with_monitors, without in zip(seen(folder, f"features-{data}-2"), seen(folder, "features-unwatched-2"), strict=True):
        assert_identical(with_monitors["outcome"], without["outcome"])


def test_checkpoint_holds_plain_tensors_of_the_first_weights(folder: Path) -> None:
    state = torch.load(folder / "checkpoint" / "meta.pt", weights_only=True)["callbacks"]
    (initial,) = (one["initial"] for key, one in state.items() if key.startswith("WeightRankMonitor"))
    start = seen(folder, "sharded")[0]["weights"][0]
    for layer in of_network(["uneven", "row", "embedding"]):
        assert torch.equal(initial[f"{layer}.weight"], start[f"{layer}.weight"])


def test_a_plain_tensor_is_its_own_whole() -> None:
    matrix = torch.eye(2)
    assert shard_of(matrix) is None
    assert all(function(matrix) is matrix for function in (whole, settled, read_on_first))
    assert like(matrix, torch.ones(2, 2)) is matrix
    rows, total = row_shard(matrix)
    assert rows is matrix
    assert total(rows) is matrix


@pytest.mark.parametrize(
    ("shape", "dtype", "processes", "gram"),
    [
        ((50257, 768), torch.float32, 2, True),
        ((768, 3072), torch.float32, 2, False),  # the sharded side is the short one
        ((1000, 300), torch.float32, 2, True),  # 361,200 bytes against 600,000
        ((1000, 300), torch.bfloat16, 2, False),  # against 300,000
        ((1000, 300), torch.bfloat16, 8, True),  # against 525,000
        ((1000, 300), torch.float64, 8, False),  # a Gram matrix would lose digits
        ((200, 16), torch.float32, 2, False),  # LAPACK is exact, and fast enough
        ((512, 512), torch.float32, 8, False),  # 1,050,624 bytes against 917,504
    ],
)
def test_gram_matrix_is_sent_where_it_is_less(shape: tuple[int, int], dtype: torch.dtype, processes: int, gram: bool) -> None:
    assert sends_gram(shape, dtype, processes) is gram


class Flattening(pl.strategies.SingleDeviceStrategy):
    """Stands for FSDP, which needs a GPU to be made."""


Flattening.__name__ = "FSDPStrategy"


def test_the_first_fsdp_is_refused() -> None:
    trainer = pl.Trainer(strategy=Flattening(device="cpu"), **QUIET)
    assert not is_tensor_parallel(trainer)
    with pytest.raises(ValueError, match=r"^FSDPStrategy flattens .*ModelParallelStrategy and fully_shard \(FSDP2\)"):
        check_shards(trainer)
