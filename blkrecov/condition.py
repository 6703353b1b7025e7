"""A LUN's condition: one word for all that is known of it, from which its status, its health and what Recover does follow. Pure.

    FAILED        more members are lost than the layout can do without
    OFFLINE       all is there, and nothing is loaded
    FILLING       its contents are being put on it
    INCOMPLETE    a restore has ended before its contents were whole
    DEGRADED      members are lost
    HELD          substitutes have their place, and their rebuild was cancelled or is paused
    REBUILDING    the kernel regenerates substitutes
    SYNCING       the kernel makes members equal: at the beginning, after a power cut, when it repairs
    SUSPECT       members may disagree, or do by a scrub's count
    FAILING       all is well but a drive, which is set aside; or a shadow copy's store fills up
    HEALTHY

The first that fits, in this order, is the LUN's: what is worst decides.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from blkrecov.dm.status import LegHealth, RaidStatus, SnapshotUsage, SyncAction
from blkrecov.errors import DeviceInUse
from blkrecov.model import Document, Health, Lun, LunStatus, MemberState
from blkrecov.observed import Live, Observed

_SYNCING: Final = (SyncAction.RESYNC, SyncAction.RECOVER, SyncAction.REPAIR)


# From here on a store is said to fill up.
FULL_PERCENT: Final = 80


class Condition(StrEnum):
    FAILED = "failed"
    OFFLINE = "offline"
    FILLING = "filling"
    INCOMPLETE = "incomplete"
    DEGRADED = "degraded"
    HELD = "held"
    REBUILDING = "rebuilding"
    SYNCING = "syncing"
    SUSPECT = "suspect"
    FAILING = "failing"
    HEALTHY = "healthy"


_SHOWN: Final[Mapping[Condition, tuple[LunStatus, Health]]] = {
    Condition.FAILED: (LunStatus.FAILED, Health.FAILED),
    Condition.OFFLINE: (LunStatus.OFFLINE, Health.UNKNOWN),
    Condition.FILLING: (LunStatus.NOT_READY, Health.REBUILDING),
    Condition.INCOMPLETE: (LunStatus.NOT_READY, Health.FAILED),
    Condition.DEGRADED: (LunStatus.ONLINE, Health.FAILED_REDUNDANCY),
    Condition.HELD: (LunStatus.ONLINE, Health.FAILED_REDUNDANCY),
    Condition.REBUILDING: (LunStatus.ONLINE, Health.REBUILDING),
    Condition.SYNCING: (LunStatus.ONLINE, Health.REBUILDING),
    Condition.SUSPECT: (LunStatus.ONLINE, Health.FAILING_REDUNDANCY),
    Condition.FAILING: (LunStatus.ONLINE, Health.FAILING_REDUNDANCY),
    Condition.HEALTHY: (LunStatus.ONLINE, Health.HEALTHY),
}


def condition(document: Document, observed: Observed, lun: Lun) -> Condition:
    if not observed.reachable(document, lun):
        return Condition.FAILED
    if not observed.loaded(lun) or (lun.differential and observed.store(lun) is None):
        return Condition.OFFLINE
    if not lun.ready:
        return Condition.FILLING if lun.restore is not None else Condition.INCOMPLETE
    if observed.lost(document, lun):
        return Condition.DEGRADED
    if lun.rebuilding:
        return Condition.HELD if lun.frozen else Condition.REBUILDING
    if is_syncing(observed.raid(lun)):
        return Condition.SYNCING
    if lun.suspect or lun.mismatches:
        return Condition.SUSPECT
    return Condition.FAILING if endangered(document, lun) or fills_up(observed, lun) else Condition.HEALTHY


def state_of(document: Document, observed: Observed, lun: Lun) -> tuple[LunStatus, Health]:
    """VDS_LUN_STATUS and VDS_HEALTH (windows-semantics 1.5)."""
    found = condition(document, observed, lun)
    status, health = _SHOWN[found]
    weak = endangered(document, lun)
    if found is Condition.FAILING and (not lun.layout.fault_tolerant or fills_up(observed, lun)):
        return status, Health.FAILING
    if found in (Condition.DEGRADED, Condition.HELD):
        unusable = observed.lost(document, lun) | lun.rebuilding
        if any(not lun.layout.survives(len(lun.members), unusable | {index}) for index in weak - unusable):
            return status, Health.FAILED_REDUNDANCY_FAILING
    return status, health


def suspended(lun: Lun, live: Live) -> DeviceInUse:
    """What there is to say of a LUN that somebody else has suspended."""
    return DeviceInUse(
        f"LUN {lun.name!r} is suspended, and not by the array: all that is asked of it waits",
        remedy=f"let it go on with: dmsetup resume {live.name}",
    )


def fills_up(observed: Observed, lun: Lun) -> bool:
    """Whether a shadow copy's store has little room left; when it overflows, the shadow copy is lost."""
    usage = observed.store(lun)
    return isinstance(usage, SnapshotUsage) and 100 * usage.allocated >= FULL_PERCENT * usage.total


def is_syncing(raid: RaidStatus | None) -> bool:
    """Whether the kernel is at work on the members, or about to be."""
    if raid is None:
        return False
    return LegHealth.OUT_OF_SYNC in raid.legs or (raid.action in _SYNCING and raid.done < raid.total)


def endangered(document: Document, lun: Lun) -> frozenset[int]:
    """The members in sync that are on drives which are set aside: they work, and may be gone soon."""
    return frozenset(
        index
        for index, member in enumerate(lun.members)
        if member.state is MemberState.IN_SYNC and document.drive_of(member.drive).failing
    )
