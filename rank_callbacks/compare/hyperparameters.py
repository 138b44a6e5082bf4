"""Hyperparameters as every logger has them: one flat mapping of plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rank_callbacks.compare.run import Hyperparameters

__all__ = ["flat", "read_yaml"]


def flat(values: Mapping[str, Any]) -> Hyperparameters:
    """Nested settings under names with slashes, as TensorBoard has them; what is neither number nor truth as text.

    Example:
        >>> flat({"optimizer": {"lr": 1, "name": "SGD"}, "widths": [2, 3], "nesterov": True})
        {'optimizer/lr': 1.0, 'optimizer/name': 'SGD', 'widths': '[2, 3]', 'nesterov': True}
    """
    return dict(_leaves(values, ""))


def _leaves(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, float | str | bool]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{name}/")
        else:
            yield f"{before}{name}", _plain(value)


def _plain(value: object) -> float | str | bool:
    if isinstance(value, bool):
        return value
    return float(value) if isinstance(value, int | float) else str(value)


def read_yaml(path: Path) -> tuple[Hyperparameters, list[str]]:
    """What Lightning saved beside a log as ``hparams.yaml``, and a note if it cannot be read; nothing if there is no file.

    Objects in it are never made: their values are left out.
    """
    import yaml

    if not path.is_file():
        return {}, []

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
        """Reads a Python object as its tag."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    try:
        values = yaml.load(path.read_text(encoding="utf-8", errors="replace"), Loader)
    except yaml.YAMLError as failure:
        return {}, [f"Its {path.name} cannot be read: {' '.join(str(failure).split())}"]
    return (flat(values), []) if isinstance(values, dict) else ({}, [])
