"""A window of training, reduced to what certificates of rank collapse need: class moments and mean gradients."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import reduce
from typing import NamedTuple, cast

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from rank_callbacks.callbacks.batch_labels import labels_of_rows, soft_if_one_hot
from rank_callbacks.callbacks.stopwatch import Stopwatch
from rank_callbacks.functional import ClassMoments, batch_moments, merged_moments
from rank_callbacks.functional.class_moments import packed_moments, unpacked_moments
from rank_callbacks.functional.patch_moments import Places, map_moments, patch_moments
from rank_callbacks.matrices import matrix_views
from rank_callbacks.matrices.parameters import TrainableWeight
from rank_callbacks.matrices.passes import Pass, PassHooks

__all__ = ["CollapseWindow", "WindowedMatrix", "bytes_held", "over_processes"]


class WindowedMatrix(NamedTuple):
    """What a window leaves of one matrix.

    Args:
        weight: The matrix as it is now, W.
        gradient: Its gradient, the mean over the steps of the window; None where it was not added up.
        inputs: Moments of the rows that passed into the layer.
        deltas: Moments of the gradients of its output, unscaled.
        steps: How many gradients were added up; of a probe, its samples.
    """

    weight: Tensor
    gradient: Tensor | None
    inputs: ClassMoments
    deltas: ClassMoments
    steps: float


def bytes_held(weight: TrainableWeight, num_classes: int, is_summed: bool) -> int:
    """What a window holds of a parameter from step to step.

    Args:
        weight: The parameter.
        num_classes: K, of the moments of inputs and output gradients.
        is_summed: Whether its gradient is added up.
    """
    shapes = [matrix.shape for matrix in weight.matrices.values()]
    rows, columns = sum(shape[0] for shape in shapes), shapes[0][1]
    gradient = weight.parameter.numel() * max(4, weight.parameter.element_size()) if is_summed else 0
    return gradient + 8 * num_classes * (rows + columns + 4)


def over_processes(
    matrices: Mapping[str, tuple[Tensor, WindowedMatrix | None]], samples: int, num_classes: int, trainer: Trainer
) -> tuple[dict[str, WindowedMatrix], int]:
    """What the windows of all processes leave together, and how many samples they saw.

    A collective operation, one all-gather: every process must call it with the same names and shapes. A matrix of which some
    process saw nothing is left out on all.

    Args:
        matrices: By name, the weight, and what this process's window leaves of it.
        samples: That this process's window saw.
        num_classes: K.
        trainer: Of the run.
    """
    seen = {name: one for name, (_, one) in matrices.items() if one is not None}
    if trainer.world_size == 1:
        return seen, samples
    parts = [_packed(weight, one, num_classes) for weight, one in matrices.values()]
    count = parts[0].new_tensor([samples]) if parts else torch.zeros(1)
    everyones = trainer.strategy.all_gather(torch.cat([count, *parts]))
    pieces = dict(zip(matrices, everyones[:, 1:].split([len(part) for part in parts], 1), strict=True))
    together = {name: _unpacked(seen[name], pieces[name], num_classes) for name in seen if pieces[name][:, 0].all()}
    return together, int(everyones[:, 0].sum())


def _packed(weight: Tensor, one: WindowedMatrix | None, num_classes: int) -> Tensor:
    """Whether there is anything, then the moments, in one vector of a length that the weight tells."""
    rows, columns = weight.shape
    if one is None:
        return torch.zeros(1 + num_classes * (rows + columns + 4), dtype=torch.float64, device=weight.device)
    inputs, deltas = packed_moments(one.inputs), packed_moments(one.deltas)
    return torch.cat([inputs.new_ones(1), inputs, deltas])


def _unpacked(one: WindowedMatrix, everyones: Tensor, num_classes: int) -> WindowedMatrix:
    rows, columns = one.weight.shape
    sizes = [1, num_classes * (columns + 2), num_classes * (rows + 2)]
    _, inputs, deltas = everyones.split(sizes, 1)
    return one._replace(
        inputs=reduce(merged_moments, (unpacked_moments(vector, num_classes, columns) for vector in inputs)),
        deltas=reduce(merged_moments, (unpacked_moments(vector, num_classes, rows) for vector in deltas)),
    )


class CollapseWindow:
    """Adds up class moments of every pass and the gradients of every step, from construction until ``close``.

    ``begin_batch`` says whose rows will pass, ``add_gradients`` is called once the gradient of a step is complete.

    Args:
        model: Any module.
        weights: Which of its weights.
        num_classes: K.
        ignore_index: A label that means none.
        stopwatch: Runs while a pass is reduced.
        summed: Paths of the weights whose gradients are added up.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Sequence[TrainableWeight],
        num_classes: int,
        ignore_index: int | None,
        stopwatch: Stopwatch,
        summed: Container[str],
    ) -> None:
        self.samples = 0
        self.unlabelled: dict[str, str] = {}
        self._stopwatch = stopwatch
        self._summed = summed
        self._num_classes = num_classes
        self._ignore_index = ignore_index
        # What goes into a product is the same for all matrices that are stacked in it.
        self._inputs: dict[tuple[str, ...], ClassMoments] = {}
        self._deltas: dict[str, ClassMoments] = {}
        self._gradients: dict[str, Tensor] = {}
        self._steps: dict[str, float] = {}
        self._hooks = PassHooks(model, weights, self._add)

    def close(self) -> None:
        """Remove every hook, and let go of the window: hooks and it know each other, and would wait for the collector."""
        self._hooks.close()
        self._inputs, self._deltas, self._gradients = {}, {}, {}

    def begin_batch(self, labels: Tensor, scale: float = 1.0) -> int:
        """Say whose rows pass next.

        Args:
            labels: Of the batch.
            scale: What the loss is multiplied by on top of the mean, as by a GradScaler.

        Returns:
            How many samples have labels.
        """
        labels = soft_if_one_hot(labels.detach(), self._num_classes)
        self._labels, self._scale = labels, scale
        ignored = 0 if self._ignore_index is None else int((labels == self._ignore_index).sum())
        rows = labels.shape[:-1].numel() if labels.is_floating_point() else labels.numel()
        self.samples += rows - ignored
        return rows - ignored

    def add_gradients(
        self, gradients: Sequence[tuple[TrainableWeight, Tensor]], steps: float = 1.0, scale: float = 1.0
    ) -> None:
        """Add the gradients of one step.

        Args:
            gradients: With the parameters that they are of.
            steps: How many they count for.
            scale: What they are still multiplied by.
        """
        for weight, gradient in gradients:
            self._steps[weight.path] = self._steps.get(weight.path, 0.0) + steps
            if weight.path in self._summed:
                dense = gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
                wide = dense if dense.dtype == torch.float64 else dense.float()
                before = self._gradients.get(weight.path)
                self._gradients[weight.path] = wide / scale if before is None else before.add_(wide, alpha=1 / scale)

    def take(self, weight: TrainableWeight) -> dict[str, WindowedMatrix | None]:
        """The selected matrices of one parameter, by name, and no more of its gradient here.

        None without a gradient, or if no labelled rows were seen.
        """
        views, path = weight.matrices, weight.path
        if path not in self._steps or path in self.unlabelled:
            return dict.fromkeys(views)
        steps, gradient = self._steps[path], self._gradients.pop(path, None)
        gradients = {} if gradient is None else matrix_views(path, weight.module, gradient.div_(steps)) or {}
        return {
            name: WindowedMatrix(view, gradients.get(name), self._moments_of_inputs(name), self._deltas[name], steps)
            if name in self._deltas
            else None
            for name, view in views.items()
        }

    def why_nothing(self, path: str) -> str | None:
        """Why there is nothing to take of a parameter; None if something passed, or it is not known where it went."""
        if path in self.unlabelled:
            return f"labels do not fit what passed: {self.unlabelled[path]}"
        return None if path in self._steps else "it got no gradient: it did not run, or the loss does not depend on it"

    def _moments_of_inputs(self, name: str) -> ClassMoments:
        return reduce(merged_moments, (moments for names, moments in self._inputs.items() if name in names))

    def _add(self, one: Pass) -> None:
        with self._stopwatch:
            self._add_pass(one)

    def _add_pass(self, one: Pass) -> None:
        path = one.weight.path
        labels = _labels_of_rows(one, self._labels)
        if labels is None:
            self.unlabelled[path] = f"rows {tuple(one.inputs.shape[:-1])}, labels {tuple(self._labels.shape)}"
            return
        is_map = isinstance(one.module, nn.modules.conv._ConvNd)
        moments_of_deltas = map_moments if is_map else batch_moments
        columns = self._columns(one)
        for name, chosen in columns.items():
            part = one.deltas[:, chosen] if is_map else one.deltas[..., chosen]
            deltas = moments_of_deltas(part, labels, self._num_classes, ignore_index=self._ignore_index)
            self._deltas[name] = self._merged(self._deltas.get(name), _divided(deltas, self._scale))
        if columns:
            names = tuple(columns)
            self._inputs[names] = self._merged(self._inputs.get(names), self._input_moments(one, labels))

    @staticmethod
    def _columns(one: Pass) -> dict[str, slice]:
        """For each selected matrix in this product, which features of the output are its own."""
        views = matrix_views(one.weight.path, one.weight.module, one.weight.parameter.detach()) or {}
        features = one.deltas.shape[1 if isinstance(one.module, nn.modules.conv._ConvNd) else -1]
        columns, start = {}, -one.first_row
        for name, view in views.items():
            end = start + view.shape[0]
            if name in one.weight.matrices and 0 <= start < features:
                columns[name] = slice(start, end)
            start = end
        return columns

    def _input_moments(self, one: Pass, labels: Tensor) -> ClassMoments:
        if isinstance(one.module, nn.modules.conv._ConvNd):
            return patch_moments(one.inputs, labels, self._num_classes, _places(one), self._ignore_index)
        return batch_moments(one.inputs, labels, self._num_classes, ignore_index=self._ignore_index)

    @staticmethod
    def _merged(before: ClassMoments | None, now: ClassMoments) -> ClassMoments:
        return now if before is None else merged_moments(before, now)


def _divided(moments: ClassMoments, scale: float) -> ClassMoments:
    return moments._replace(means=moments.means / scale, variations=moments.variations / scale**2)


def _labels_of_rows(one: Pass, labels: Tensor) -> Tensor | None:
    """A label for each row of a product, or for each image of a convolution; None if they do not fit."""
    is_map = isinstance(one.module, nn.modules.conv._ConvNd)
    return labels_of_rows(one.inputs.shape[:1] if is_map else one.inputs.shape[:-1], labels, one.batch_dim)


def _places(one: Pass) -> list[Places]:
    module, positions = cast("nn.Conv2d", one.module), one.deltas.shape[2:]
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if module.padding == "same":
        paddings = [step * (size - 1) // 2 for size, step in zip(kernel, dilation, strict=True)]
    else:
        paddings = [0] * len(kernel) if module.padding == "valid" else [*cast("tuple[int, ...]", module.padding)]
    return [Places(*place) for place in zip(positions, kernel, stride, paddings, dilation, strict=True)]
