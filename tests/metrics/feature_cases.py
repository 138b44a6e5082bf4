"""Every metric of features next to the function of all features at once that it must agree with."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric

from rank_callbacks import functional
from rank_callbacks.metrics import (
    AlphaReQ,
    EffectiveRank,
    LayerSaturation,
    LiDAR,
    NumericalRank,
    ParticipationRatio,
    RankMe,
    StableRank,
)

OBJECTS, VIEWS, WIDTH = 24, 2, 12


class FeatureCase(NamedTuple):
    metric: Callable[..., Metric]
    twin: Callable[[Tensor], Tensor]
    centered: bool


def of_spectrum(measure: Callable[..., Tensor], centered: bool = False, **options: object) -> Callable[[Tensor], Tensor]:
    """A function of singular values as one of the features that they are of, by an SVD of the features."""

    def twin(views: Tensor) -> Tensor:
        rows = views.double().flatten(0, -2)
        values = torch.linalg.svdvals(rows - rows.mean(0) * centered)
        return measure(values, **options) if len(rows) > centered else torch.tensor(torch.nan).double()

    return twin


def corrected(views: Tensor) -> Tensor:
    values = functional.feature_singular_values(views, centered=True)
    return functional.corrected_participation_ratio(values, views.shape[:-1].numel())


def case(metric: type[Metric], measure: Callable[..., Tensor], centered: bool = False, **options: object) -> FeatureCase:
    """With ``centered`` for metrics that have the choice."""
    chosen = options if metric in (AlphaReQ, LayerSaturation, RankMe) else {**options, "centered": centered}
    return FeatureCase(partial(metric, WIDTH, **chosen), of_spectrum(measure, centered, **options), centered)


FEATURE_CASES = {
    "effective_rank": case(EffectiveRank, functional.effective_rank),
    "centered_effective_rank": case(EffectiveRank, functional.effective_rank, centered=True),
    "stable_rank": case(StableRank, functional.stable_rank),
    "centered_stable_rank": case(StableRank, functional.stable_rank, centered=True),
    "participation_ratio": case(ParticipationRatio, functional.participation_ratio),
    "centered_participation_ratio": case(ParticipationRatio, functional.participation_ratio, centered=True),
    "corrected_participation_ratio": FeatureCase(partial(ParticipationRatio, WIDTH, corrected=True), corrected, True),
    "numerical_rank": case(NumericalRank, functional.numerical_rank, rtol=0.05),
    "centered_numerical_rank": case(NumericalRank, functional.numerical_rank, centered=True, rtol=0.2),
    "rankme": case(RankMe, functional.rankme),
    "rankme_1e-2": case(RankMe, functional.rankme, epsilon=1e-2),
    "alpha_req": case(AlphaReQ, functional.alpha_req, centered=True, first=2, last=12),
    "saturation": FeatureCase(
        partial(LayerSaturation, WIDTH, energy=0.9),
        of_spectrum(functional.saturation, centered=True, num_features=WIDTH, energy=0.9),
        True,
    ),
    "lidar": FeatureCase(partial(LiDAR, WIDTH), functional.lidar, True),
}
OF_SPECTRA = FEATURE_CASES.keys() - {"lidar"}


def objects(seed: int = 0) -> Tensor:
    """Views of objects about a common mean, of decaying variance; shape ``(OBJECTS, VIEWS, WIDTH)``, float64."""
    generator = torch.Generator().manual_seed(seed)
    scales = 1 / torch.arange(1, WIDTH + 1, dtype=torch.float64)
    centers = torch.randn(OBJECTS, 1, WIDTH, generator=generator, dtype=torch.float64)
    noise = torch.randn(OBJECTS, VIEWS, WIDTH, generator=generator, dtype=torch.float64)
    return (centers + 0.5 * noise) * scales + 0.3
