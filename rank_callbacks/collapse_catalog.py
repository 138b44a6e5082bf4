"""Every reading of neural collapse and of rank collapse in words, beside the measures of rank in ``catalog``."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["NEURAL_COLLAPSE", "RANK_COLLAPSE", "Reading"]


class Reading(NamedTuple):
    """One row: a measure that a monitor of collapse logs.

    Args:
        name: The measure's name in tags.
        title: One sentence.
        formula: In the notation of the page that the rows make.
        bounds: The interval of its values.
        how_to_read: What a high or a falling value means.
        source: Title, authors, year and address.
    """

    name: str
    title: str
    formula: str
    bounds: str
    how_to_read: str
    source: str


_PAPYAN = "Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186"
_ZHU = (
    "A geometric analysis of neural collapse with unconstrained features (Zhu et al., 2021), https://arxiv.org/abs/2105.02375"
)
_TIRER = "Perturbation analysis of neural collapse (Tirer, Huang and Niles-Weed, 2023), https://arxiv.org/abs/2210.16658"
_HE_SU = "A law of data separation in deep learning (He and Su, 2023), https://arxiv.org/abs/2210.17020"
_GALANTI_CDNV = (
    "On the role of neural collapse in transfer learning (Galanti, György and Hutter, 2022), https://arxiv.org/abs/2112.15121"
)
_FANG = "Exploring deep neural networks via layer-peeled model (Fang et al., 2021), https://arxiv.org/abs/2101.12699"
_ZANGRANDO = (
    "Provable emergence of deep neural collapse and low-rank bias (Zangrando et al., 2026), https://arxiv.org/abs/2402.03991"
)
_GALANTI = (
    "SGD with weight decay secretly minimizes the ranks of your neural networks (Galanti et al., 2025), "
    "https://arxiv.org/abs/2206.05794"
)

NEURAL_COLLAPSE: dict[str, Reading] = {
    row.name: row
    for row in (
        Reading(
            name="nc1_pinv",
            title="NC1, within-class variability against the spread of class means.",
            formula="tr(Σ_W Σ_B⁺) / C",
            bounds="[0, ∞]",
            how_to_read="Falls towards 0 as each class collapses to a point. ∞ where all class means are equal.",
            source=_PAPYAN,
        ),
        Reading(
            name="nc1_quotient",
            title="NC1 without a pseudo-inverse.",
            formula="tr Σ_W / tr Σ_B",
            bounds="[0, ∞]",
            how_to_read="As nc1_pinv, but no nearly equal pair of class means can blow it up.",
            source=_TIRER,
        ),
        Reading(
            name="nc1_svds",
            title="NC1 as the notebook published with the paper has it, not divided by the number of classes.",
            formula="tr(Σ_W Σ_B⁺)",
            bounds="[0, ∞]",
            how_to_read="C times nc1_pinv.",
            source=_PAPYAN,
        ),
        Reading(
            name="nc1_pinv_sample_mean",
            title="NC1 about the mean of all samples instead of the mean of class means.",
            formula="tr(Σ_W Σ_B⁺) / C, h̄ = (1/N) Σ h_i",
            bounds="[0, ∞]",
            how_to_read="Equal to nc1_pinv where all classes have as many samples.",
            source=_ZHU,
        ),
        Reading(
            name="nc1_fuzziness",
            title="Separation fuzziness: NC1 with classes weighted by their size, not divided by their number.",
            formula="tr(Σ_W Σ_B⁺), Σ_B = Σ (n_k/N)(h̄_k − h̄)(h̄_k − h̄)ᵀ",
            bounds="[0, ∞]",
            how_to_read="Its logarithm falls by about the same amount from each layer to the next in a well-trained network.",
            source=_HE_SU,
        ),
        Reading(
            name="class_distance_normalized_variance",
            title="CDNV: variance within two classes over the squared distance of their means, mean over pairs.",
            formula="mean_{k≠l} (Var_k + Var_l) / (2 ‖h̄_k − h̄_l‖²)",
            bounds="[0, ∞]",
            how_to_read="0 at collapse. Needs neither a pseudo-inverse nor a classifier.",
            source=_GALANTI_CDNV,
        ),
        Reading(
            name="total_cluster_variation",
            title="TCV: the mean squared distance of a feature to the mean of its class.",
            formula="tr Σ_W = (1/N) Σ_k Σ_{i∈k} ‖h_i − h̄_k‖²",
            bounds="[0, ∞)",
            how_to_read="In the unit of the features squared: it falls with their scale too, so see the ratio beside it.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="cluster_variation_ratio",
            title="Share of the variance of features that lies within classes.",
            formula="tr Σ_W / tr Σ_T",
            bounds="[0, 1]",
            how_to_read="1 where classes cannot be told apart, 0 where each is a point. Comparable between layers and runs.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="class_mean_equinorm",
            title="NC2: coefficient of variation of the norms of centred class means.",
            formula="std_k ‖h̄_k − h̄‖ / mean_k ‖h̄_k − h̄‖",
            bounds="[0, ∞)",
            how_to_read="Falls to 0 as all class means come to lie at one distance from their centre.",
            source=_PAPYAN,
        ),
        Reading(
            name="class_mean_equiangularity",
            title="NC2: distance of the cosines between centred class means from those of a simplex.",
            formula="mean_{k≠l} |cos(h̄_k − h̄, h̄_l − h̄) + 1/(C − 1)|",
            bounds="[0, 2]",
            how_to_read="Falls to 0 as the class means come to stand as far apart as they can.",
            source=_PAPYAN,
        ),
        Reading(
            name="classifier_equinorm",
            title="NC2 of the classifier: coefficient of variation of the norms of its rows.",
            formula="std_k ‖w_k‖ / mean_k ‖w_k‖",
            bounds="[0, ∞)",
            how_to_read="0 at collapse. Stays up under class imbalance.",
            source=_PAPYAN,
        ),
        Reading(
            name="classifier_equiangularity",
            title="NC2 of the classifier: distance of the cosines between its rows from those of a simplex.",
            formula="mean_{k≠l} |cos(w_k, w_l) + 1/(C − 1)|",
            bounds="[0, 2]",
            how_to_read="0 at collapse.",
            source=_PAPYAN,
        ),
        Reading(
            name="self_duality",
            title="NC3: distance of the classifier from the centred class means, each at norm 1.",
            formula="‖W/‖W‖_F − Ṁ/‖Ṁ‖_F‖_F²",
            bounds="[0, 4]",
            how_to_read="Falls to 0 as the classifier becomes a multiple of the class means.",
            source=_PAPYAN,
        ),
        Reading(
            name="self_duality_zhu",
            title="NC3 by the product of classifier and centred class means.",
            formula="‖WṀᵀ/‖WṀᵀ‖_F − (I − 11ᵀ/C)/√(C − 1)‖_F",
            bounds="[0, 2]",
            how_to_read="0 at collapse; NC2 enters into it as well.",
            source=_ZHU,
        ),
        Reading(
            name="nearest_center_mismatch",
            title="NC4: share of samples that the network classifies otherwise than by the nearest class mean.",
            formula="1 − P[argmax_k (w_k·h + b_k) = argmin_k ‖h − h̄_k‖]",
            bounds="[0, 1]",
            how_to_read="Falls to 0. On training and validation data the means are those of the report before.",
            source=_PAPYAN,
        ),
        Reading(
            name="minority_collapse",
            title="Mean cosine between the classifier's rows of minority classes.",
            formula="mean_{k≠l in minority} cos(w_k, w_l)",
            bounds="[−1, 1]",
            how_to_read="1 where small classes have merged. No reading with fewer than two of them.",
            source=_FANG,
        ),
        Reading(
            name="samples_per_class",
            title="Samples in the smallest class.",
            formula="min_k n_k",
            bounds="[0, ∞)",
            how_to_read="With few samples a class, spread within classes reads low: by a share of 1/n_k.",
            source=_PAPYAN,
        ),
    )
}

RANK_COLLAPSE: dict[str, Reading] = {
    row.name: row
    for row in (
        Reading(
            name="distance_to_rank_k",
            title="Frobenius distance of the weight to the nearest matrix of rank K.",
            formula="sqrt(Σ_{i>K} s_i²)",
            bounds="[0, ‖W‖_F]",
            how_to_read="What the certificates bound. Falls to 0 under neural rank collapse.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="relative_distance_to_rank_k",
            title="Distance of the weight to the nearest matrix of rank K, relative to its norm.",
            formula="sqrt(Σ_{i>K} s_i² / Σ s_i²)",
            bounds="[0, 1]",
            how_to_read="Comparable between layers and weight decays, which shrink the norm as well.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="numerical_rank",
            title="Singular values above a thousandth of the largest.",
            formula="#{i : s_i > 1e-3·s_1}",
            bounds="[0, min(m, n)]",
            how_to_read="Often K − 1: output gradients of cross-entropy sum to 0 over classes. Less is legitimate too.",
            source=_GALANTI,
        ),
        Reading(
            name="tcv_input",
            title="Total cluster variation of what goes into the layer.",
            formula="(1/N) Σ ‖z_i − z̄_k‖²",
            bounds="[0, ∞)",
            how_to_read="At a critical point the distance to rank K is at most a constant times this, over the weight decay.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="tcv_ratio_input",
            title="Share of the variance of what goes into the layer that is within classes.",
            formula="tr Σ_W / tr Σ_T of z",
            bounds="[0, 1]",
            how_to_read="Falls with depth. The nearer to 0, the nearer to rank K the weight.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="tcv_adjoint",
            title="Total cluster variation of the gradients of the per-sample loss with respect to the layer's output.",
            formula="(1/N) Σ ‖δ_i − δ̄_k‖²",
            bounds="[0, ∞)",
            how_to_read="The other factor of the loose certificate. Small where samples of a class pull alike.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="class_mean_alignment",
            title="How much the weight is a multiple of the part of its gradient that class means make.",
            formula="−⟨W, M⟩ / (‖W‖_F ‖M‖_F), M = (1/N) Σ_k n_k δ̄_k z̄_kᵀ",
            bounds="[−1, 1]",
            how_to_read="1 is neural rank collapse, whatever the optimizer and its weight decay.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="alignment_bound",
            title="Distance of the weight to the nearest multiple of that part, which has rank K at most.",
            formula="‖W‖_F √(1 − a²), a the alignment",
            bounds="[0, ‖W‖_F]",
            how_to_read="Bounds the distance to rank K from above, with or without weight decay.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="certificate_joint",
            title="The tightest bound of the distance to rank K by weight decay.",
            formula="‖λW + M‖_F / λ",
            bounds="[0, ∞)",
            how_to_read="Never below the distance. Says something once it is below ‖W‖_F.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="certificate_sharp",
            title="Bound of the distance to rank K, with the part within classes and the residual apart.",
            formula="(‖C‖_F + ‖R‖_F) / λ, C = G − M, R = G + λW",
            bounds="[0, ∞)",
            how_to_read="Not below the joint certificate. Without residual it is the theorem.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="certificate_loose",
            title="Bound of the distance to rank K from total cluster variations alone.",
            formula="(√(tcv(δ)·tcv(z)) + ‖R‖_F) / λ for a linear layer",
            bounds="[0, ∞)",
            how_to_read="Not below the sharp one: the form of the theorem. NaN where the gradient has other parts.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="stationarity_residual",
            title="How far the weight is from a critical point of loss and penalty.",
            formula="‖R‖_F / ‖λW‖_F",
            bounds="[0, ∞)",
            how_to_read="At 1 or above the certificates say nothing. A longer window averages the noise of batches out of it.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="weight_decay",
            title="Weight decay of the parameter's own group in the optimizer, now.",
            formula="λ",
            bounds="[0, ∞)",
            how_to_read="In SGD, and in Adam with L2, λ of a penalty (λ/2)‖W‖²; in AdamW something else.",
            source=_ZANGRANDO,
        ),
        Reading(
            name="sgd_rank_bound",
            title="The rank that SGD with weight decay leaves in a weight up to a relative distance of 1e-3.",
            formula="min(m·B·ln(2/ε) / (lr·λ), the smaller side)",
            bounds="[0, min(m, n)]",
            how_to_read="Most often the smaller side, which says nothing: it bites at large lr·λ and small batches.",
            source=_GALANTI,
        ),
        Reading(
            name="norm_ratio",
            title="Norm of the weight before the step over its norm after it.",
            formula="‖W_t‖_F / ‖W_{t+1}‖_F",
            bounds="(0, ∞)",
            how_to_read="The SGD bound supposes that it has settled at 1.",
            source=_GALANTI,
        ),
    )
}
