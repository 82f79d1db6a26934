"""The report of a leakage evaluation: as numbers, as a page, as a picture and for the terminal."""

from .comparison import Comparison, compare
from .contents import Gallery
from .document import LeakageReport
from .reading import SCHEMA, read_report, report_schema
from .scalars import write_tensorboard

__all__ = [
    "SCHEMA",
    "Comparison",
    "Gallery",
    "LeakageReport",
    "compare",
    "read_report",
    "report_schema",
    "write_tensorboard",
]
