"""NC4 of neural collapse, as a metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from rank_callbacks.functional import nearest_center_mismatch
from rank_callbacks.functional.labels import labelled_rows
from rank_callbacks.metrics.classifier_metric import ClassifierMetric

__all__ = ["NearestCenterMismatch"]


class NearestCenterMismatch(ClassifierMetric):
    """NC4: share of samples that the classifier gives another class than the nearest class mean does.

    1 − P[argmax_k (w_k·h + b_k) = argmin_k ‖h − h̄_k‖], the classifier in float64. In [0, 1], 0 at collapse. Class means are
    those of the same samples; of a class without samples, or with features that are not finite, the mean is nearest to
    nothing. A sample that is not finite is in disagreement. NaN without samples.

    Memory: class means are known only once all samples are, so the metric keeps every labelled feature until then: N·D
    numbers of 8 bytes, on each process those of all processes while it computes.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.
        - ``labels``: integers of shape ``(*,)``, or one-hot or soft labels of shape ``(*, num_classes)``.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_classes: K, from 2.
        num_features: Numbers in a feature, D, from 1.
        classifier: The layer that the features go into, such as ``nn.Linear``: with a ``weight`` of shape ``(K, D)``. Its
            ``bias`` counts if it has one. It is read when the metric is computed, and no submodule of it.
        ignore_index: A label that means none.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_classes`` or ``num_features`` is too small, or the classifier has no such weight.

    Example:
        >>> import torch
        >>> classifier = torch.nn.Linear(1, 2)
        >>> classifier.load_state_dict({"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.tensor([0.0, -1.5])})
        <All keys matched successfully>
        >>> metric = NearestCenterMismatch(num_classes=2, num_features=1, classifier=classifier)
        >>> metric.update(torch.tensor([[-2.0], [-1.0], [0.5], [2.5]]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()
        tensor(0.2500, dtype=torch.float64)

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186
    """

    plot_upper_bound = 1.0

    features: list[Tensor]

    def __init__(
        self, num_classes: int, num_features: int, classifier: nn.Module, ignore_index: int | None = None, **kwargs: object
    ) -> None:
        super().__init__(num_classes, num_features, classifier, ignore_index, **kwargs)
        self.add_state("features", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch, as ``ClassMetric.update``, and keep its features."""
        super().update(features, labels)
        rows = features.detach().reshape(-1, self.num_features)
        labelled = labelled_rows(labels, self.num_classes, len(rows), self.ignore_index).rows
        kept = rows if labelled is None else rows[labelled.unique()]
        self.features.append(kept.to(torch.float64, copy=True))

    def compute(self) -> Tensor:
        """NC4 of all samples so far and the classifier as it is now."""
        moments = self.class_moments()
        # With compute_on_cpu they lie elsewhere than the moments.
        features = dim_zero_cat(self.features).to(self.moments) if len(self.features) else moments.means[:0]
        logits = features @ self.class_weights().mT
        bias = getattr(self.classifier, "bias", None)
        logits = logits if bias is None else logits + self._wide(bias)
        centers = moments.means.where(moments.seen[:, None], torch.nan)
        return nearest_center_mismatch(features, logits.argmax(1), centers)

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:  # ruff: ignore[any-type]
        # Of a process without samples torchmetrics sends a vector, which cannot be gathered with matrices.
        self.features = self.features if len(self.features) else [self.moments.new_zeros(0, self.num_features)]
        super()._sync_dist(*args, **kwargs)
