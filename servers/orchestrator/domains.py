"""What the mesh is good at, by domain: sums of evidence, and the belief that they add up to. Pure.

A piece of evidence is a score in [0,1] of one answer, made by one adapter (empty: the base model). It counts as that
much good and the rest bad, and halves with every half-life. A domain's belief is Beta(1 + good, 1 + bad); its
confidence is the value that the domain's true score exceeds with 95% by that belief. See docs/adr/0010.

Time is only ever that of the evidence: the map is as of its newest piece, so that the same evidence, in whatever order
and whenever it is read, gives the same map, up to rounding.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final

from hivemind.servers.orchestrator.beta import quantile

OLDER: Final = 0.1
"""What counts of other adapters than the champion weigh."""
HELD_OUT: Final = 10.0
"""As how many answers a champion's held-out score counts, in each domain that it has learnt from, where it does not
say of how many it is the mean."""
PRIOR: Final = 1.0
DOUBT: Final = 0.05
DOMAINS_MAX: Final = 200
BELIEFS_MAX: Final = 5_000
_VOICES_MAX: Final = 5_000
_FADED: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Evidence:
    """One answer's score in [0,1]. `when`: Unix seconds; `weight` 1: as much as a judged draft."""

    domain: str
    adapter: str
    score: float
    when: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Belief:
    """Good and bad, decayed to `when`, the time of the newest piece (Unix seconds)."""

    good: float = 0.0
    bad: float = 0.0
    when: float = 0.0

    def at(self, when: float, half_life_s: float) -> "Belief":
        """The same as of a time that is not earlier."""
        fade: float = 0.5 ** ((when - self.when) / half_life_s)
        return Belief(self.good * fade, self.bad * fade, when)

    def after(self, piece: Evidence, half_life_s: float) -> "Belief":
        """With one more piece; an older one counts what it would count by now."""
        now = max(self.when, piece.when)
        base = self.at(now, half_life_s)
        weight = piece.weight * 0.5 ** ((now - piece.when) / half_life_s)
        return Belief(base.good + weight * piece.score, base.bad + weight * (1 - piece.score), now)


@dataclass(slots=True)
class Tally:
    """Sums of evidence by domain and adapter, and how often each tenant was heard in a domain."""

    half_life_s: float
    beliefs: dict[tuple[str, str], Belief] = field(default_factory=dict)
    voices: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, piece: Evidence) -> None:
        """Counts a piece. Domains can be a client's words: beyond BELIEFS_MAX sums new ones are not begun."""
        key = (piece.domain, piece.adapter)
        if key not in self.beliefs and len(self.beliefs) >= BELIEFS_MAX:
            return
        self.beliefs[key] = self.beliefs.get(key, Belief(when=piece.when)).after(piece, self.half_life_s)

    def add_voice(self, piece: Evidence, tenant: str) -> None:
        """Counts a client's opinion: the k-th of one tenant in a domain weighs 1/k, so that nobody drowns others."""
        key = (piece.domain, tenant)
        count = self.voices.get(key, 0) + 1 if key in self.voices or len(self.voices) < _VOICES_MAX else _VOICES_MAX
        if count < _VOICES_MAX:
            self.voices[key] = count
        self.add(Evidence(piece.domain, piece.adapter, piece.score, piece.when, piece.weight / count))

    def forget_faded(self) -> int:
        """Drops sums that have faded to nothing as of the newest piece; how many."""
        now = max((b.when for b in self.beliefs.values()), default=0.0)
        faded = [
            key for key, b in self.beliefs.items()
            if (aged := b.at(now, self.half_life_s)).good + aged.bad < _FADED
        ]  # fmt: skip
        for key in faded:
            del self.beliefs[key]
        kept = {domain for domain, _ in self.beliefs}
        self.voices = {key: count for key, count in self.voices.items() if key[0] in kept}
        return len(faded)

    def to_json(self) -> dict[str, Any]:
        """For orjson."""
        return {
            "beliefs": [[*key, b.good, b.bad, b.when] for key, b in self.beliefs.items()],
            "voices": [[*key, count] for key, count in self.voices.items()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], half_life_s: float) -> "Tally":
        """The tally of what orjson made of one; KeyError, TypeError or ValueError if it was none."""
        beliefs = {
            (str(d), str(a)): Belief(float(good), float(bad), float(when)) for d, a, good, bad, when in data["beliefs"]
        }
        return cls(half_life_s, beliefs, {(str(d), str(t)): int(count) for d, t, count in data["voices"]})


@dataclass(frozen=True, slots=True)
class Champion:
    """An adapter that was made champion: its held-out score (None: it told none), when it was made, the domains of the
    examples that it has learnt from, and of how many answers of each domain the score is."""

    adapter: str
    when: float
    score: float | None = None
    domains: tuple[str, ...] = ()
    weight: float = HELD_OUT


@dataclass(frozen=True, slots=True)
class Skill:
    """How good the mesh is in a domain. `n`: evidence, decayed; `mean` and `confidence` in [0,1]."""

    name: str
    n: float
    mean: float
    confidence: float
    updated: float
    improved_by: tuple[str, ...] = ()


def skill_of(name: str, belief: Belief, updated: float, improved_by: tuple[str, ...] = ()) -> Skill:
    """The skill that a belief comes to."""
    a, b = PRIOR + belief.good, PRIOR + belief.bad
    return Skill(name, belief.good + belief.bad, a / (a + b), quantile(DOUBT, a, b), updated, improved_by)


def skills_of(tallies: Sequence[Tally], champions: Sequence[Champion], serving: Set[str]) -> tuple[Skill, ...]:
    """All domains by name, the DOMAINS_MAX with most evidence. `serving`: the champions in office, one a role; empty
    text: a base model."""
    found: dict[str, list[tuple[float, Belief]]] = {}
    for tally in tallies:
        for (domain, adapter), belief in tally.beliefs.items():
            found.setdefault(domain, []).append((1.0 if adapter in serving else OLDER, belief))
    for domain, belief in _held_out(champions, serving):
        found.setdefault(domain, []).append((1.0, belief))
    now = max((b.when for parts in found.values() for _, b in parts), default=0.0)
    half_life_s = tallies[0].half_life_s if tallies else 1.0
    skills = [_skill(name, parts, champions, now, half_life_s) for name, parts in found.items()]
    most = sorted((s for s in skills if s.n >= _FADED), key=lambda s: (-s.n, s.name))[:DOMAINS_MAX]
    return tuple(sorted(most, key=lambda s: s.name))


def _held_out(champions: Iterable[Champion], serving: Set[str]) -> Iterator[tuple[str, Belief]]:
    for champion in champions:
        if champion.adapter in serving and champion.score is not None:
            good = champion.weight * champion.score
            for domain in champion.domains:
                yield domain, Belief(good, champion.weight - good, champion.when)


def _skill(
    name: str, parts: Sequence[tuple[float, Belief]], champions: Sequence[Champion], now: float, half_life_s: float
) -> Skill:
    aged = [(weight, belief.at(now, half_life_s)) for weight, belief in parts]
    belief = Belief(sum(w * b.good for w, b in aged), sum(w * b.bad for w, b in aged), now)
    improved = tuple(c.adapter for c in champions if name in c.domains)
    return skill_of(name, belief, max(b.when for _, b in parts), improved)
