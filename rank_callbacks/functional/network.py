"""The four quantities that Feng et al. measure in trained networks, each a function.

- Partial rank of the Jacobian: ``jacobian_rank``, ``jacobian_singular_values``; ``feng_jacobian_rank`` in the paper's setting.
- Perturbed PCA dimension: ``perturbed_pca_dimension``.
- Classification dimension: ``classification_dimension``.
- Independence deficit: ``independence_deficit``.

Reference:
    Rank diminishing in deep neural networks (Feng et al., 2022), https://arxiv.org/abs/2206.06072
"""

from rank_callbacks.functional.central_patch import central_patch, feng_jacobian_rank
from rank_callbacks.functional.classification_dimension import classification_dimension
from rank_callbacks.functional.independence_deficit import ClassDeficit, DeficitTable, independence_deficit
from rank_callbacks.functional.jacobian import (
    JacobianSpectrum,
    jacobian_rank,
    jacobian_singular_values,
)
from rank_callbacks.functional.perturbed_pca import perturbed_pca_dimension

__all__ = [
    "ClassDeficit",
    "DeficitTable",
    "JacobianSpectrum",
    "central_patch",
    "classification_dimension",
    "feng_jacobian_rank",
    "independence_deficit",
    "jacobian_rank",
    "jacobian_singular_values",
    "perturbed_pca_dimension",
]
