"""What a window holds, and lets go of."""

import pytest
import torch
from torch import Tensor, nn

from rank_callbacks.callbacks.collapse_window import CollapseWindow, bytes_held
from rank_callbacks.callbacks.stopwatch import Stopwatch
from rank_callbacks.functional import class_moments
from rank_callbacks.matrices import trainable_weights

K, WIDTH = 3, 4


def window_on(model: nn.Module, labels: Tensor) -> CollapseWindow:
    weights = trainable_weights(model)
    window = CollapseWindow(model, weights, K, None, Stopwatch(), [weight.path for weight in weights])
    window.begin_batch(labels)
    return window


def test_matrices_of_a_stack_share_the_moments_of_their_inputs() -> None:
    model, tokens = nn.MultiheadAttention(WIDTH, 2, batch_first=True).double(), torch.randn(6, 5, WIDTH).double()
    window = window_on(model, torch.arange(6) % K)
    model(tokens, tokens, tokens)[0].square().sum().backward()
    assert sorted(len(names) for names in window._inputs) == [1, 3]


def test_inputs_that_only_some_of_a_stack_saw() -> None:
    """Queries of both calls, keys and values of other tokens in the second."""
    model, labels = nn.MultiheadAttention(WIDTH, 2, batch_first=True).double(), torch.arange(6) % K
    tokens, others = torch.randn(6, 5, WIDTH).double(), torch.randn(6, 7, WIDTH).double()
    window = window_on(model, labels)
    (model(tokens, tokens, tokens)[0].square().sum() + model(tokens, others, others)[0].square().sum()).backward()
    weights = trainable_weights(model)
    window.add_gradients([(weight, weight.parameter.grad) for weight in weights])
    found = {name: one for weight in weights for name, one in window.take(weight).items()}
    for name, second in (("in_proj_weight.q", tokens), ("in_proj_weight.k", others), ("in_proj_weight.v", others)):
        rows = torch.cat([tokens, second], 1)
        expected = class_moments(rows, labels[:, None].expand(rows.shape[:2]), K)
        for value, truth in zip(found[name].inputs[:3], expected[:3], strict=True):
            torch.testing.assert_close(value, truth)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_gradient_is_a_mean_and_goes_with_what_is_taken(steps: int) -> None:
    model, inputs = nn.Sequential(nn.Linear(WIDTH, 3)), torch.randn(6, WIDTH)
    window, gradients = window_on(model, torch.arange(6) % K), []
    (weight,) = trainable_weights(model)
    for _ in range(steps):
        gradients.append(torch.autograd.grad(model(inputs).square().sum(), weight.parameter)[0])
        window.add_gradients([(weight, 4 * gradients[-1])], scale=4.0)
    (one,) = window.take(weight).values()
    torch.testing.assert_close(one.gradient, sum(gradients) / steps)
    assert not window._gradients


def test_bytes_held_are_those_of_the_tensors() -> None:
    model, inputs = nn.Sequential(nn.Linear(50, 30)), torch.randn(6, 50)
    window = window_on(model, torch.arange(6) % K)
    (weight,) = trainable_weights(model)
    model(inputs).square().sum().backward()
    window.add_gradients([(weight, weight.parameter.grad)])
    moments = [*window._inputs.values(), *window._deltas.values()]
    held = [*window._gradients.values(), *(part for one in moments for part in one if part is not None)]
    assert sum(one.nbytes for one in held) == bytes_held(weight, K, is_summed=True)
    assert bytes_held(weight, K, is_summed=True) - bytes_held(weight, K, is_summed=False) == weight.parameter.nbytes
