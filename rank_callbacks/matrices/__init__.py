"""What in a model is a matrix."""

from rank_callbacks.matrices.layout import check_conv, matrix_views
from rank_callbacks.matrices.parameters import gradient_matrices, trainable_weights, weight_matrices
from rank_callbacks.matrices.selection import Layers, is_selected, select

__all__ = [
    "Layers",
    "check_conv",
    "gradient_matrices",
    "is_selected",
    "matrix_views",
    "select",
    "trainable_weights",
    "weight_matrices",
]
