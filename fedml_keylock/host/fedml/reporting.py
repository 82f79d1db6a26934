"""Wraps what carries models, data or texts out of FedML beside its messages."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ...errors import UpdateRefused
from ..abort import HOOKS
from ..patching import Function, Seam, around
from .current_job import current

if TYPE_CHECKING:
    from fedml.core.mlops.mlops_runtime_log import MLOpsRuntimeLog

__all__ = ["seams"]

_UPLOADS = (
    "write_model",
    "write_model_net",
    "write_model_input",
    "write_model_web",
    "upload_file",
    "upload_file_with_progress",
)
"""Functions that put something into FedML's object store: models, their inputs, artifacts, logs."""


def seams() -> tuple[Seam, ...]:
    """Seams of FedML's storage and of its log."""
    from fedml.core.distributed.communication.s3.remote_storage import S3Storage
    from fedml.core.mlops.mlops_runtime_log import MLOpsRuntimeLog

    return (
        Seam(MLOpsRuntimeLog, "__init__", ("self", "args"), _log_constructor),
        *(Seam(S3Storage, name, None, _upload) for name in _UPLOADS),
    )


@around
def _log_constructor(original: Function, self: MLOpsRuntimeLog, args: Any) -> None:
    original(self, args)
    HOOKS.stay()  # FedML's hook logs the whole traceback, and leaves the other ranks waiting


@around
def _upload(original: Function, *args: Any, **kwargs: Any) -> Any:
    session = current()
    if session is None or session.defense is None:
        return original(*args, **kwargs)
    error = UpdateRefused(
        f"{session.who}: FedML's {original.__name__} would put a model or a file into its object "
        "store, past keylock's gate; nothing was sent"
    )
    logging.warning("%s", error)  # FedML catches it in some places, and goes on
    raise error
