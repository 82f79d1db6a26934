"""Every part of FedML that is named anywhere, and nothing else: the only package to import fedml.

`activate()` makes our names known to FedML; the job's YAML flag decides whether they do anything.
FedML's parts are imported where they are used: another release may lack them, and that is to be
said as the misfit that it is.
"""

from .activation import activate, activate_or_guard, deactivate, is_active, misfit, seams

__all__ = ["activate", "activate_or_guard", "deactivate", "is_active", "misfit", "seams"]
