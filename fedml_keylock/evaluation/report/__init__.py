"""The leakage report: as JSON, CSV, a page, a picture and text for the terminal."""

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
