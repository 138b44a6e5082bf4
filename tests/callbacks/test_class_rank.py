"""``per_class=True``: readings of a real run against gradients of single classes, and batches without labels."""

from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from rank_callbacks import GradientRankMonitor
from rank_callbacks.functional import exact_rank


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, classes = batch.values() if isinstance(batch, dict) else batch[:2]
        return nn.functional.cross_entropy(self.network(inputs), classes.long().view(-1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    classes: Tensor, accumulate: int = 1, collate: Any = None, **given: Any
) -> tuple[dict[str, float], Classifier, Tensor]:
    inputs, model = torch.randn(len(classes), 20), Classifier()
    trainer = Trainer(
        max_steps=1,
        accumulate_grad_batches=accumulate,
        callbacks=[GradientRankMonitor(per_class=True, **given)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.fit(model, DataLoader(TensorDataset(inputs, classes), batch_size=len(classes) // accumulate, collate_fn=collate))
    model.load_state_dict(start)
    return {tag: float(value) for tag, value in trainer.callback_metrics.items()}, model, inputs


def rank_of_one_class(model: Classifier, inputs: Tensor, labels: Tensor, name: str, c: int) -> int:
    model.zero_grad()
    losses = nn.functional.cross_entropy(model.network(inputs), labels, reduction="none")
    losses[labels == c].sum().backward()
    return exact_rank(model.get_parameter(name).grad)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["network.0.weight", "network.2.weight"])
def test_reading_is_the_mean_over_the_classes_of_the_batch(name: str, accumulate: int) -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3])
    readings, model, inputs = fit(labels, accumulate)
    ranks = [rank_of_one_class(model, inputs, labels, name, c) for c in (0, 1, 3)]
    assert readings[f"gradient_rank/class_rank/{name}"] == pytest.approx(sum(ranks) / 3)


def as_dict(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    inputs, classes = default_collate(samples)
    return {"inputs": inputs, "classes": classes}


@pytest.mark.parametrize(
    ("collate", "labels"),
    [(as_dict, "classes"), (as_dict, lambda batch: batch["classes"]), (None, lambda batch: batch[1])],
    ids=["key", "function of a dict", "function of a pair"],
)
def test_labels_are_where_they_are_said_to_be(collate: Any, labels: Any) -> None:
    classes = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3])
    readings, model, inputs = fit(classes, collate=collate, labels=labels)
    ranks = [rank_of_one_class(model, inputs, classes, "network.0.weight", c) for c in (0, 1, 3)]
    assert readings["gradient_rank/class_rank/network.0.weight"] == pytest.approx(sum(ranks) / 3)


def test_labels_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels as batch\['target'\], got NoneType\. .* keys 'inputs', 'classes'"):
        fit(torch.zeros(8, dtype=torch.long), collate=as_dict, labels="target")
    with pytest.raises(ValueError, match=r"labels as the second item of the batch, .* by labels='key' for a dict"):
        fit(torch.zeros(8, dtype=torch.long), collate=as_dict)


def test_labels_in_a_column_are_read_as_in_a_row() -> None:
    classes = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3])
    torch.manual_seed(0)
    in_a_row, _, _ = fit(classes)
    torch.manual_seed(0)
    in_a_column, _, _ = fit(classes[:, None])
    tags = [tag for tag in in_a_row if "class_rank" in tag]
    assert tags
    assert [in_a_column[tag] for tag in tags] == [in_a_row[tag] for tag in tags]


@pytest.mark.parametrize("labels", [torch.zeros(8), torch.zeros(8, 2, dtype=torch.long)], ids=["floating", "matrix"])
def test_batch_without_labels_is_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected integer labels of shape \(batch,\) for per_class, got torch"):
        fit(labels)
