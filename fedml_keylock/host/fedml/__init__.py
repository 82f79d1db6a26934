"""Names every part of FedML that this package uses; the only package that imports fedml.

`activate()` registers our names with FedML; the job's YAML decides whether they do anything.
FedML's parts are imported where they are used, so that a release without them is reported as
unsupported.
"""

from .activation import activate, activate_or_guard, deactivate, is_active, misfit, seams

__all__ = ["activate", "activate_or_guard", "deactivate", "is_active", "misfit", "seams"]
