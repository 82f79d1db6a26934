"""Wraps FedML's averaging, and how its server tests and keeps a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..one_process import OneProcess
from ..patching import Function, Seam, around
from ..server_session import ServerSession
from .current_job import begin, current, final

if TYPE_CHECKING:
    from fedml.cross_silo.server.fedml_aggregator import FedMLAggregator
    from fedml.simulation.sp.fedavg.fedavg_api import FedAvgAPI

    from ..session import Session

__all__ = ["seams"]


def seams() -> tuple[Seam, ...]:
    """Seams of FedML's averaging, and of what its servers do with an average."""
    from fedml.cross_silo.server.fedml_aggregator import FedMLAggregator
    from fedml.ml.aggregator.agg_operator import FedMLAggOperator
    from fedml.simulation.mpi.fedavg.FedAVGAggregator import FedAVGAggregator
    from fedml.simulation.sp.fedavg.fedavg_api import FedAvgAPI

    return (
        Seam(FedMLAggOperator, "agg", ("args", "raw_grad_list"), _agg),
        Seam(FedAVGAggregator, "_fedavg_aggregation_", ("self", "model_list"), _fedavg),
        Seam(FedAvgAPI, "_aggregate", ("self", "w_locals"), _aggregate_in_one),
        *(
            seam
            for server in (FedMLAggregator, FedAVGAggregator)
            for seam in (
                Seam(server, "aggregate", ("self",), _aggregate),
                Seam(server, "set_global_model_params", ("self", "model_parameters"), _keep),
                Seam(server, "test_on_server_for_all_clients", ("self", "round_idx"), _test),
            )
        ),
    )


@around
def _agg(original: Function, args: Any, raw_grad_list: Any) -> Any:
    session = current()  # FedML's own defenses call this with arguments of their own
    if isinstance(session, ServerSession) and session.seals:
        with final():
            return session.add_up(raw_grad_list)
    return original(args, raw_grad_list)


@around
def _fedavg(original: Function, self: Any, model_list: Any) -> Any:
    session = begin(self.args)
    if isinstance(session, ServerSession) and session.seals:
        with final():
            return session.add_up(model_list)
    return original(self, model_list)


@around
def _aggregate(original: Function, self: FedMLAggregator) -> Any:
    session = begin(self.args)
    if not isinstance(session, ServerSession) or not session.seals:
        return original(self)
    with final():
        try:
            return original(self)
        except Exception as error:  # the job's own aggregator may raise anything
            session.refuse_aggregator(error)


@around
def _keep(original: Function, self: FedMLAggregator, model_parameters: Any) -> None:
    session = begin(self.args)
    if isinstance(session, ServerSession) and session.is_sealed:
        session.tell_sealed()
        return  # sealed words are not weights: the server's own model stays the first one
    original(self, _whole(session, model_parameters))


@around
def _test(original: Function, self: FedMLAggregator, round_idx: Any) -> None:
    session = begin(self.args)
    if isinstance(session, ServerSession) and session.is_sealed:
        session.tell_sealed()
        return
    original(self, round_idx)


@around
def _aggregate_in_one(original: Function, self: FedAvgAPI, w_locals: Any) -> Any:
    session = begin(self.args)
    average = session.add_up(w_locals) if isinstance(session, OneProcess) else None
    return _whole(session, original(self, w_locals)) if average is None else average


def _whole(session: Session | None, average: Any) -> Any:
    """An average with integers where the model has them, in a defended job."""
    if session is None or session.defense is None or not isinstance(average, Mapping):
        return average  # a job's own aggregator may return anything
    return session.with_integers(average)
