"""Domain errors as google.rpc.Status with ErrorInfo, for gRPC and for the error messages of streams; and back."""

import math
from collections.abc import Awaitable
from typing import Any, TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from hivemind.servers.common.errors import DOMAIN, OUTSIDE, MeshError

T = TypeVar("T")

STATUS_DETAILS_KEY = "grpc-status-details-bin"
HTTP_STATUS_KEY = "x-hivemind-http-status"
_TRANSCODED = {  # what Envoy's transcoder makes of a code; any other HTTP status has to be asked for
    "INVALID_ARGUMENT": 400,
    "NOT_FOUND": 404,
    "UNIMPLEMENTED": 501,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
    "FAILED_PRECONDITION": 400,
    "INTERNAL": 500,
}


def to_status(error: MeshError, request_id: str) -> status_pb2.Status:
    """The error as a Status: ErrorInfo first, then BadRequest and RetryInfo where they apply."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=dict(error.metadata))
    info.metadata["request_id"] = request_id
    details: list[any_pb2.Any] = [_packed(info)]
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for violation in error.violations:
            bad.field_violations.add(field=violation.field, description=violation.description)
        details.append(_packed(bad))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(math.ceil(error.retry_after_s * 1000))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=code_pb2.Code.Value(error.outside.code), message=error.message, details=details)


def trailers(error: MeshError, status: status_pb2.Status) -> tuple[tuple[str, str | bytes], ...]:
    """The trailing metadata that carries the status and, where they apply, `retry-after` and the HTTP status."""
    pairs: list[tuple[str, str | bytes]] = [(STATUS_DETAILS_KEY, status.SerializeToString())]
    if error.retry_after_s is not None:
        pairs.append(("retry-after", str(max(1, math.ceil(error.retry_after_s)))))
    if _TRANSCODED[error.outside.code] != error.outside.http:
        pairs.append((HTTP_STATUS_KEY, str(error.outside.http)))
    return tuple(pairs)


def grpc_code(error: MeshError) -> grpc.StatusCode:
    """The status code as grpc wants it."""
    return grpc.StatusCode[error.outside.code]


def told_by_peer(error: grpc.aio.AioRpcError, peer: str) -> MeshError:
    """The error of a server of the mesh as it meant it, PEER_UNAVAILABLE if it did not answer. `peer`: its name."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        status = None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details if status is not None else ():
        detail.Unpack(info)
        detail.Unpack(retry)
    if info.reason in OUTSIDE:
        wait = retry.retry_delay.ToMilliseconds() / 1000 or None
        metadata = {k: v for k, v in info.metadata.items() if k != "request_id"}
        return MeshError(info.reason, error.details() or info.reason, metadata=metadata, retry_after_s=wait)
    return MeshError("PEER_UNAVAILABLE", f"{peer} does not answer ({error.code().name})", retry_after_s=1.0)


async def asked(call: Awaitable[T], peer: str) -> T:
    """The answer of a server of the mesh; MeshError as by told_by_peer."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise told_by_peer(error, peer) from error


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
