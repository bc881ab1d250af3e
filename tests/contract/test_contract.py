"""The contract, checked by its own descriptors."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc_tools
import pytest
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

from hivemind.envoy.config import DESCRIPTOR_SET, SERVICE_OF, transcoded_services
from hivemind.v1 import (
    adapter_registry_pb2_grpc,
    arbiter_pb2_grpc,
    errors_pb2,
    governor_pb2_grpc,
    orchestrator_pb2_grpc,
    router_pb2_grpc,
    trainer_pb2_grpc,
)

ROOT = Path(__file__).resolve().parents[2]
FILES = [f for f in FileDescriptorSet.FromString(DESCRIPTOR_SET.read_bytes()).file if f.package == "hivemind.v1"]

RULES = {
    "RouterService.Complete": "post /api/complete",
    "RouterService.StreamComplete": "post /api/complete:stream",
    "RouterService.Decide": "post /api/route",
    "RouterService.ListModels": "get /api/models",
    "RouterService.GetRequest": "get /api/requests/{id}",
    "RouterService.ListRequests": "get /api/requests",
    "RouterService.SubmitFeedback": "post /api/feedback",
    "RouterService.NominateRequests": "",
    "RouterService.ListOpinions": "",
    "ArbiterService.Refine": "post /api/refine",
    "ArbiterService.SubmitCandidates": "",
    "ArbiterService.ListPlatinum": "get /api/platinum",
    "ArbiterService.GetPlatinum": "get /api/platinum/{id}",
    "ArbiterService.GetPlatinumStats": "get /api/platinum:stats",
    "ArbiterService.ForgetPlatinum": "post /api/platinum:forget",
    "ArbiterService.StreamPlatinum": "",
    "ArbiterService.WatchPlatinum": "",
    "ArbiterService.AckPlatinum": "post /api/platinum:ack",
    "AdapterRegistryService.ListAdapters": "get /api/adapters",
    "AdapterRegistryService.GetAdapter": "get /api/adapters/{id}",
    "AdapterRegistryService.RegisterAdapter": "post /api/adapters",
    "AdapterRegistryService.GetState": "get /api/adapters/state",
    "AdapterRegistryService.PreviewPromotion": "get /api/adapters/preview/{role}",
    "AdapterRegistryService.PromoteAdapter": "post /api/adapters/promote/{role}",
    "AdapterRegistryService.RollbackAdapter": "post /api/adapters/rollback/{role}",
    "AdapterRegistryService.SetTraffic": "post /api/adapters/traffic/{role}",
    "AdapterRegistryService.RecordOutcomes": "post /api/adapters/outcomes",
    "AdapterRegistryService.ListEvents": "get /api/adapters/events",
    "AdapterRegistryService.WatchState": "",
    "GovernorService.GetConfig": "get /api/config/governor",
    "GovernorService.SetConfig": "post /api/config/governor",
    "GovernorService.GetSpend": "get /api/spend",
    "GovernorService.ReserveBudget": "",
    "GovernorService.SettleBudget": "",
    "GovernorService.WatchConfig": "",
    "TrainerService.StartTraining": "post /api/train",
    "TrainerService.ListJobs": "get /api/train",
    "TrainerService.GetJob": "get /api/train/{id}",
    "TrainerService.CancelJob": "post /api/train/{id}:cancel",
    "TrainerService.WatchJob": "get /api/train/{id}:watch",
    "TrainerService.SubmitExamples": "post /api/train/examples",
    "TrainerService.GetLearner": "get /api/learner",
    "TrainerService.PauseLearner": "post /api/learner:pause",
    "TrainerService.ResumeLearner": "post /api/learner:resume",
    "TrainerService.DrainLearner": "post /api/learner:drain",
    "OrchestratorService.GetStatus": "get /api/orchestrator",
    "OrchestratorService.ListCycles": "get /api/orchestrator/cycles",
    "OrchestratorService.Pause": "post /api/orchestrator:pause",
    "OrchestratorService.Resume": "post /api/orchestrator:resume",
    "OrchestratorService.RunCycle": "post /api/orchestrator:cycle",
    "OrchestratorService.GetCognitiveMap": "get /api/cognitive-map",
    "OrchestratorService.WatchCognitiveMap": "",
}

BASES = {
    "router": router_pb2_grpc.RouterServiceServicer,
    "arbiter": arbiter_pb2_grpc.ArbiterServiceServicer,
    "adapter_registry": adapter_registry_pb2_grpc.AdapterRegistryServiceServicer,
    "governor": governor_pb2_grpc.GovernorServiceServicer,
    "trainer": trainer_pb2_grpc.TrainerServiceServicer,
    "orchestrator": orchestrator_pb2_grpc.OrchestratorServiceServicer,
}


def methods() -> Iterator[tuple[str, Any]]:
    for file in FILES:
        for service in file.service:
            for method in service.method:
                yield f"{service.name}.{method.name}", method


def messages() -> Iterator[tuple[str, Any]]:
    def below(prefix: str, message: Any) -> Iterator[tuple[str, Any]]:
        yield prefix, message
        for nested in message.nested_type:
            yield from below(f"{prefix}.{nested.name}", nested)

    for file in FILES:
        for message in file.message_type:
            yield from below(message.name, message)


def test_every_rpc_has_the_http_rule_of_the_design() -> None:
    found = {}
    for name, method in methods():
        rule = method.options.Extensions[annotations_pb2.http]
        verb = rule.WhichOneof("pattern")
        found[name] = f"{verb} {getattr(rule, verb)}" if verb else ""

    assert found == RULES


def test_the_servers_build_every_rpc() -> None:
    unbuilt = set()
    for server, service in SERVICE_OF.items():
        module = __import__(f"hivemind.servers.{server}.service", fromlist=[service])
        own = getattr(module, service)
        for name in (n for n in RULES if n.startswith(f"{service}.")):
            method = name.partition(".")[2]
            if getattr(own, method) is getattr(BASES[server], method):
                unbuilt.add(name)

    assert unbuilt == set()


def test_envoy_transcodes_every_service_of_the_contract() -> None:
    assert transcoded_services() == sorted(f"hivemind.v1.{s.name}" for f in FILES for s in f.service)
    assert sorted(SERVICE_OF.values()) == sorted(s.name for f in FILES for s in f.service)


def test_everything_has_a_comment() -> None:
    bare = []
    for file in FILES:
        commented = {tuple(loc.path) for loc in file.source_code_info.location if loc.leading_comments.strip()}
        bare += [(file.name, path) for path in declared(file) if path not in commented]

    assert bare == []


def declared(file: Any) -> Iterator[tuple[int, ...]]:
    """Paths of all that can carry a comment, as source_code_info numbers them."""
    for i, service in enumerate(file.service):
        yield (6, i)
        yield from ((6, i, 2, k) for k in range(len(service.method)))
    for i, enum in enumerate(file.enum_type):
        yield (5, i)
        yield from ((5, i, 2, k) for k in range(len(enum.value)))

    def below(message: Any, path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if message.options.map_entry:
            return
        yield path
        yield from ((*path, 2, k) for k in range(len(message.field)))
        for k, enum in enumerate(message.enum_type):
            yield (*path, 4, k)
            yield from ((*path, 4, k, 2, v) for v in range(len(enum.value)))
        for k, nested in enumerate(message.nested_type):
            yield from below(nested, (*path, 3, k))

    for i, message in enumerate(file.message_type):
        yield from below(message, (4, i))


def test_the_zero_of_an_enum_is_its_name_unspecified() -> None:
    enums = [e for f in FILES for e in f.enum_type] + [e for _, m in messages() for e in m.enum_type]

    for enum in enums:
        snake = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        assert enum.value[0].name == f"{snake}_UNSPECIFIED"
        assert not [v.name for v in enum.value[1:] if v.name.startswith(f"{snake}_")]


def test_money_is_int64_micros_and_names_are_snake_case() -> None:
    for name, message in messages():
        for field in message.field:
            assert re.fullmatch(r"[a-z][a-z0-9_]*", field.name), f"{name}.{field.name}"
            if field.name.endswith("_micros"):
                assert field.type == FieldDescriptorProto.TYPE_INT64, f"{name}.{field.name}"
            assert not field.name.endswith(("_usd", "_cost")), f"{name}.{field.name}"


def test_every_reason_that_servers_raise_is_in_the_contract() -> None:
    from hivemind.servers.common.errors import OUTSIDE

    assert OUTSIDE.keys() <= set(errors_pb2.ErrorReason.keys())


def test_go_package_is_set_and_the_same_everywhere() -> None:
    packages = {f.options.go_package for f in FILES}

    assert len(packages) == 1
    assert packages.pop().endswith(";hivemindv1")


def test_the_contract_builds_as_plain_protos(tmp_path: Path) -> None:
    """As grpc-gateway would take it: protoc, our files and Google's, nothing else."""
    import importlib.metadata

    google = importlib.metadata.distribution("googleapis-common-protos").locate_file("")
    builtin = Path(grpc_tools.__file__).parent / "_proto"
    shutil.copytree(ROOT / "proto" / "hivemind", tmp_path / "hivemind")
    protos = [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.proto")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"-I{google}", f"-I{builtin}", "-oout.binpb", *protos]

    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)

    built = FileDescriptorSet.FromString((tmp_path / "out.binpb").read_bytes())
    assert {f.name for f in built.file} == {f.name for f in FILES}


def test_a_breaking_change_is_noticed(tmp_path: Path) -> None:
    buf = Path(sys.executable).parent / "buf"
    subprocess.run([sys.executable, "proto/generate.py", "--protos-only"], cwd=ROOT, check=True, timeout=60)
    for name in ("proto", "third_party"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    file = tmp_path / "proto" / "hivemind" / "v1" / "common.proto"
    check = [str(buf), "breaking", "proto", "--against", "proto/baseline.binpb"]

    before = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    file.write_text(file.read_text().replace("  int32 total_tokens = 3;\n", ""))
    after = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)

    assert before.returncode == 0, before.stdout + before.stderr
    assert after.returncode != 0
    assert "total_tokens" in after.stdout


def test_the_package_list_equals_the_folders() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    servers = [p.name for p in (ROOT / "servers").iterdir() if (p / "__init__.py").exists()]
    servers += [f"{p.parent.parent.name}.{p.parent.name}" for p in (ROOT / "servers").glob("*/*/__init__.py")]
    training = [p.parent.name for p in (ROOT / "training").glob("*/__init__.py")]
    expected = {"hivemind.cli", "hivemind.envoy", "hivemind.servers", "hivemind.training", "hivemind.v1"}
    expected |= {f"hivemind.servers.{s}" for s in servers} | {f"hivemind.training.{t}" for t in training}

    assert set(setup["packages"]) == expected


@pytest.mark.parametrize("name", ["envoy", "datasets"])
def test_folders_that_share_a_name_with_a_package_are_none(name: str) -> None:
    assert not (ROOT / name / "__init__.py").exists()
