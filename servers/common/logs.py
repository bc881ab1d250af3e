"""Structured logs: one JSON object a line on stdout."""

import logging
import sys
from typing import Any

import orjson
import structlog

from hivemind.servers.common.context import current_call


def configure_logs(server: str, level: str) -> None:
    """Sets structlog up for this process. `level` is a name of the logging module (DEBUG, INFO, ...)."""

    def add_call(_logger: Any, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        call = current_call.get(None)
        if call is not None:
            event.setdefault("request_id", call.request_id)
        event["server"] = server
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            add_call,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=orjson.dumps, default=str),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
