"""Between values and the messages that every service uses: times, durations, page sizes."""

from typing import Final

from google.protobuf import duration_pb2, timestamp_pb2

from hivemind.servers.common.errors import invalid_field

PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 500


def timestamp(seconds: float) -> timestamp_pb2.Timestamp:
    """Unix seconds, to the microsecond."""
    whole, micros = divmod(round(seconds * 1e6), 1_000_000)
    return timestamp_pb2.Timestamp(seconds=whole, nanos=micros * 1000)


def duration(seconds: float) -> duration_pb2.Duration:
    """Seconds that are not negative, to the microsecond."""
    whole, micros = divmod(round(max(0.0, seconds) * 1e6), 1_000_000)
    return duration_pb2.Duration(seconds=whole, nanos=micros * 1000)


def page_size(asked: int) -> int:
    """The page size to use, by AIP-158: 0 is the default, too large is the largest, negative is an error."""
    if asked < 0:
        raise invalid_field("page_size", "must not be negative")
    return min(asked or PAGE_DEFAULT, PAGE_MAX)
