"""The report: a pure function of the saved records."""

from tandem.report.document import SECTIONS, Report
from tandem.report.render import summary_rows, write_report

__all__ = ["SECTIONS", "Report", "summary_rows", "write_report"]
