import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from rank_callbacks import WeightRankMonitor, log_spaced
from tests.models import Classifier, mlp
from tests.training import Recorder, fit

EVERY_SECOND = {"every_n_steps": 2}


def first_layer(recorder: Recorder, group: str = "weight_rank", measure: str = "frobenius_norm") -> dict[int, float]:
    tag = f"{group}/{measure}/network.0.weight"
    return {step: value for (step, name), value in recorder.readings(group).items() if name == tag}


def checkpoint_after_three_batches(path: Path, **options: Any) -> tuple[Recorder, str]:
    recorder = Recorder()
    trainer = fit(mlp(), WeightRankMonitor(["frobenius_norm"], **options), logger=recorder)
    trainer.save_checkpoint(path / "three.ckpt")
    return recorder, str(path / "three.ckpt")


def test_steps_go_on_after_a_resume_and_none_is_repeated(tmp_path: Path) -> None:
    before, path = checkpoint_after_three_batches(tmp_path, **EVERY_SECOND)
    after = Recorder()
    fit(mlp(), WeightRankMonitor(["frobenius_norm"], **EVERY_SECOND), logger=after, max_epochs=3, ckpt_path=path)
    assert before.steps("weight_rank") == [0, 2, 3]
    assert after.steps("weight_rank") == [4, 6, 8, 9]


def test_end_on_schedule_is_not_repeated_by_a_resume(tmp_path: Path) -> None:
    before, path = checkpoint_after_three_batches(tmp_path, every_n_steps=3)
    after = Recorder()
    fit(mlp(), WeightRankMonitor(["frobenius_norm"], every_n_steps=3), logger=after, max_epochs=3, ckpt_path=path)
    assert before.steps("weight_rank") + after.steps("weight_rank") == [0, 3, 6, 9]


def test_resume_from_the_middle_of_an_epoch_reports_the_weights_of_its_steps(tmp_path: Path) -> None:
    class Own(Classifier):
        def training_step(self, *args: Any) -> torch.Tensor:
            self.log("own", torch.linalg.matrix_norm(self.network[0].weight.double()))
            return super().training_step(*args)

    def own_and_monitor() -> tuple[Own, WeightRankMonitor]:
        model = mlp()
        return Own(model.network, model.data.tensors[0]), WeightRankMonitor(["frobenius_norm"], every_n_steps=1)

    checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=2, filename="{step}", save_top_k=-1)
    fit(*own_and_monitor(), checkpoint, enable_checkpointing=True)
    recorder = Recorder()
    fit(*own_and_monitor(), logger=recorder, max_epochs=2, ckpt_path=str(tmp_path / "step=2.ckpt"))
    own = {step: value for step, tag, value in recorder.rows if tag == "own"}
    ours = first_layer(recorder)
    assert {step: ours[step] for step in own} == pytest.approx(own, rel=1e-12)
    assert list(ours) == [2, 3, 4, 5, 6]


def test_change_is_from_the_first_weights_after_a_resume(tmp_path: Path) -> None:
    model, recorder = mlp(), Recorder()
    first = model.network[0].weight.detach().clone()
    trainer = fit(model, WeightRankMonitor(["frobenius_norm"], change=True), logger=recorder)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    resumed, after = mlp(), Recorder()
    monitor = WeightRankMonitor(["frobenius_norm"], change=True)
    fit(resumed, monitor, logger=after, max_epochs=2, ckpt_path=str(tmp_path / "three.ckpt"))
    change = torch.linalg.matrix_norm(resumed.network[0].weight.detach().double() - first.double()).item()
    assert first_layer(after, "weight_change_rank") == pytest.approx({6: change}, rel=1e-9)


def test_checkpoint_holds_tensors_and_plain_values_only(tmp_path: Path) -> None:
    _, path = checkpoint_after_three_batches(tmp_path, change=True, layers=["network.0"])
    states = torch.load(path, weights_only=True)["callbacks"]
    (state,) = [state for key, state in states.items() if key.startswith("WeightRankMonitor")]
    assert state["last_step"] == 3
    assert list(state["initial"]) == ["network.0.weight"]


def test_validation_after_a_fit_does_not_empty_the_state(tmp_path: Path) -> None:
    monitor, model = WeightRankMonitor(change=True), mlp()
    trainer = fit(model, monitor)
    state = monitor.state_dict()
    trainer.validate(model, verbose=False)
    assert monitor.state_dict().keys() == state.keys()
    assert monitor.state_dict()["last_step"] == 3
    assert list(monitor.state_dict()["initial"]) == ["network.0.weight", "network.2.weight"]


def test_each_fit_of_a_monitor_starts_anew() -> None:
    monitor = WeightRankMonitor(["frobenius_norm"], change=True, **EVERY_SECOND)
    for _ in range(2):
        recorder, model = Recorder(), mlp()
        first = model.network[0].weight.detach().double().clone()
        fit(model, monitor, logger=recorder)
        change = torch.linalg.matrix_norm(model.network[0].weight.detach().double() - first).item()
        assert recorder.steps("weight_rank") == [0, 2, 3]
        assert first_layer(recorder, "weight_change_rank")[0] == 0
        assert first_layer(recorder, "weight_change_rank")[3] == pytest.approx(change, rel=1e-9)


def test_each_fit_warns_of_its_own_nan() -> None:
    monitor = WeightRankMonitor(layers="spare")
    for _ in range(2):
        model = mlp()
        model.spare = nn.Linear(4, 4)
        model.spare.weight.data[0, 0] = torch.inf
        with pytest.warns(UserWarning, match=r"spare\.weight"):
            fit(model, monitor)


def test_two_monitors_of_different_layers_each_report_theirs() -> None:
    recorder = Recorder()
    monitors = [
        WeightRankMonitor(["frobenius_norm"], f"network.{place}", every_n_steps=n, group=f"of_{place}")
        for place, n in ((0, 1), (2, 2))
    ]
    fit(mlp(), *monitors, logger=recorder)
    steps = {place: [step for step, tag, _ in recorder.rows if tag.endswith(f"network.{place}.weight")] for place in (0, 2)}
    assert steps == {0: [0, 1, 2, 3], 2: [0, 2, 3]}


def test_two_monitors_keep_their_own_state(tmp_path: Path) -> None:
    def monitors() -> list[WeightRankMonitor]:
        return [WeightRankMonitor(layers=f"network.{place}", change=True, group=f"of_{place}") for place in (0, 2)]

    trainer = fit(mlp(), *monitors())
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    resumed = monitors()
    fit(mlp(), *resumed, ckpt_path=str(tmp_path / "two.ckpt"), max_epochs=2)
    assert [list(monitor.state_dict()["initial"]) for monitor in resumed] == [["network.0.weight"], ["network.2.weight"]]


def through_pickle(monitor: WeightRankMonitor) -> WeightRankMonitor:
    return pickle.loads(pickle.dumps(monitor))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
@pytest.mark.parametrize("used", [False, True], ids=["new", "after a fit"])
def test_copies_measure_alike(duplicate: Any, used: bool) -> None:
    original = WeightRankMonitor(["energy_rank_0.9"], ["network.0"], log_spaced(per_decade=3), change=True, scalars="all")
    if used:
        fit(mlp(), original)
    rows = []
    for monitor in (original, duplicate(original)):
        torch.manual_seed(0)
        recorder = Recorder()
        fit(mlp(batches=6), monitor, logger=recorder)
        rows.append([row for row in recorder.rows if not row[1].startswith("monitor/")])
    assert rows[0] == rows[1]
    assert len(rows[0]) > 6


class Crash(Classifier):
    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if batch_idx == 1:
            raise RuntimeError("on purpose")
        return super().training_step(batch, batch_idx)


def hooks(model: nn.Module) -> list[Any]:
    """Every hook on a module or a parameter, whatever its kind."""
    kinds = [kind for module in model.modules() for name, kind in vars(module).items() if name.endswith("_hooks")]
    kinds += [kind for p in model.parameters() for kind in (p._backward_hooks, p._post_accumulate_grad_hooks)]
    return [hook for kind in kinds for hook in kind or ()]


def test_crash_leaves_no_hook_and_no_thread() -> None:
    monitor, recorder = WeightRankMonitor(every_n_steps=1, change=True), Recorder()
    model = Crash(mlp().network, torch.randn(12, 6))
    threads = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, monitor, logger=recorder)
    assert recorder.steps("weight_rank") == [0, 1]
    assert hooks(model) == []
    assert set(threading.enumerate()) <= threads


def test_monitor_can_be_used_again_after_a_crash() -> None:
    monitor, recorder = WeightRankMonitor(every_n_steps=1, change=True), Recorder()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(Crash(mlp().network, torch.randn(12, 6)), monitor)
    fit(mlp(), monitor, logger=recorder)
    assert recorder.steps("weight_change_rank") == [0, 1, 2, 3]
    assert {value for (step, _), value in recorder.readings("weight_change_rank").items() if step == 0} == {0.0}
