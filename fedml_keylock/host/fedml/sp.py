"""Wraps FedML's simulation in one process: one trainer and model serve all silos in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..one_process import OneProcess
from ..patching import Function, Seam, around, replaced
from .current_job import begin

if TYPE_CHECKING:
    from fedml.simulation.sp.fedavg.client import Client
    from fedml.simulation.sp.fedavg.fedavg_api import FedAvgAPI

__all__ = ["seams"]


def seams() -> tuple[Seam, ...]:
    """Seams of FedML's single-process FedAvg."""
    from fedml.simulation.sp.fedavg.client import Client
    from fedml.simulation.sp.fedavg.fedavg_api import FedAvgAPI

    return (
        Seam(Client, "train", ("self", "w_global"), _train),
        Seam(Client, "local_test", ("self", "b_use_test_dataset"), _local_test),
        Seam(FedAvgAPI, "train", ("self",), _train_all),
    )


@around
def _train(original: Function, self: Client, w_global: Any) -> Any:
    session = begin(self.args)
    if not isinstance(session, OneProcess):
        return original(self, w_global)
    session.enter(int(self.client_idx))
    session.load_aggregate(w_global, self.model_trainer)
    session.report_accuracy(self.model_trainer, self.local_test_data, self.device)
    return session.exchange(
        self.model_trainer,
        self.local_training_data,
        lambda data: _train_on(original, self, data),
        samples=self.get_sample_number(),
    )


def _train_on(original: Function, self: Client, data: Any) -> Any:
    # FedML loads the model once more: in the form that the lock gives it
    with replaced(self, "local_training_data", data):
        return original(self, self.model_trainer.get_model_params())


@around
def _local_test(original: Function, self: Client, b_use_test_dataset: Any) -> Any:
    session = begin(self.args)
    if not isinstance(session, OneProcess):
        return original(self, b_use_test_dataset)
    with session.as_server(self.model_trainer):
        return original(self, b_use_test_dataset)


@around
def _train_all(original: Function, self: FedAvgAPI) -> None:
    original(self)
    session = begin(self.args)
    if isinstance(session, OneProcess):
        session.end(self.model_trainer.get_model_params())
