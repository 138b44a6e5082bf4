"""One report to every logger."""

from rank_callbacks.writers.report import Report, write_report

__all__ = ["Report", "write_report"]
