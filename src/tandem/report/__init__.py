"""The report: a pure function of the saved records."""

from tandem.report.render import summary_rows, write_report

__all__ = ["summary_rows", "write_report"]
