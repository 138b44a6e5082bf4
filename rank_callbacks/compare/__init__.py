"""Runs that any logger has left, read into one table and one report."""

from rank_callbacks.compare.load import load, read_runs

__all__ = ["load", "read_runs"]
