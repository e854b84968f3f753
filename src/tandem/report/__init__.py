"""The report: a pure function of the saved records."""

from tandem.report.document import SECTIONS
from tandem.report.markdown import Column, Report
from tandem.report.render import summary_rows, write_report

__all__ = ["SECTIONS", "Column", "Report", "summary_rows", "write_report"]
