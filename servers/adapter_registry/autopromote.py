"""When a champion may change without a person: a policy per role, off by default. Pure."""

from dataclasses import dataclass

from hivemind.servers.adapter_registry.roles import Role
from hivemind.servers.adapter_registry.verdict import Verdict

_DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class AutopromotePolicy:
    """For which roles it is on, the time between two promotions, and how many there may be in 24 hours."""

    roles: frozenset[str] = frozenset()
    cooldown_s: float = 6 * 3600.0
    max_per_day: int = 2

    @property
    def name(self) -> str:
        """Names this policy."""
        return f"{','.join(sorted(self.roles))};{self.cooldown_s};{self.max_per_day}"


def refusal(policy: AutopromotePolicy, role: Role, verdict: Verdict, *, now: float) -> str:
    """Why a challenger with this verdict is not promoted now; empty: it is."""
    if role.name not in policy.roles:
        return "autopromote is off for this role"
    if verdict != "PROMOTE":
        return f"the verdict is {verdict}"
    today = [t for t in role.promotions if now - t < _DAY_S]
    if len(today) >= policy.max_per_day:
        return f"{len(today)} promotions in 24 hours are enough"
    if today and now - today[-1] < policy.cooldown_s:
        return f"the last promotion was {now - today[-1]:.0f} s ago, and {policy.cooldown_s:.0f} s must pass"
    return ""
