"""What is kept of an answer beyond its record, so that it can be learnt from: the conversation, and a nomination."""

from collections.abc import Callable

from hivemind.servers.router.conversation import Conversation, can_be_kept, turns_of
from hivemind.servers.router.nomination import Nominator
from hivemind.servers.router.outcomes import outcomes_of
from hivemind.servers.router.recorder import Entry
from hivemind.servers.router.skills import lessons_of
from hivemind.servers.router.work import Work


class Learning:
    """Decides what is kept. `consents` tells whether a tenant may be learnt from; `shadow` is shown each answer
    that may be, to have others answer the same in the background."""

    def __init__(
        self, nominator: Nominator, *, consents: Callable[[str], bool], shadow: Callable[[Work], None] = lambda _: None
    ) -> None:
        self._nominator, self._consents, self._shadow = nominator, consents, shadow

    def entry(self, work: Work) -> Entry:
        """The entry of a request that has ended. No text is kept where there is no answer or consent."""
        record, request = work.record, work.request
        expected = () if work.decision is None else work.decision.chosen.expected
        lessons, outcomes = lessons_of(record.judged, dict(expected)), outcomes_of(record)
        if record.outcome != "OK" or not can_be_kept(request, work.text) or not self._consents(request.tenant):
            return Entry(record, lessons=lessons, outcomes=outcomes)
        self._shadow(work)
        last = next((c for c in reversed(record.calls) if not c.error), None)
        kept = Conversation(
            record.request_id, record.tenant, record.domain, record.chosen_model, last.adapter if last else "",
            turns_of(request.messages), work.text, work.alternatives,
        )  # fmt: skip
        nomination = self._nominator.judge(record, work.agreement)
        record.nomination = nomination.cause if nomination is not None else ""
        return Entry(record, kept, nomination, lessons, outcomes)
