"""Where the online learner of a role has its things in Redis. The Trainer and its learner share them, nobody else.

trainer:learner:<role>           hash: paused ('1' or ''), reason, drain (how often that was asked), note (why there is
                                 no learner), status (JSON of `LearnerStatus`, by the learner)
trainer:learner:<role>:inbox     stream of lessons that are taken and not yet in the learner's own state: lesson (JSON),
                                 replaces (the id of one that is to be learnt no more, or empty)
trainer:learner:<role>:known     ids and questions by when they came: `i<id>`, `q<mark>`; the oldest go
trainer:learner:<role>:answers   question mark -> JSON of the lesson that stands: id, tenant, checked, claims,
                                 answer (its mark)
trainer:learner:<role>:trust     tenant -> JSON: how often what it taught without a check was `right` or `wrong` by
                                 checked answers of others
trainer:learner:<role>:distrusted set of the tenants that were wrong too often
trainer:learner:<role>:compared  pairs of ids of lessons that were compared, by when they were; the oldest go
trainer:learner:<role>:shares    tenant -> lessons of its own in the inbox
trainer:learner:<role>:lease     whose learner it is: the id of a Trainer, with a time to live
trainer:learner:<role>:live      there while the learner lives, or would start with the first example
trainer:learner:<role>:published sorted set: the adapters that it published and that may still challenge, by Unix time
"""

from dataclasses import dataclass, field
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one role."""

    role: str

    @property
    def head(self) -> str:
        """The hash."""
        return f"trainer:learner:{self.role}"

    @property
    def inbox(self) -> str:
        """The stream of lessons."""
        return f"{self.head}:inbox"

    @property
    def known(self) -> str:
        """What was seen before."""
        return f"{self.head}:known"

    @property
    def answers(self) -> str:
        """The answers by question."""
        return f"{self.head}:answers"

    @property
    def shares(self) -> str:
        """The lessons of each tenant in the inbox."""
        return f"{self.head}:shares"

    @property
    def trust(self) -> str:
        """How right each tenant was."""
        return f"{self.head}:trust"

    @property
    def distrusted(self) -> str:
        """The tenants whose unchecked lessons are not learnt."""
        return f"{self.head}:distrusted"

    @property
    def compared(self) -> str:
        """The lessons that were compared with each other."""
        return f"{self.head}:compared"

    @property
    def lease(self) -> str:
        """Whose learner it is."""
        return f"{self.head}:lease"

    @property
    def published(self) -> str:
        """What it published, by time."""
        return f"{self.head}:published"

    @property
    def live(self) -> str:
        """The learner's sign of life."""
        return f"{self.head}:live"


@dataclass(frozen=True, slots=True)
class LearnerStatus:
    """Where a learner stands, as it says itself. Times in Unix seconds, 0 for none; `unlearnt`: lessons that it has
    taken over and not learnt yet; `set_aside`: lessons that it does not learn, by reason."""

    state: str = "WAITING"
    note: str = ""
    unlearnt: int = 0
    learnt: int = 0
    held_out: int = 0
    batches: int = 0
    published: int = 0
    refused: int = 0
    steps: int = 0
    tokens: int = 0
    step_seconds: float = 0.0
    cpu_seconds: float = 0.0
    last_sequence: int = 0
    adapter_id: str = ""
    batch_closed: float = 0.0
    published_at: float = 0.0
    evaluation: dict[str, float] = field(default_factory=dict)
    set_aside: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """What `from_json` reads."""
        return orjson.dumps(self)

    @classmethod
    def from_json(cls, data: bytes) -> "LearnerStatus":
        """Fields that are unknown here are passed over: a newer learner may tell more."""
        fields: dict[str, Any] = orjson.loads(data)
        return cls(**{name: fields[name] for name in cls.__slots__ if name in fields})
