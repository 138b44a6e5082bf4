"""Measures of neural collapse: class moments in, numbers out."""

from __future__ import annotations

import torch
from torch import Tensor

from rank_callbacks.functional.class_moments import ClassMoments, contrast_basis

__all__ = [
    "between_class_variation",
    "class_distance_normalized_variance",
    "class_mean_equiangularity",
    "class_mean_equinorm",
    "cluster_variation_ratio",
    "equiangularity",
    "equinorm",
    "minority_collapse",
    "nc1_fuzziness",
    "nc1_pinv",
    "nc1_pinv_sample_mean",
    "nc1_quotient",
    "nc1_svds",
    "nearest_center_mismatch",
    "self_duality",
    "self_duality_zhu",
    "simplex_distance",
    "total_cluster_variation",
]


def total_cluster_variation(moments: ClassMoments) -> Tensor:
    """Total cluster variation, TCV: the mean squared distance of a feature to the mean of its class.

    (1/N) Σ_k Σ_{i∈k} ‖h_i − h̄_k‖² = tr Σ_W. In [0, ∞), in the unit of the features squared. 0 where every class is a point, as
    it is with one sample a class; NaN without samples or with features that are not finite.

    Args:
        moments: Of the features.

    Reference:
        Provable emergence of deep neural collapse and low-rank bias (Zangrando et al., 2026), https://arxiv.org/abs/2402.03991
    """
    return moments.variations.sum() / moments.counts.sum()


def between_class_variation(moments: ClassMoments) -> Tensor:
    """The mean squared distance of class means to the mean of all samples, classes weighted by their size.

    Σ_k (n_k/N) ‖h̄_k − h̄‖² = tr Σ_B. In [0, ∞). What total cluster variation lacks to the total variance of the features.

    Args:
        moments: Of the features.
    """
    share = moments.counts / moments.counts.sum()
    return share @ _centred(moments.means, share).square().sum(1)


def cluster_variation_ratio(moments: ClassMoments) -> Tensor:
    """Share of the variance of features that lies within classes.

    tr Σ_W / (tr Σ_W + tr Σ_B), classes weighted by their size. In [0, 1]: 0 where every class is a point of its own, 1 where
    classes cannot be told apart. NaN where all features are one point, or with features that are not finite.

    Args:
        moments: Of the features.

    Example:
        >>> from rank_callbacks.functional import class_moments
        >>> features = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
        >>> cluster_variation_ratio(class_moments(features, torch.tensor([0, 0, 1, 1]), num_classes=2))
        tensor(0.0385, dtype=torch.float64)

    Reference:
        Provable emergence of deep neural collapse and low-rank bias (Zangrando et al., 2026), https://arxiv.org/abs/2402.03991
    """
    within = total_cluster_variation(moments)
    return within / (within + between_class_variation(moments))


def nc1_pinv(moments: ClassMoments) -> Tensor:
    """NC1, within-class variability: tr(Σ_W Σ_B⁺) / C, classes of equal weight in Σ_B.

    Σ_W = (1/N) Σ_k Σ_{i∈k} (h_i − h̄_k)(h_i − h̄_k)ᵀ, Σ_B = (1/C) Σ_k (h̄_k − h̄)(h̄_k − h̄)ᵀ with h̄ the mean of class means, over
    the C classes that have samples. In [0, ∞]: 0 at collapse, ∞ where all class means are equal, NaN with fewer than two
    classes, all features in one point or features that are not finite. Singular values of the centred class means below
    max(C, D)·ε of the largest, or below the rounding of the means, count as 0.

    Args:
        moments: Of the features, with their scatter.

    Returns:
        A scalar, float64.

    Raises:
        ValueError: If the moments have no scatter.

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186
    """
    return nc1_svds(moments) / moments.seen.sum()


def nc1_svds(moments: ClassMoments) -> Tensor:
    """NC1 as the notebook published with the paper computes it: tr(Σ_W Σ_B⁺), not divided by the number of classes.

    C times ``nc1_pinv``. (The notebook inverts the C − 1 leading eigenvalues of Σ_B; there are no others.)

    Args:
        moments: Of the features, with their scatter.

    Raises:
        ValueError: If the moments have no scatter.

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186
    """
    equal = _equal_weights(moments)
    return _trace_against(moments, equal, equal)


def nc1_pinv_sample_mean(moments: ClassMoments) -> Tensor:
    """NC1 about the mean of all samples: tr(Σ_W Σ_B⁺) / C, Σ_B = (1/C) Σ_k (h̄_k − h̄)(h̄_k − h̄)ᵀ with h̄ the sample mean.

    Equal to ``nc1_pinv`` where all classes have as many samples.

    Args:
        moments: Of the features, with their scatter.

    Raises:
        ValueError: If the moments have no scatter.

    Reference:
        A geometric analysis of neural collapse with unconstrained features (Zhu et al., 2021), https://arxiv.org/abs/2105.02375
    """
    classes = moments.seen.sum()
    return _trace_against(moments, _equal_weights(moments), moments.counts / moments.counts.sum()) / classes


def nc1_fuzziness(moments: ClassMoments) -> Tensor:
    """Separation fuzziness: tr(Σ_W Σ_B⁺), classes weighted by their size in Σ_B, not divided by their number.

    The law of data separation: its logarithm falls linearly with the index of the layer.

    Args:
        moments: Of the features, with their scatter.

    Raises:
        ValueError: If the moments have no scatter.

    Reference:
        A law of data separation in deep learning (He and Su, 2023), https://arxiv.org/abs/2210.17020
    """
    share = moments.counts / moments.counts.sum()
    return _trace_against(moments, share, share)


def nc1_quotient(moments: ClassMoments) -> Tensor:
    """NC1 without a pseudo-inverse: tr Σ_W / tr Σ_B, classes of equal weight in Σ_B.

    In [0, ∞]; ∞ where all class means are equal, NaN with fewer than two classes, all features in one point or features that
    are not finite.

    Args:
        moments: Of the features.

    Reference:
        Perturbation analysis of neural collapse (Tirer, Huang and Niles-Weed, 2023), https://arxiv.org/abs/2210.16658
    """
    between = _directions(moments).square().sum(1).mean()
    return _nan_below_two(moments, total_cluster_variation(moments) / between)


def class_mean_equinorm(moments: ClassMoments) -> Tensor:
    """NC2, equal norms: coefficient of variation of the norms of centred class means.

    std_k ‖h̄_k − h̄‖ / mean_k ‖h̄_k − h̄‖, the standard deviation unbiased, h̄ the mean of class means. In [0, ∞), 0 at
    collapse; NaN with fewer than two classes.

    Args:
        moments: Of the features.

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186
    """
    return equinorm(_directions(moments))


def class_mean_equiangularity(moments: ClassMoments) -> Tensor:
    """NC2, equal angles: mean over pairs of classes of |cos(h̄_k − h̄, h̄_l − h̄) + 1/(C − 1)|.

    In [0, 2], 0 where the class means span a simplex; NaN with fewer than two classes or where a class mean is h̄ itself.

    Args:
        moments: Of the features.

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186
    """
    return equiangularity(_directions(moments))


def equinorm(vectors: Tensor) -> Tensor:
    """Coefficient of variation of the norms of vectors: their unbiased standard deviation over their mean.

    Args:
        vectors: Shape ``(C, D)``, as the rows of a classifier. NaN with fewer than two.

    Example:
        >>> equinorm(torch.tensor([[3.0, 4.0], [0.0, 5.0]]))
        tensor(0., dtype=torch.float64)
    """
    norms = torch.linalg.vector_norm(vectors.detach().double(), dim=1)
    return norms.std() / norms.mean() if len(norms) > 1 else norms.new_tensor(torch.nan)


def equiangularity(vectors: Tensor) -> Tensor:
    """How far the angles between vectors are from those of a simplex: mean over pairs of |cos + 1/(C − 1)|.

    Args:
        vectors: Shape ``(C, D)``, as the rows of a classifier. NaN with fewer than two, or if one is zero.

    Example:
        >>> equiangularity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
        tensor(0., dtype=torch.float64)
    """
    return (_pairwise_cosines(vectors) + 1 / (len(vectors) - 1)).abs().mean() if len(vectors) > 1 else _nan(vectors)


def simplex_distance(vectors: Tensor) -> Tensor:
    """NC2 in one number: ‖VVᵀ/‖VVᵀ‖_F − (I − 11ᵀ/C)/√(C − 1)‖_F.

    In [0, 2], 0 where the vectors are those of a simplex of any scale: equal norms, equal and largest possible angles.

    Args:
        vectors: Shape ``(C, D)``: rows of a classifier, or centred class means. NaN with fewer than two.

    Reference:
        A geometric analysis of neural collapse with unconstrained features (Zhu et al., 2021), https://arxiv.org/abs/2105.02375
    """
    wide = vectors.detach().double()
    return _distance_to_simplex(wide @ wide.mT)


def self_duality(moments: ClassMoments, classifier: Tensor) -> Tensor:
    """NC3: ‖W/‖W‖_F − Ṁ/‖Ṁ‖_F‖²_F of the classifier's rows and the class means centred by their mean.

    In [0, 4], 0 where the two are multiples of one another. Over the classes that have samples; NaN with fewer than two.

    Args:
        moments: Of the features that go into the classifier.
        classifier: Its weight, shape ``(K, D)``.

    Raises:
        ValueError: If the shapes do not fit.

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186
    """
    weight, directions = _matched(moments, classifier)
    apart = weight / torch.linalg.matrix_norm(weight) - directions / torch.linalg.matrix_norm(directions)
    return _nan_below_two(moments, apart.square().sum())


def self_duality_zhu(moments: ClassMoments, classifier: Tensor) -> Tensor:
    """NC3 by the product: ‖WṀᵀ/‖WṀᵀ‖_F − (I − 11ᵀ/C)/√(C − 1)‖_F.

    In [0, 2]. Over the classes that have samples; NaN with fewer than two.

    Args:
        moments: Of the features that go into the classifier.
        classifier: Its weight, shape ``(K, D)``.

    Raises:
        ValueError: If the shapes do not fit.

    Reference:
        A geometric analysis of neural collapse with unconstrained features (Zhu et al., 2021), https://arxiv.org/abs/2105.02375
    """
    weight, directions = _matched(moments, classifier)
    return _distance_to_simplex(weight @ directions.mT)


def nearest_center_mismatch(features: Tensor, predictions: Tensor, centers: Tensor) -> Tensor:
    """NC4: share of samples that the network gives another class than the nearest class mean does.

    1 − P[prediction = argmin_k ‖h − h̄_k‖]. In [0, 1], 0 at collapse; NaN without samples. A sample that is not finite is in
    disagreement.

    Args:
        features: Shape ``(*, D)``.
        predictions: Classes that the network predicts, of shape ``(*,)``.
        centers: Class means, shape ``(K, D)``; of a class without one, NaN: it is nearest to nothing.

    Returns:
        A scalar, float64.

    Raises:
        ValueError: If there is another number of predictions than of features.

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186
    """
    rows = features.detach().reshape(-1, features.shape[-1]).double()
    if predictions.numel() != len(rows):
        raise ValueError(f"Expected a prediction for each of {len(rows)} features, got {predictions.numel()}.")
    known = centers.double().isfinite().all(1)
    origin = centers[known].double().mean(0)
    # Centred, the expansion of the square loses nothing to a mean that all share.
    near, far = rows - origin, centers.double() - origin
    scores = 2 * near @ far.mT - far.square().sum(1)
    nearest = torch.where(known, scores, -torch.inf).argmax(1)
    agree = (nearest == predictions.flatten()) & known[nearest] & rows.isfinite().all(1)
    return 1 - agree.double().mean()


def class_distance_normalized_variance(moments: ClassMoments) -> Tensor:
    """CDNV: variance within two classes over the squared distance of their means, mean over pairs of classes.

    V(k, l) = (Var_k + Var_l) / (2 ‖h̄_k − h̄_l‖²), Var_k = (1/n_k) Σ_{i∈k} ‖h_i − h̄_k‖². In [0, ∞]: 0 at collapse, ∞ where two
    classes share their mean; NaN with fewer than two classes or two classes in one point.

    Args:
        moments: Of the features.

    Reference:
        On the role of neural collapse in transfer learning (Galanti, György and Hutter, 2022), https://arxiv.org/abs/2112.15121
    """
    seen = moments.seen
    variances = moments.variations[seen] / moments.counts[seen]
    first, second = torch.triu_indices(len(variances), len(variances), offset=1, device=variances.device)
    squares = torch.pdist(moments.means[seen]).square()  # of the same pairs
    # The mean over no pairs is NaN.
    return ((variances[first] + variances[second]) / (2 * squares)).mean()


def minority_collapse(classifier: Tensor, minority: Tensor) -> Tensor:
    """Mean cosine between the classifier's rows of minority classes.

    In [−1, 1]; 1 where the rows have merged and minority classes cannot be told apart. NaN with fewer than two such classes.

    Args:
        classifier: Its weight, shape ``(K, D)``.
        minority: Which classes are in the minority: booleans of shape ``(K,)``.

    Reference:
        Exploring deep neural networks via layer-peeled model (Fang et al., 2021), https://arxiv.org/abs/2101.12699
    """
    rows = classifier[minority]
    return _pairwise_cosines(rows).mean() if len(rows) > 1 else _nan(rows)


def _trace_against(moments: ClassMoments, weights: Tensor, mean_weights: Tensor) -> Tensor:
    """tr(Σ_W Σ_B⁺), Σ_B = Σ_k w_k (h̄_k − h̄)(h̄_k − h̄)ᵀ, h̄ by ``mean_weights``: inside the space of contrasts."""
    if moments.scatter is None:
        raise ValueError("Expected moments with their within-class scatter, got none: ask for it by scatter=True.")
    if moments.seen.sum() < 2:
        return _nan(moments.means)
    within, contrasts = moments.scatter / moments.counts.sum(), moments.basis
    between = (_centred(moments.means, mean_weights) * weights.sqrt()[:, None])[moments.seen]
    if contrasts is None and len(between) <= between.shape[1]:
        contrasts = contrast_basis(moments.means[moments.seen])
        within = contrasts.mT @ within @ contrasts
    between = between if contrasts is None else between @ contrasts
    if not (within.isfinite().all() and between.isfinite().all()):
        return _nan(within)
    # No contrast can be told from 0 that the rounding of the means hides.
    noise = 8 * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(moments.means * weights.sqrt()[:, None])
    rtol = max(moments.means.shape) * torch.finfo(torch.float64).eps
    # Where nothing tells class means apart, neither do contrasts tell along which to look for variation.
    return _trace_of_quotient(within, between, rtol, noise, otherwise=moments.variations.sum() / 0)


def _trace_of_quotient(within: Tensor, between: Tensor, rtol: float, noise: Tensor, otherwise: Tensor) -> Tensor:
    """tr(W (BᵀB)⁺), singular values of B below ``rtol``·σ₁ or ``noise`` counting as 0; ``otherwise`` where all of them do."""
    # BᵀB = RᵀR. Where the Frobenius norms of R and its inverse say that all singular values count, there is no need of them.
    triangle = torch.linalg.qr(between, mode="r").R
    inverse = torch.linalg.solve_triangular(triangle, torch.eye(len(triangle)).to(triangle), upper=True)
    if torch.maximum(rtol * torch.linalg.matrix_norm(triangle), noise) * torch.linalg.matrix_norm(inverse) < 1:
        return ((within @ inverse) * inverse).sum()
    _, roots, directions = torch.linalg.svd(between, full_matrices=False)
    kept = roots > torch.maximum(rtol * roots[0], noise)
    if not kept.any():
        return otherwise
    along = ((directions[kept] @ within) * directions[kept]).sum(1)
    return (along / roots[kept].square()).sum()


def _equal_weights(moments: ClassMoments) -> Tensor:
    return moments.seen.double() / moments.seen.sum()


def _centred(means: Tensor, weights: Tensor) -> Tensor:
    return means - weights @ means


def _directions(moments: ClassMoments) -> Tensor:
    """Class means less their mean, of the classes that have samples."""
    means = moments.means[moments.seen]
    return means - means.mean(0)


def _matched(moments: ClassMoments, classifier: Tensor) -> tuple[Tensor, Tensor]:
    if classifier.shape != moments.means.shape:
        raise ValueError(
            f"Expected a classifier of shape {tuple(moments.means.shape)}, as many rows as classes and as many columns as "
            f"features, got {tuple(classifier.shape)}."
        )
    return classifier.detach().double()[moments.seen], _directions(moments)


def _distance_to_simplex(products: Tensor) -> Tensor:
    classes = len(products)
    if classes < 2:
        return _nan(products)
    simplex = torch.eye(classes, dtype=products.dtype, device=products.device) - 1 / classes
    return torch.linalg.matrix_norm(products / torch.linalg.matrix_norm(products) - simplex / (classes - 1) ** 0.5)


def _pairwise_cosines(vectors: Tensor) -> Tensor:
    """Cosines of all pairs of rows, NaN for those of a zero row."""
    wide = vectors.detach().double()
    unit = wide / torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1, device=unit.device)
    return (unit @ unit.mT)[first, second]


def _nan_below_two(moments: ClassMoments, value: Tensor) -> Tensor:
    return torch.where(moments.seen.sum() > 1, value, torch.nan)


def _nan(like: Tensor) -> Tensor:
    return torch.full((), torch.nan, dtype=torch.float64, device=like.device)
