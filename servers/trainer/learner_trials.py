"""Which versions of an online learner challenge on. Pure."""

from collections.abc import Collection, Sequence

from hivemind.servers.trainer.learner import Version


def over(
    versions: Sequence[Version], champion: str, challengers: Collection[str], *, now: float, trial_s: float
) -> list[str]:
    """Those of the versions, eldest first, that take part no longer.

    The eldest challenger that was published less than `trial_s` seconds ago goes on, since evidence takes longer to
    come than the next version does, and the newest version, which has learnt the most. Those between them end. A
    champion needs no trial any more, nor do those before it, which it learnt from.
    """
    names = [v.adapter_id for v in versions]
    after = versions[names.index(champion) + 1 :] if champion in names else versions
    tried = (v.adapter_id for v in after if v.adapter_id in challengers and now - v.published < trial_s)
    going_on = {next(tried, ""), *(v.adapter_id for v in after[-1:])}
    return [name for name in names if name not in going_on]
