"""``per_class=True``: readings of a real run against gradients of single classes, and batches without labels."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rank_callbacks import GradientRankMonitor
from rank_callbacks.functional import exact_rank


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), torch.as_tensor(batch[1]).long().view(-1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(labels: Tensor, accumulate: int = 1) -> tuple[dict[str, float], Classifier, Tensor]:
    inputs, model = torch.randn(len(labels), 20), Classifier()
    trainer = Trainer(
        max_steps=1,
        accumulate_grad_batches=accumulate,
        callbacks=[GradientRankMonitor(per_class=True)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.fit(model, DataLoader(TensorDataset(inputs, labels), batch_size=len(labels) // accumulate))
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


@pytest.mark.parametrize("labels", [torch.zeros(8), torch.zeros(8, 1, dtype=torch.long)], ids=["floating", "matrix"])
def test_batch_without_labels_is_refused(labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected integer labels of shape \(batch,\) for per_class, got torch"):
        fit(labels)
