"""Refinement: from a draft to an example in the ledger. Nothing enters it without an accepted verdict or a person."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from hivemind.servers.arbiter.acceptance import Rule
from hivemind.servers.arbiter.candidate import Candidate, Draft, digest
from hivemind.servers.arbiter.example import Example, NewExample, Provenance
from hivemind.servers.arbiter.governance import Allowed
from hivemind.servers.arbiter.judgement import Accepted, Judgement
from hivemind.servers.arbiter.once import Once
from hivemind.servers.arbiter.paid_calls import PaidCalls, Purse
from hivemind.servers.arbiter.ports import PlatinumLedger
from hivemind.servers.common.catalogue import Catalogue
from hivemind.servers.common.errors import MeshError
from hivemind.servers.common.redaction import redact_all

CONTRIBUTED: Final = "LicenseRef-contributed"
"""The licence of a demonstration: a client of the mesh gave it to be learnt from."""
CONSENT: Final = "training"
"""The consent tag: the tenant has not refused that its requests are learnt from."""
RETRY_S: Final = 30.0


class Counting(Protocol):
    """Who is told how a refinement ended."""

    def ended(self, outcome: str) -> None:
        """Counts it: ORACLE, ARBITER, HUMAN, REPEATED, or the reason of the error."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What refinement works with. `catalogue` answers the one in force; `clock` is monotonic, in seconds."""

    catalogue: Callable[[], Catalogue]
    ledger: PlatinumLedger
    purse: Purse
    allowed: Callable[[], Awaitable[Allowed]]
    counting: Counting
    rule: Rule
    boundary: Callable[[], str]
    clock: Callable[[], float]


class Refinery:
    """Refines drafts, one at a time for an idempotency key."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._once: Once[Example] = Once()

    async def refine(self, draft: Draft, *, within_s: float = math.inf) -> Example:
        """The example as it was stored, within so many seconds.

        MeshError CONSENT_MISSING, REFINEMENT_DISABLED, REFINEMENT_UNAVAILABLE (nothing was accepted; the metadata's
        `cause` says whether that may pass), BUDGET_EXHAUSTED, or what the ledger raises.
        """
        if not draft.idempotency_key:
            return await self._counted(draft, within_s)
        key = (draft.tenant, draft.idempotency_key)
        return await self._once.do(key, draft.fingerprint, lambda: self._counted(draft, within_s))

    async def demonstrate(self, candidate: Candidate) -> bool:
        """Stores the right answer of a person. False: it was there. MeshError CONSENT_MISSING or the ledger's."""
        setting = self._setting
        given = candidate.draft
        self._check_consent(given.tenant)
        key = digest(given.request_id, given.messages, candidate.demonstration)
        draft = await asyncio.to_thread(replace(given, idempotency_key=f"demo-{key}", fingerprint=key).redacted)
        if setting.ledger.repeated(draft.tenant, draft.idempotency_key, draft.fingerprint) is not None:
            return False
        answer, count = draft.redacted_answer(candidate.demonstration)
        decision = "A person gave this answer; no model was asked."
        provenance = Provenance(
            draft_model=draft.draft_model, draft_adapter=draft.draft_adapter, score=1.0, decisions=(decision,),
            redactions=draft.redactions + count,
        )  # fmt: skip
        await setting.ledger.append(_example(draft, answer, provenance, "HUMAN", confidence=1.0, licence=CONTRIBUTED))
        setting.counting.ended("HUMAN")
        return True

    def consents(self, tenant: str) -> bool:
        """Whether the tenant's requests may be learnt from."""
        return tenant not in self._setting.catalogue().tenants_without_training

    async def _counted(self, draft: Draft, within_s: float) -> Example:
        setting = self._setting
        try:
            known = self._known(draft)
            example = known or await self._refined(draft, within_s)
        except MeshError as error:
            setting.counting.ended(error.reason)
            raise
        setting.counting.ended("REPEATED" if known is not None else example.new.refined_by)
        return example

    def _known(self, draft: Draft) -> Example | None:
        if not draft.idempotency_key:
            return None
        return self._setting.ledger.repeated(draft.tenant, draft.idempotency_key, draft.fingerprint)

    async def _refined(self, draft: Draft, within_s: float) -> Example:
        setting, began = self._setting, self._setting.clock()
        self._check_consent(draft.tenant)
        allowed = await setting.allowed()
        allowed.check()
        clean = await asyncio.to_thread(draft.redacted)
        calls = PaidCalls(setting.purse, clean.tenant, began + within_s)
        judgement = Judgement(clean, setting.catalogue(), calls, setting.rule, setting.boundary)
        accepted = await judgement.decide(oracle=allowed.oracle, forced=allowed.forced)
        if accepted is None:
            raise _unavailable(judgement)
        new = await asyncio.to_thread(_judged, clean, judgement, accepted, setting.clock() - began)
        return await setting.ledger.append(new)

    def _check_consent(self, tenant: str) -> None:
        if not self.consents(tenant):
            raise MeshError(
                "CONSENT_MISSING",
                f"the tenant {tenant} does not consent to training ([tenants.{tenant}] training = false)",
                metadata={"tenant": tenant},
            )


def _judged(draft: Draft, judgement: Judgement, accepted: Accepted, latency_s: float) -> NewExample:
    verdict, calls = accepted.verdict, judgement.calls
    answer, found = draft.redacted_answer(verdict.answer)
    (changes, safety), more = redact_all((verdict.changes, verdict.safety))
    guesses = [f"{alias} told no usage, so its cost is an estimate." for alias in sorted(calls.estimated)]
    provenance = Provenance(
        draft_model=draft.draft_model,
        draft_adapter=draft.draft_adapter,
        oracle_model=judgement.named.get("ORACLE", ""),
        arbiter_model=judgement.named.get("ARBITER", ""),
        prompt_template_sha256=accepted.template_sha256,
        score=verdict.score,
        draft_score=verdict.draft_score,
        decisions=(*judgement.decisions, *guesses),
        changes=changes,
        cost_micros=calls.cost_micros,
        latency_s=latency_s,
        safety=safety,
        redactions=draft.redactions + found + more,
    )
    return _example(
        draft, answer, provenance, accepted.by, confidence=verdict.confidence, licence=accepted.model.licence
    )


def _example(
    draft: Draft, answer: str, provenance: Provenance, refined_by: str, *, confidence: float, licence: str
) -> NewExample:
    return NewExample(
        messages=draft.messages,
        draft=draft.draft,
        final_platinum_answer=answer,
        refined_by=refined_by,
        provenance=provenance,
        tenant=draft.tenant,
        domain=draft.domain,
        confidence=confidence,
        licence=licence,
        consent=CONSENT,
        origin=draft.origin,
        request_id=draft.request_id,
        idempotency_key=draft.idempotency_key,
        fingerprint=draft.fingerprint,
    )


def _unavailable(judgement: Judgement) -> MeshError:
    """`cause`: PASSING if it may work later, else NOT_ACCEPTED."""
    cause = "NOT_ACCEPTED" if judgement.final and not judgement.passing else "PASSING"
    return MeshError(
        "REFINEMENT_UNAVAILABLE",
        f"no answer was accepted, and nothing was stored. {' '.join(judgement.decisions)}",
        metadata={"cause": cause, "cost_micros": str(judgement.calls.cost_micros)},
        retry_after_s=RETRY_S if cause == "PASSING" else None,
    )
