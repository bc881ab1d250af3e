"""A turn of a conversation, as Router, Arbiter and the lorax client hand it on."""

from dataclasses import dataclass


@dataclass(frozen=True)  # no slots: orjson writes it in half the time
class Turn:
    """One turn. `name` tells several of one role apart."""

    role: str
    content: str
    name: str = ""
