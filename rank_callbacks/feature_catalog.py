"""Readings of features, networks and their truncation that no spectrum alone holds, beside the measures of ``catalog``."""

from __future__ import annotations

from rank_callbacks.collapse_catalog import Reading

__all__ = ["FEATURE_RANK", "NETWORK_RANK", "TRUNCATION"]

_FENG = "Rank diminishing in deep neural networks (Feng et al., 2022), https://arxiv.org/abs/2206.06072"
_ECKART_YOUNG = (
    "The approximation of one matrix by another of lower rank (Eckart and Young, 1936), https://doi.org/10.1007/BF02288367"
)
_GAO = "A theory of multineuronal dimensionality, dynamics and measurement (Gao et al., 2017), https://doi.org/10.1101/214262"

FEATURE_RANK: dict[str, Reading] = {
    row.name: row
    for row in (
        Reading(
            name="alpha_req",
            title="Exponent of the decay of the spectrum of the features' covariance.",
            formula="α of λ_i ∝ i^−α, by least squares of ln λ_i on −ln i, i = 11…100, weights 1/i",
            bounds="[0, ∞)",
            how_to_read="Near 1 features are said to transfer best. Above, few directions dominate; below, it is flat.",
            source=(
                "α-ReQ: assessing representation quality in self-supervised learning by measuring eigenspectrum decay "
                "(Agrawal et al., 2022), "
                "https://proceedings.neurips.cc/paper_files/paper/2022/hash/70596d70542c51c8d9b4e423f4bf2736-Abstract-Conference.html"
            ),
        ),
        Reading(
            name="saturation",
            title="Share of a layer's dimensions that hold nearly all of the variance.",
            formula="k / D, k = #{j : Σ_{i≤j} λ_i < .99 Σ λ_i}, at least 1",
            bounds="[0, 1]",
            how_to_read="Layers that read low late in a network add little. Counts as delve does, one less than PCA.",
            source="Feature space saturation during training (Richter et al., 2020), https://arxiv.org/abs/2006.08679",
        ),
        Reading(
            name="corrected_participation_ratio",
            title="Participation ratio of the covariance, freed of the bias of few samples.",
            formula="(tr S)² / t − 2/ν, t = ν² (tr S² − (tr S)²/ν) / ((ν − 1)(ν + 2)), ν = N − 1",
            bounds="[1, ∞)",
            how_to_read="Compares layers and runs of different N. NaN where the samples are too few to tell.",
            source=(
                "Some tests concerning the covariance matrix in high dimensional data (Srivastava, 2005), "
                "https://doi.org/10.14490/jjss.35.251"
            ),
        ),
        Reading(
            name="two_nn",
            title="Dimension of the manifold that the features lie on, from the distances to two neighbours.",
            formula="slope of −ln(1 − i/N) on ln(r₂/r₁), through the origin, without the largest tenth",
            bounds="(0, ∞)",
            how_to_read="A curved sheet of dimension 2 reads 2 whatever its linear rank. High dimensions read low.",
            source=(
                "Estimating the intrinsic dimension of datasets by a minimal neighborhood information (Facco et al., 2017), "
                "https://doi.org/10.1038/s41598-017-11873-y"
            ),
        ),
        Reading(
            name="lidar",
            title="Effective rank of what tells objects apart, relative to the spread of their views.",
            formula="exp(−Σ p_i ln p_i), p_i = (λ_i + 1e-8) / Σ (λ_j + 1e-8), λ of Σ_w^−½ Σ_b Σ_w^−½",
            bounds="[0, D]",
            how_to_read="Higher goes with better linear probes. Where views differ as much as objects, a direction is lost.",
            source=(
                "LiDAR: sensing linear probing performance in joint embedding SSL architectures (Thilak et al., 2023), "
                "https://arxiv.org/abs/2312.04000"
            ),
        ),
        Reading(
            name="dead_fraction",
            title="Share of features that are 0 in every row.",
            formula="#{j : h_ij = 0 for all i} / D",
            bounds="[0, 1]",
            how_to_read="Units that no row wakes. More than a few after a ReLU: too large a learning rate or bias.",
            source="Dying ReLU and initialization: theory and numerical examples (Lu et al., 2019), https://arxiv.org/abs/1903.06733",
        ),
        Reading(
            name="dormant_ratio",
            title="Share of features whose mean size is at most 0.025 of that of the layer.",
            formula="#{j : mean_i |h_ij| ≤ .025 · mean_ij |h_ij|} / D",
            bounds="[0, 1]",
            how_to_read="Rises as a network loses its capacity to learn, in reinforcement learning above all.",
            source=(
                "The dormant neuron phenomenon in deep reinforcement learning (Sokar et al., 2023), "
                "https://arxiv.org/abs/2302.12902"
            ),
        ),
        Reading(
            name="samples",
            title="Rows that were looked at.",
            formula="N",
            bounds="[0, ∞)",
            how_to_read="No rank exceeds it, and centred ones not N − 1.",
            source=_GAO,
        ),
        Reading(
            name="samples_per_feature",
            title="Rows that were looked at, for each feature.",
            formula="N / D",
            bounds="[0, ∞)",
            how_to_read="At 1 the participation ratio of isotropic features reads half of the truth, at 25 it is 4 % low.",
            source=_GAO,
        ),
        Reading(
            name="depth",
            title="Place of the layer in the order in which layers first ran.",
            formula="0, 1, 2, …",
            bounds="[0, ∞)",
            how_to_read="What to plot a rank against: along a network the rank of features falls.",
            source=_FENG,
        ),
        Reading(
            name="samples_per_class",
            title="Rows of the class that has least, with num_classes.",
            formula="min_k N_k",
            bounds="[0, ∞)",
            how_to_read="The rank of a class is at most its rows: compare classes of as many.",
            source=_GAO,
        ),
    )
}

NETWORK_RANK: dict[str, Reading] = {
    row.name: row
    for row in (
        Reading(
            name="jacobian_rank",
            title="In how many directions a step of the input moves the layer.",
            formula="mean_x #{i : s_i > rtol · s_1}, s of J(x) = ∂h/∂x",
            bounds="[0, min(D, d)]",
            how_to_read="The exact rank never rises along a network; that above a tolerance need not fall at every layer.",
            source=_FENG,
        ),
        Reading(
            name="feng_jacobian_rank",
            title="Rank of the Jacobian as the paper's code counts it: by the central patch, on zeros, in float32.",
            formula="mean_x rank(JᵀJ), s² > d·ε·s_1² of the d x d Gram matrix",
            bounds="[0, min(D, d)]",
            how_to_read="To compare with the paper. With d = 768 a singular value counts from about 1e-2 of the largest.",
            source=_FENG,
        ),
        Reading(
            name="perturbed_pca_dimension",
            title="Principal components that small noise on an input excites in the layer.",
            formula="mean_x #{i : λ_i > min(n, D)·ε·λ_1}, λ of the covariance of h(x + ξ_1…n), ξ normal",
            bounds="[0, min(n − 1, D)]",
            how_to_read="The rank of the Jacobian without derivatives: it falls with depth in the same way.",
            source=_FENG,
        ),
        Reading(
            name="classification_dimension",
            title="Principal components of the features that the classifier needs for nearly its accuracy.",
            formula="min{k : acc(U_k U_kᵀ h) ≥ .95 · acc(h)}, U_k leading directions of the covariance",
            bounds="[0, D]",
            how_to_read="Far below D in trained networks. Features are projected as they are, as by the paper's code.",
            source=_FENG,
        ),
        Reading(
            name="centered_classification_dimension",
            title="Principal components that the classifier needs where the mean feature is kept.",
            formula="min{k : acc(h̄ + U_k U_kᵀ (h − h̄)) ≥ .95 · acc(h)}",
            bounds="[0, D]",
            how_to_read="About one less than the number of classes at neural collapse.",
            source=_FENG,
        ),
        Reading(
            name="independence_deficit",
            title="Relative error of a class's logit where the few others that decide it predict it.",
            formula="mean_i |y_i − w·y_{−i}| / |y_i| over samples of the class, w sparse by the Lasso",
            bounds="[0, ∞)",
            how_to_read="Near 0 the logit of a class is a combination of others: the network is confident for a wrong reason.",
            source=_FENG,
        ),
        Reading(
            name="predicted_logit_accuracy",
            title="Share of a class's samples that stay with it where its logit is replaced by that prediction.",
            formula="#{i of class c : argmax y_i with y_ic = w·y_{i,−c} is c} / n_c",
            bounds="[0, 1]",
            how_to_read="As high as the accuracy itself where a class needs no logit of its own.",
            source=_FENG,
        ),
        Reading(
            name="jacobian_error",
            title="What probes may have missed of a singular value of the Jacobian, over the largest; logged with probes.",
            formula="mean_x ε / s_1, true s_i² ≤ s_i² + ε²",
            bounds="[0, ∞)",
            how_to_read="Below the tolerance of jacobian_rank no direction was missed; above it the rank is a lower bound.",
            source="Finding structure with randomness (Halko, Martinsson and Tropp, 2011), https://arxiv.org/abs/0909.4061",
        ),
    )
}

TRUNCATION: dict[str, Reading] = {
    row.name: row
    for row in (
        Reading(
            name="accuracy",
            title="Share of the samples classified as their label, with the weights as they are.",
            formula="#{i : argmax y_i = label_i} / n",
            bounds="[0, 1]",
            how_to_read="What the accuracies after truncation are to be held against.",
            source=_ECKART_YOUNG,
        ),
        Reading(
            name="accuracy_at_rtol",
            title="The same with the singular values above the tolerance alone in every weight.",
            formula="accuracy with W = Σ_{i : s_i > rtol · s_1} s_i u_i v_iᵀ",
            bounds="[0, 1]",
            how_to_read="As high as the accuracy itself where the network does not need the directions below the tolerance.",
            source=_ECKART_YOUNG,
        ),
        Reading(
            name="parameters_at_rtol",
            title="Share of the weights' numbers that is left, each stored as two factors where that takes fewer.",
            formula="Σ min(k·(m + n), m·n) / Σ m·n, k = #{i : s_i > rtol · s_1}",
            bounds="[0, 1]",
            how_to_read="What truncation at the tolerance saves. At 1 ranks are above half of the width of square weights.",
            source=_ECKART_YOUNG,
        ),
    )
}
