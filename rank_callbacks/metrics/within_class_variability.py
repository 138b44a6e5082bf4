"""NC1 of neural collapse, as a metric."""

from __future__ import annotations

from torch import Tensor

from rank_callbacks.functional import nc1_fuzziness, nc1_pinv, nc1_pinv_sample_mean, nc1_quotient, nc1_svds
from rank_callbacks.metrics.class_metric import ClassMetric

__all__ = ["WithinClassVariability"]

_VARIANTS = {
    "pinv": nc1_pinv,
    "svds": nc1_svds,
    "pinv_sample_mean": nc1_pinv_sample_mean,
    "fuzziness": nc1_fuzziness,
    "quotient": nc1_quotient,
}


class WithinClassVariability(ClassMetric):
    """NC1, within-class variability: how large the scatter within classes is, against that of the class means.

    tr(Σ_W Σ_B⁺) / C, Σ_W = (1/N) Σ_k Σ_{i∈k} (h_i − h̄_k)(h_i − h̄_k)ᵀ, Σ_B = (1/C) Σ_k (h̄_k − h̄)(h̄_k − h̄)ᵀ with h̄ the mean of
    class means, over the C classes that have samples. In [0, ∞]: 0 at collapse, as with one sample a class; ∞ where all class
    means are equal; NaN with fewer than two classes or features that are not finite.

    Memory and work: but for ``quotient`` the state has D² numbers, and a batch of n samples costs 2·n·D² operations.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.
        - ``labels``: integers of shape ``(*,)``, or one-hot or soft labels of shape ``(*, num_classes)``.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_classes: K, from 2.
        num_features: Numbers in a feature, D, from 1.
        variant: Which definition.

            - ``pinv``: the one above.
            - ``svds``: tr(Σ_W Σ_B⁺), not divided by C, as the notebook published with the paper has it.
            - ``pinv_sample_mean``: with h̄ the mean of all samples.
            - ``fuzziness``: tr(Σ_W Σ_B⁺), classes weighted by their size in Σ_B; of the law of data separation.
            - ``quotient``: tr Σ_W / tr Σ_B.
        ignore_index: A label that means none.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_classes`` or ``num_features`` is too small, or the variant unknown.

    Example:
        >>> import torch
        >>> metric = WithinClassVariability(num_classes=2, num_features=1)
        >>> metric.update(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()
        tensor(0.0200, dtype=torch.float64)

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186

        ``pinv_sample_mean``: A geometric analysis of neural collapse with unconstrained features (Zhu et al., 2021),
        https://arxiv.org/abs/2105.02375

        ``fuzziness``: A law of data separation in deep learning (He and Su, 2023), https://arxiv.org/abs/2210.17020

        ``quotient``: Perturbation analysis of neural collapse (Tirer, Huang and Niles-Weed, 2023),
        https://arxiv.org/abs/2210.16658
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        variant: str = "pinv",
        ignore_index: int | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(num_classes, num_features, ignore_index, **kwargs)
        if variant not in _VARIANTS:
            raise ValueError(f"Expected variant to be one of {', '.join(_VARIANTS)}, got {variant!r}.")
        self.variant = variant
        if variant != "quotient":
            self._keep_moments(scatter=True)

    def compute(self) -> Tensor:
        """NC1 of all samples so far."""
        return _VARIANTS[self.variant](self.class_moments())
