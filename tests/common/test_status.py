"""What a peer's error becomes."""

import grpc
from grpc.aio import AioRpcError, Metadata

from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.status import grpc_code, to_status, told_by_peer, trailers


def test_an_error_of_a_peer_is_what_the_peer_meant() -> None:
    meant = MeshError("BUDGET_EXHAUSTED", "nothing left", metadata={"tenant": "t1"}, retry_after_s=7.5)
    status = to_status(meant, "request-1")
    error = AioRpcError(grpc_code(meant), Metadata(), Metadata(*trailers(meant, status)), meant.message)

    told = told_by_peer(error, "the Governor")

    assert (told.reason, told.message, told.retry_after_s) == ("BUDGET_EXHAUSTED", "nothing left", 7.5)
    assert told.metadata == {"tenant": "t1"}


def test_a_peer_that_does_not_answer_is_named() -> None:
    error = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), "connection refused")

    told = told_by_peer(error, "the Arbiter")

    assert told.reason == "PEER_UNAVAILABLE"
    assert "the Arbiter does not answer (UNAVAILABLE)" in told.message
