"""What every server does with a call, seen by a real client."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from hivemind.servers.common.context import current_call, is_id, new_request_id, sane_request_id
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.interceptors import CallPolicy, MeshInterceptor
from hivemind.servers.common.metrics import RpcMetrics
from hivemind.v1 import governor_pb2, governor_pb2_grpc, router_pb2, router_pb2_grpc


class Service(router_pb2_grpc.RouterServiceServicer):
    async def GetRequest(self, request: router_pb2.GetRequestRequest, context: Any) -> router_pb2.RequestRecord:
        if request.id == "boom":
            raise RuntimeError("a secret of the inside")
        if request.id == "late":
            await asyncio.sleep(30)
        if request.id == "limited":
            raise MeshError("RATE_LIMITED", "too many", retry_after_s=1.2)
        call = current_call.get()
        return router_pb2.RequestRecord(request_id=call.request_id, tenant=call.tenant, trace_id=call.trace_id)

    async def StreamComplete(
        self, request: router_pb2.CompleteRequest, context: Any
    ) -> AsyncIterator[router_pb2.StreamCompleteResponse]:
        yield router_pb2.StreamCompleteResponse(delta="one")
        raise MeshError("UPSTREAM_FAILED", "broke off")


class Watched(governor_pb2_grpc.GovernorServiceServicer):
    """Tells one configuration and then nothing for ever; `left` when its handler has ended."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def WatchConfig(
        self, request: governor_pb2.WatchConfigRequest, context: Any
    ) -> AsyncIterator[governor_pb2.WatchConfigResponse]:
        try:
            yield governor_pb2.WatchConfigResponse(router_replicas=2)
            await asyncio.Event().wait()
        finally:
            self.left.set()


class Rig:
    def __init__(self, policy: CallPolicy) -> None:
        self.registry = CollectorRegistry()
        self.interceptor = MeshInterceptor(policy, RpcMetrics(self.registry))
        self.server = grpc.aio.server(interceptors=[self.interceptor])
        self.watched = Watched()
        governor_pb2_grpc.add_GovernorServiceServicer_to_server(self.watched, self.server)  # type: ignore[abstract]
        router_pb2_grpc.add_RouterServiceServicer_to_server(Service(), self.server)  # type: ignore[abstract]
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    async def __aenter__(self) -> "Rig":
        await self.server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        self.stub = router_pb2_grpc.RouterServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(None)

    async def refused(self, call: Any) -> tuple[grpc.StatusCode, str, error_details_pb2.ErrorInfo, dict[str, Any]]:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call
        return told(error.value)


def told(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, error_details_pb2.ErrorInfo, dict[str, Any]]:
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return error.code(), error.details() or "", info, dict(error.trailing_metadata() or ())


def open_to_all(**changes: Any) -> CallPolicy:
    return CallPolicy(**{"api_key": None, "deadline_s": 5.0, "max_in_flight": 100, **changes})


def ask(rig: Rig, request_id: str = "x", **options: Any) -> Any:
    return rig.stub.GetRequest(router_pb2.GetRequestRequest(id=request_id), **options)


async def test_a_call_has_its_id_tenant_and_trace() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    metadata = (("x-request-id", "abcdefgh"), ("x-hivemind-tenant", "t1"), ("traceparent", trace))
    async with Rig(open_to_all()) as rig:
        answer = await ask(rig, metadata=metadata)

    assert (answer.request_id, answer.tenant, answer.trace_id) == ("abcdefgh", "t1", trace[3:35])


async def test_an_unexpected_error_is_internal_and_tells_nothing_of_the_inside() -> None:
    async with Rig(open_to_all()) as rig:
        code, text, info, _ = await rig.refused(ask(rig, "boom"))

    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in text
    assert info.reason == "INTERNAL_ERROR"
    assert info.metadata["request_id"]


async def test_a_domain_error_carries_reason_and_retry_after() -> None:
    async with Rig(open_to_all()) as rig:
        code, _, info, trailers = await rig.refused(ask(rig, "limited"))

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info.reason == "RATE_LIMITED"
    assert trailers["retry-after"] == "2"


async def test_an_rpc_that_is_not_built_says_so() -> None:
    async with Rig(open_to_all()) as rig:
        code, text, info, _ = await rig.refused(rig.stub.ListModels(router_pb2.ListModelsRequest()))

    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "hivemind.v1.RouterService/ListModels" in text
    assert info.reason == "NOT_BUILT"


async def test_a_missing_field_is_named() -> None:
    async with Rig(open_to_all()) as rig:
        code, text, info, _ = await rig.refused(ask(rig, ""))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert info.reason == "MISSING_FIELD"
    assert "id" in text


async def test_the_deadline_ends_a_call() -> None:
    async with Rig(open_to_all(deadline_s=0.05)) as rig:
        code, _, info, _ = await rig.refused(ask(rig, "late"))

    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert info.reason == "DEADLINE_PASSED"


async def test_calls_above_the_limit_are_shed() -> None:
    async with Rig(open_to_all(max_in_flight=1, deadline_s=1.0)) as rig:
        busy = asyncio.ensure_future(ask(rig, "late"))
        info = None
        while info is None or info.reason != "OVERLOADED":
            _, _, info, _ = await rig.refused(ask(rig, "boom"))
        busy.cancel()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [((), "KEY_MISSING"), ((("authorization", "Bearer wrong"),), "KEY_INVALID"), ((("x-api-key", "key"),), "")],
)
async def test_the_key_is_asked_for(metadata: Any, reason: str) -> None:
    async with Rig(open_to_all(api_key="key")) as rig:
        if reason:
            _, _, info, _ = await rig.refused(ask(rig, metadata=metadata))
            assert info.reason == reason
        else:
            assert await ask(rig, metadata=metadata)


async def test_a_stream_that_breaks_ends_with_its_status() -> None:
    async with Rig(open_to_all()) as rig:
        message = {"role": "user", "content": "x"}
        stream = rig.stub.StreamComplete(router_pb2.CompleteRequest(messages=[message]))  # type: ignore[list-item]
        seen = []
        with pytest.raises(grpc.aio.AioRpcError) as error:
            seen.extend([m.delta async for m in stream])
        _, _, info, trailers = told(error.value)

    assert info.reason == "UPSTREAM_FAILED"
    assert trailers["x-hivemind-http-status"] == "502"


async def test_calls_are_counted_by_method_and_code() -> None:
    async with Rig(open_to_all()) as rig:
        await ask(rig)
        await rig.refused(ask(rig, "boom"))
        labels = {"method": "/hivemind.v1.RouterService/GetRequest"}

        assert rig.registry.get_sample_value("hivemind_rpcs_total", {**labels, "code": "OK"}) == 1
        assert rig.registry.get_sample_value("hivemind_rpcs_total", {**labels, "code": "INTERNAL"}) == 1


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("t1", True),
        ("a.b-c_d", True),
        ("state", False),
        ("A", False),
        ("a b", False),
        ("", False),
        ("a\n", False),
        ("..", False),
    ],
)
def test_ids(name: str, good: bool) -> None:
    assert is_id(name) is good


def test_request_ids_sort_by_time_and_odd_ones_are_replaced() -> None:
    first, second = new_request_id(), new_request_id()

    assert first[14] == "7"
    assert first[:13] <= second[:13]
    assert sane_request_id("with space\r\nx: y") != "with space\r\nx: y"


async def test_a_watch_ends_when_the_server_drains() -> None:
    async with Rig(open_to_all()) as rig:
        watch = governor_pb2_grpc.GovernorServiceStub(rig.channel).WatchConfig(governor_pb2.WatchConfigRequest())
        first = await watch.read()
        rig.interceptor.end_watches()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await watch.read()
        await asyncio.wait_for(rig.watched.left.wait(), 5)

    code, _, info, _ = told(error.value)
    assert first.router_replicas == 2
    assert (code, info.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
