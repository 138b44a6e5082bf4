"""Which runs are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rank_callbacks.compare.run import Run
from rank_callbacks.logged_names import natural_order

__all__ = ["check_hyperparameter", "chosen"]


def chosen(runs: Sequence[Run], where: Mapping[str, object]) -> list[Run]:
    """The runs with these hyperparameters: numbers by value (``1e-3`` is ``0.001``), all else as it is written.

    Args:
        runs: All of them.
        where: Value by name.

    Raises:
        ValueError: If no run has such a hyperparameter, or none has these values.
    """
    for name in where:
        check_hyperparameter(runs, name)
    kept = [run for run in runs if all(_same(run.hyperparameters.get(name), value) for name, value in where.items())]
    if not kept:
        wanted = ", ".join(f"{name}={value}" for name, value in where.items())
        raise ValueError(f"Expected a run with {wanted}, found none. The runs have {_values(runs, where)}.")
    return kept


def check_hyperparameter(runs: Sequence[Run], name: str) -> None:
    """Refuse a hyperparameter that no run has.

    Raises:
        ValueError: With the names that there are.
    """
    known = sorted({known for run in runs for known in run.hyperparameters}, key=natural_order)
    if name not in known:
        raise ValueError(f"Expected a hyperparameter that a run has logged, got {name!r}. Choose from {known}.")


def _same(has: float | str | bool | None, wanted: object) -> bool:
    if has is None:
        return False
    if isinstance(has, bool):
        return str(has).lower() == str(wanted).lower()
    try:
        return float(has) == float(str(wanted))  # ruff: ignore[float-equality-comparison] - as it was typed
    except ValueError:
        return has == str(wanted)


def _values(runs: Sequence[Run], names: Mapping[str, object]) -> str:
    return ", ".join(
        f"{name}={value}"
        for name in names
        for value in sorted({str(run.hyperparameters[name]) for run in runs if name in run.hyperparameters}, key=natural_order)
    )
