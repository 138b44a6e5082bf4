"""One report to every logger."""

from rank_callbacks.writers.matrix_spectrum import MatrixSpectrum
from rank_callbacks.writers.report import Report, leave_summaries, log_report, write_report
from rank_callbacks.writers.table import Table

__all__ = ["MatrixSpectrum", "Report", "Table", "leave_summaries", "log_report", "write_report"]
