"""Tiny classifiers with random data of their own, for either Lightning package."""

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 3


class Training:
    """All of a module but the base class: Adam on batches of four, validated on the same data."""

    shuffle = True

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        super().__init__()
        self.network = network
        self.data = TensorDataset(inputs, torch.arange(len(inputs)) % CLASSES)
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, classes = batch
        loss = cross_entropy(self.network(inputs), classes)
        self.losses.append(loss.item())
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.network(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=4, shuffle=self.shuffle)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=4)


class Classifier(Training, pl.LightningModule):
    pass


class TwoOptimizers(Classifier):
    """Each of two linear layers has an optimizer, stepped by hand."""

    automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(layer.parameters(), lr=0.05) for layer in (self.network[0], self.network[2])]


class Last(nn.Module):
    """The last state of a sequence that a recurrent layer reads."""

    def __init__(self, recurrent: nn.Module) -> None:
        super().__init__()
        self.recurrent = recurrent

    def forward(self, sequence: Tensor) -> Tensor:
        return self.recurrent(sequence)[0][:, -1]


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, CLASSES))


def mlp(batches: int = 3) -> Classifier:
    return Classifier(two_layers(), torch.randn(4 * batches, 6))


def two_optimizers(batches: int = 3) -> Classifier:
    return TwoOptimizers(two_layers(), torch.randn(4 * batches, 6))


def convnet() -> Classifier:
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(36, CLASSES)]
    return Classifier(nn.Sequential(*layers), torch.randn(12, 2, 5, 5))


def lstm() -> Classifier:
    recurrent = nn.LSTM(4, 5, num_layers=2, dropout=0.2, batch_first=True)
    return Classifier(nn.Sequential(Last(recurrent), nn.Linear(5, CLASSES)), torch.randn(12, 6, 4))


def transformer() -> Classifier:
    layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, dropout=0.1, batch_first=True)
    encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    return Classifier(nn.Sequential(encoder, nn.Flatten(), nn.Linear(40, CLASSES)), torch.randn(12, 5, 8))


def spectrally_normed() -> Classifier:
    layers = [spectral_norm(nn.Linear(6, 5)), nn.ReLU(), spectral_norm(nn.Linear(5, CLASSES))]
    return Classifier(nn.Sequential(*layers), torch.randn(12, 6))


MODELS = (mlp, convnet, lstm, transformer, spectrally_normed)
