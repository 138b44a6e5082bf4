"""The command ``rank-callbacks``."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rank_callbacks.compare.command import add_compare

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an error is one line and exit status 2.

    Args:
        arguments: As typed after ``rank-callbacks``; None for those of the process.
    """
    parser = ArgumentParser(
        prog="rank-callbacks", description="Ranks of weights, gradients and features while a network trains."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    typed = sys.argv[1:] if arguments is None else arguments
    add_compare(commands)
    _add_inspect(commands, "inspect" in typed[:1])
    chosen = parser.parse_args(typed)
    try:
        chosen.run_command(chosen)
    except (ValueError, OSError, ImportError) as failure:
        parser.error(str(failure))


def _add_inspect(commands: _SubParsersAction[ArgumentParser], is_chosen: bool) -> None:
    """Add ``inspect``, which needs torch: loaded only if it is chosen."""
    parser = commands.add_parser("inspect", help="ranks of the weights in a checkpoint")
    if is_chosen:
        from rank_callbacks.inspection import add_arguments, run

        add_arguments(parser)
        parser.set_defaults(run_command=run)


if __name__ == "__main__":
    main()
