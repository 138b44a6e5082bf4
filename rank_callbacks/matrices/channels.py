"""Where the channels of a sequence are: before the positions after a convolution, last after a linear layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rank_callbacks.matrices.uncompiled import unless_compiled

__all__ = ["ChannelsLast"]

_BEFORE_POSITIONS = (
    nn.Conv1d,
    nn.ConvTranspose1d,
    nn.BatchNorm1d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.GroupNorm,
    nn.MaxPool1d,
    nn.AvgPool1d,
    nn.LPPool1d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveAvgPool1d,
    nn.MaxUnpool1d,
    nn.Upsample,
    nn.Unfold,
)
_LAST = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RNNBase, nn.MultiheadAttention)


class ChannelsLast:
    """Turns features of shape ``(B, C, L)`` to ``(B, L, C)``, from construction until ``close``.

    Convolutions, norms and poolings of one dimension have their channels before the positions; linear, recurrent and attention
    layers, embeddings and layer norms have them last. Any other module, an activation or a block, is told by the last of these
    that ran before its output: channels lie where that many are, and where this does not tell, as they lay there; last if
    none ran. What a module is found to have at first it has from then on.

    Args:
        model: Any module. Without a layer that has channels before positions no hook is set.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU())
        >>> channels_last = ChannelsLast(model)
        >>> channels_last(model[1], model(torch.ones(2, 3, 5))).shape
        torch.Size([2, 5, 8])
        >>> channels_last.close()
    """

    def __init__(self, model: nn.Module) -> None:
        self._before: tuple[int, bool] | None = None
        self._found: dict[nn.Module, bool] = {}
        kinds = {module: kind for module in model.modules() if (kind := _has_channels_second(module)) is not None}
        telling = kinds if any(kinds.values()) else ()
        hook = unless_compiled(self._tell)
        self._handles: list[RemovableHandle] = [module.register_forward_hook(hook) for module in telling]

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __call__(self, module: nn.Module, features: Tensor) -> Tensor:
        """The features that a module has just given out, channels last if they have three dimensions."""
        if features.dim() != 3:
            return features
        if module not in self._found:
            self._found[module] = self._is_second(module, features)
        return features.mT if self._found[module] else features

    def _is_second(self, module: nn.Module, features: Tensor) -> bool:
        by_kind = _has_channels_second(module)
        if by_kind is not None or self._before is None:
            return bool(by_kind)
        channels, is_second = self._before
        second, last = (features.shape[dim] == channels for dim in (1, 2))
        return is_second if second == last else second

    def _tell(self, module: nn.Module, args: object, output: Any) -> None:  # ruff: ignore[any-type]
        features = output[0] if isinstance(output, tuple) else output
        if isinstance(features, Tensor) and features.dim() == 3:
            is_second = bool(_has_channels_second(module))
            self._before = features.shape[1 if is_second else 2], is_second


def _has_channels_second(module: nn.Module) -> bool | None:
    """Whether channels come before positions, as far as the kind of a module tells."""
    return True if isinstance(module, _BEFORE_POSITIONS) else False if isinstance(module, _LAST) else None
