"""Which layer of a model is its classifier, told where that is a choice."""

from __future__ import annotations

from pytorch_lightning.utilities import rank_zero_info
from torch import nn

from rank_callbacks.matrices.features import classifiers, find_classifier

__all__ = ["tell_classifier"]


def tell_classifier(model: nn.Module, num_classes: int, name: str | None, monitor: str) -> None:
    """Refuse a model without a classifier, and say which layer is taken for it if there are several.

    Args:
        model: Any module.
        num_classes: K.
        name: The layer that was asked for; None if it is to be found.
        monitor: Name of the monitor that looks at it.

    Raises:
        ValueError: See ``find_classifier``.
    """
    find_classifier(model, num_classes, name)
    fitting = list(classifiers(model, num_classes))
    if name is None and len(fitting) > 1:
        rank_zero_info(
            f"{monitor} takes {fitting[-1]} for the classifier. {', '.join(fitting[:-1])} would fit as well: choose by "
            "classifier='...'."
        )
