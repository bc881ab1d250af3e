"""Writes the REST surface as OpenAPI 3.1: `python proto/openapi.py DESCRIPTOR_SET OUT`.

Everything below /api comes from the descriptors: paths from the HTTP rules, schemas from the messages by the rules of
protobuf's JSON mapping, descriptions from the comments. The OpenAI surface, which no proto has, is written here.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, Final

from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorSet

PACKAGE: Final = ".hivemind.v1."
SCALARS: Final[dict[int, dict[str, Any]]] = {
    Field.TYPE_STRING: {"type": "string"},
    Field.TYPE_BOOL: {"type": "boolean"},
    Field.TYPE_INT32: {"type": "integer", "format": "int32"},
    Field.TYPE_INT64: {"type": ["string", "integer"], "format": "int64", "pattern": "^-?[0-9]{1,19}$"},
    Field.TYPE_DOUBLE: {"type": "number"},
    Field.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}
WELL_KNOWN: Final[dict[str, dict[str, Any]]] = {
    ".google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    ".google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$", "examples": ["1.5s"]},
    ".google.rpc.Status": {"$ref": "#/components/schemas/Status"},
}
STATUSES: Final = {
    "400": "A field is wrong or missing, or the body cannot be read.",
    "401": "The mesh asks for a key.",
    "404": "There is no such resource or path.",
    "408": "The request did not arrive in time.",
    "409": "The state is not the expected one.",
    "413": "The body is too large.",
    "429": "A budget, a rate or the capacity is exhausted.",
    "500": "Something unexpected.",
    "501": "The RPC is not built yet.",
    "502": "The model server failed.",
    "503": "A part of the mesh cannot be reached.",
    "504": "The deadline passed.",
}


class Contract:
    """The descriptors, with comments by path and messages by full name."""

    def __init__(self, files: FileDescriptorSet) -> None:
        self.files = [f for f in files.file if f.package == "hivemind.v1"]
        self.messages: dict[str, Any] = {}
        self.enums: dict[str, Any] = {}
        self.comments: dict[tuple[str, tuple[int, ...]], str] = {}
        for file in self.files:
            for location in file.source_code_info.location:
                text = " ".join(location.leading_comments.split())
                if text:
                    self.comments[(file.name, tuple(location.path))] = text
            for i, message in enumerate(file.message_type):
                self._collect(file.name, PACKAGE + message.name, message, (4, i))
            for i, enum in enumerate(file.enum_type):
                self.enums[PACKAGE + enum.name] = (file.name, enum, (5, i))

    def _collect(self, file: str, name: str, message: Any, path: tuple[int, ...]) -> None:
        self.messages[name] = (file, message, path)
        for i, nested in enumerate(message.nested_type):
            self._collect(file, f"{name}.{nested.name}", nested, (*path, 3, i))
        for i, enum in enumerate(message.enum_type):
            self.enums[f"{name}.{enum.name}"] = (file, enum, (*path, 4, i))

    def schemas(self) -> dict[str, Any]:
        """Every message that is not the entry of a map, and every enum."""
        found = {short(n): self.message_schema(*m) for n, m in self.messages.items() if not m[1].options.map_entry}
        found |= {short(n): self.enum_schema(*e) for n, e in self.enums.items()}
        return dict(sorted(found.items()))

    def message_schema(self, file: str, message: Any, path: tuple[int, ...]) -> dict[str, Any]:
        """A message as an object. Unknown fields are dropped by the mesh, so they are allowed."""
        properties = {
            f.name: self.described(self.field_schema(f), file, (*path, 2, i)) for i, f in enumerate(message.field)
        }
        schema: dict[str, Any] = {"type": "object", "properties": properties}
        needed = [f.name for f in message.field if required(f)]
        if needed:
            schema["required"] = needed
        return self.described(schema, file, path)

    def enum_schema(self, file: str, enum: Any, path: tuple[int, ...]) -> dict[str, Any]:
        """An enum as its names; the descriptions of the values stand in its own."""
        lines = [f"{v.name}: {self.comments.get((file, (*path, 2, i)), '')}" for i, v in enumerate(enum.value)]
        text = self.comments.get((file, path), "")
        return {"type": "string", "enum": [v.name for v in enum.value], "description": "\n".join([text, *lines])}

    def field_schema(self, field: Any) -> dict[str, Any]:
        """A field by protobuf's JSON mapping."""
        if field.label == Field.LABEL_REPEATED:
            entry = self.messages.get(field.type_name, (None, None, None))[1]
            if entry is not None and entry.options.map_entry:
                return {"type": "object", "additionalProperties": self.value_schema(entry.field[1])}
            items: dict[str, Any] = {"type": "array", "items": self.value_schema(field)}
            return items | ({"minItems": 1} if required(field) else {})
        schema = self.value_schema(field)
        return schema | {"minLength": 1} if required(field) and schema.get("type") == "string" else schema

    def value_schema(self, field: Any) -> dict[str, Any]:
        """One value of a field."""
        if field.type in (Field.TYPE_MESSAGE, Field.TYPE_ENUM):
            known = WELL_KNOWN.get(field.type_name)
            return dict(known) if known else {"$ref": f"#/components/schemas/{short(field.type_name)}"}
        return dict(SCALARS[field.type])

    def described(self, schema: dict[str, Any], file: str, path: tuple[int, ...]) -> dict[str, Any]:
        """The schema with its comment."""
        text = self.comments.get((file, path))
        return schema | ({"description": text} if text else {})

    def paths(self) -> dict[str, Any]:
        """Every RPC with an HTTP rule."""
        found: dict[str, Any] = {}
        for file in self.files:
            for s, service in enumerate(file.service):
                for m, method in enumerate(service.method):
                    rule = method.options.Extensions[annotations_pb2.http]
                    verb = rule.WhichOneof("pattern")
                    if verb:
                        text = self.comments.get((file.name, (6, s, 2, m)), "")
                        operation = self.operation(service.name, method, rule, text)
                        found.setdefault(getattr(rule, verb), {})[verb] = operation
        return found

    def operation(self, service: str, method: Any, rule: Any, text: str) -> dict[str, Any]:
        """One RPC as an operation."""
        template = getattr(rule, rule.WhichOneof("pattern"))
        request = self.messages[method.input_type][1]
        in_path = re.findall(r"{(\w+)}", template)
        operation: dict[str, Any] = {
            "operationId": f"{service}_{method.name}", "tags": [service], "summary": text,
            "parameters": [self.parameter(f, "path") for f in request.field if f.name in in_path],
            "responses": {"200": self.answer(method)} | errors("Status"),
        }  # fmt: skip
        if rule.body == "*":
            content = {"application/json": {"schema": self.body_schema(method.input_type, in_path)}}
            operation["requestBody"] = {
                "content": content,
                "required": any(required(f) for f in request.field if f.name not in in_path),
            }
        else:
            operation["parameters"] += [self.parameter(f, "query") for f in request.field if f.name not in in_path]
        return operation

    def body_schema(self, name: str, in_path: list[str]) -> dict[str, Any]:
        """The request message without the fields that stand in the path."""
        if not in_path:
            return {"$ref": f"#/components/schemas/{short(name)}"}
        schema = self.message_schema(*self.messages[name])
        schema["properties"] = {k: v for k, v in schema["properties"].items() if k not in in_path}
        schema["required"] = [k for k in schema.get("required", []) if k not in in_path]
        return schema if schema["required"] else {k: v for k, v in schema.items() if k != "required"}

    def parameter(self, field: Any, where: str) -> dict[str, Any]:
        """A field in the path or the query."""
        return {"name": field.name, "in": where, "required": where == "path", "schema": self.field_schema(field)}

    def answer(self, method: Any) -> dict[str, Any]:
        """What an RPC answers; a stream comes as one JSON object a line."""
        schema = {"$ref": f"#/components/schemas/{short(method.output_type)}"}
        if method.server_streaming:
            return {"description": "One JSON object a line.", "content": {"application/json": {}}}
        return {"description": "The answer.", "content": {"application/json": {"schema": schema}}}


def required(field: Any) -> bool:
    """Whether a field is REQUIRED."""
    return field_behavior_pb2.FieldBehavior.REQUIRED in field.options.Extensions[field_behavior_pb2.field_behavior]


def short(name: str) -> str:
    """The name of a message in the document."""
    return name.removeprefix(PACKAGE)


def errors(schema: str) -> dict[str, Any]:
    """The error answers that every operation may give."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {status: {"description": text, "content": content} for status, text in STATUSES.items()}


def openai_paths() -> dict[str, Any]:
    """The OpenAI-compatible surface and the health checks."""
    chat = {
        "operationId": "chat_completions", "tags": ["OpenAI"],
        "summary": "Answers a conversation as OpenAI's API does.",
        "requestBody": {"required": True, "content": {"application/json": {"schema": ref("ChatCompletionRequest")}}},
        "responses": {
            "200": {
                "description": "The answer, or its events where `stream` is true; the last one has `hivemind`.",
                "content": {
                    "application/json": {"schema": ref("ChatCompletion")},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            "422": {"description": "The model server refused the request.", "content": {"application/json": {}}},
            "415": {"description": "The model server refused the request.", "content": {"application/json": {}}},
        } | errors("OpenAIError"),
    }  # fmt: skip
    models = {
        "operationId": "list_models", "tags": ["OpenAI"], "summary": "Lists what can be asked for by name.",
        "responses": {"200": json_answer({"type": "object", "required": ["object", "data"]})} | errors("OpenAIError"),
    }  # fmt: skip
    health = {"responses": {"200": json_answer({"type": "object"})}, "summary": "Whether Envoy answers."}
    ready = {
        "responses": {"200": json_answer({"type": "object"})} | errors("Status"),
        "summary": "Whether a Router is ready.",
    }
    return {
        "/v1/chat/completions": {"post": chat},
        "/v1/models": {"get": models},
        "/healthz": {"get": health},
        "/readyz": {"get": ready},
    }


def openai_schemas() -> dict[str, Any]:
    """Only what the mesh itself looks at; everything else goes to the model server as it is."""
    message = {
        "type": "object", "required": ["role"], "properties": {"role": {"type": "string"}, "content": {}},
    }  # fmt: skip
    return {
        "ChatCompletionRequest": {
            "type": "object", "required": ["messages"],
            "properties": {
                "model": {"type": "string", "default": "auto"},
                "messages": {"type": "array", "minItems": 1, "items": message},
                "stream": {"type": "boolean"},
                "user": {"type": "string", "description": "The session."},
                "hivemind": {"type": "object", "properties": {"hints": ref("Hints"), "tenant": {"type": "string"}}},
            },
        },
        "ChatCompletion": {
            "type": "object", "required": ["choices", "hivemind"],
            "properties": {"choices": {"type": "array"}, "hivemind": {"type": "object"}},
        },
        "OpenAIError": {
            "type": "object", "required": ["error"],
            "properties": {
                "error": {"type": "object", "required": ["message", "type"]},
                "request_id": {"type": "string"},
            },
        },
        "Status": {
            "type": "object", "required": ["code", "message"],
            "properties": {
                "code": {"type": "integer"},
                "message": {"type": "string"},
                "details": {"type": "array", "items": {"type": "object"}},
            },
        },
    }  # fmt: skip


def json_answer(schema: dict[str, Any]) -> dict[str, Any]:
    """An answer in JSON."""
    return {"description": "The answer.", "content": {"application/json": {"schema": schema}}}


def ref(name: str) -> dict[str, Any]:
    """A reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def document(descriptor_set: bytes) -> dict[str, Any]:
    """The whole document."""
    contract = Contract(FileDescriptorSet.FromString(descriptor_set))
    return {
        "openapi": "3.1.0",
        "info": {"title": "hivemind", "version": "1", "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": "http://127.0.0.1:8080"}],
        "security": [{}, {"key": []}],
        "paths": openai_paths() | contract.paths(),
        "components": {
            "schemas": contract.schemas() | openai_schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(document(Path(sys.argv[1]).read_bytes()), indent=1) + "\n")
