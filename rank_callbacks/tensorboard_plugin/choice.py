"""What the reader of the Ranks tab chose, as a request spells it."""

from __future__ import annotations

from typing import NamedTuple

from werkzeug.datastructures import MultiDict

__all__ = ["VIEWS", "Choice", "ChoiceError"]

VIEWS = ("depth_profile", "heatmap", "spectrum", "gradient_bound", "collapse", "sweep", "findings")


class ChoiceError(ValueError):
    """A request that spells no choice."""


class Choice(NamedTuple):
    """What the reader chose. An empty text leaves it to us.

    Args:
        view: Name of a view.
        runs: That are shown; all if there are none.
        run: The one that is shown where a view shows one.
        group: First part of the tags.
        measure: Second part; of a spectrum ``spectrum`` or ``centered_spectrum``.
        layer: Third part.
        x: Hyperparameter of a sweep.
        accuracy: Name of the scalar that is an accuracy.
        k: Number of classes, where a line at this rank helps.
    """

    view: str
    runs: tuple[str, ...] = ()
    run: str = ""
    group: str = ""
    measure: str = ""
    layer: str = ""
    x: str = ""
    accuracy: str = ""
    k: int | None = None

    @classmethod
    def of(cls, arguments: MultiDict[str, str]) -> Choice:
        """The choice that a request's arguments spell.

        Raises:
            ChoiceError: If there is no such view, or k is no whole number.
        """
        view = arguments.get("view", "depth_profile")
        if view not in VIEWS:
            raise ChoiceError(f"Expected the name of a view, got {view!r}. Choose from {', '.join(VIEWS)}.")
        k = arguments.get("k", "")
        if k and not k.isdecimal():
            raise ChoiceError(f"Expected k to be a whole number, got {k!r}.")
        texts = {name: arguments.get(name, "") for name in ("run", "group", "measure", "layer", "x", "accuracy")}
        return cls(view, tuple(arguments.getlist("runs")), k=int(k) if k else None, **texts)
