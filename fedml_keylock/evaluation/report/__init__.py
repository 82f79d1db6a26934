"""The report of a leakage evaluation: as numbers, as a page, as a picture and for the terminal."""

from .comparison import Comparison, compare
from .contents import Gallery
from .document import LeakageReport
from .reading import SCHEMA, read_report, report_schema

__all__ = [
    "SCHEMA",
    "Comparison",
    "Gallery",
    "LeakageReport",
    "compare",
    "read_report",
    "report_schema",
]
