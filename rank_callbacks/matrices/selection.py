"""Which layers a user means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias, TypeVar

__all__ = ["Layers", "by_reason", "in_short", "is_selected", "select"]

# A model with layers of a kind has tens of them.
_MOST_TOLD = 5
Layers: TypeAlias = "str | Sequence[str] | Callable[[str], bool] | None"
_T = TypeVar("_T")


def select(matrices: Mapping[str, _T], layers: Layers, not_viewable: Mapping[str, str] | None = None) -> dict[str, _T]:
    """Those of ``matrices`` whose names ``layers`` means.

    Args:
        matrices: Anything by the name of a matrix.
        layers: None for all; a pattern or several, in which ``*`` stands for anything and ``encoder`` also means all that
            is inside ``encoder``; or a function of the name that says whether to take it.
        not_viewable: What is left out because it is not known to be a matrix, with the reason, for the error message.

    Raises:
        ValueError: If a pattern matches nothing, or nothing is selected.

    Example:
        >>> select({"encoder.0.weight": 1, "encoder.2.weight": 2, "head.weight": 3}, "encoder")
        {'encoder.0.weight': 1, 'encoder.2.weight': 2}
    """
    left_out = not_viewable or {}
    if layers is None or callable(layers):
        chosen = {name: matrix for name, matrix in matrices.items() if is_selected(name, layers)}
        if not chosen:
            what = "a model with at least one weight matrix" if layers is None else "layers to accept the name of a matrix"
            raise ValueError(f"Expected {what}, got none. {_choices(matrices, left_out)}".rstrip())
        return chosen
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not any(_means(pattern, name) for name in matrices):
            raise ValueError(
                f"Expected {pattern!r} in layers to match a matrix, but it does not. {_choices(matrices, left_out)}"
            )
    if not patterns:
        raise ValueError(f"Expected at least one pattern in layers, got none. {_choices(matrices, left_out)}")
    return {name: matrix for name, matrix in matrices.items() if is_selected(name, patterns)}


def is_selected(name: str, layers: Layers) -> bool:
    """Whether ``layers`` means the matrix of this name.

    Example:
        >>> is_selected("encoder.0.weight", ["encoder", "head"])
        True
    """
    if layers is None or callable(layers):
        return layers is None or layers(name)
    return any(_means(pattern, name) for pattern in ([layers] if isinstance(layers, str) else layers))


def by_reason(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """The names that have a reason in common.

    Example:
        >>> by_reason({"a": "frozen", "b": "no matrix", "c": "frozen"})
        {'frozen': ['a', 'c'], 'no matrix': ['b']}
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def in_short(names: Sequence[str]) -> str:
    """Names in a sentence, the first of many.

    Example:
        >>> in_short(["a", "b", "c"]), in_short(["a", "b", "c", "d", "e", "f"])
        ('a, b and c', 'a, b, c and 3 more')
    """
    told = names if len(names) <= _MOST_TOLD else [*names[: _MOST_TOLD - 2], f"{len(names) - _MOST_TOLD + 2} more"]
    return " and ".join([*([", ".join(told[:-1])] if told[1:] else []), *told[-1:]])


def _means(pattern: str, name: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _choices(names: Iterable[str], left_out: Mapping[str, str]) -> str:
    choices = ", ".join(names)
    said = [f"Choose from {choices}."] if choices else []
    for reason, alike in by_reason(left_out).items():
        said.append(f"{in_short(alike)} {'is' if len(alike) == 1 else 'are'} left out: {reason}.")
    return " ".join(said)
