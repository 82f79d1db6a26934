"""The FedML releases that every seam was tested with. Here so that reading it imports no fedml."""

SUPPORTED = ("0.9.6",)
