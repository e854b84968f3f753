"""The report: a pure function of the saved records."""

from tandem.report.markdown import Column, Report
from tandem.report.render import SECTIONS, summary_rows, write_report

__all__ = ["SECTIONS", "Column", "Report", "summary_rows", "write_report"]
