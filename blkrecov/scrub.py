"""Scrub: the kernel reads all members of a LUN and counts where they disagree; with repair, it puts that right. Pure.

Which copy is right the kernel cannot know: raid1 and raid10 take the first, parity is computed anew from the data. So a repair
happens only when asked for.
"""

import msgspec

from blkrecov import tasks
from blkrecov.dm.status import RaidStatus
from blkrecov.errors import AnotherCallInProgress, InvalidOperation, ObjectFailed
from blkrecov.model import Document, Lun, Phase, Task, TaskKind
from blkrecov.proposal import Proposal, plex_message
from blkrecov.provision import refuse_busy


def propose(document: Document, lun: Lun, raid: RaidStatus | None, *, repair: bool) -> tuple[Proposal, Task]:
    """Raises: InvalidOperation without redundancy, ObjectFailed while members are lost, AnotherCallInProgress."""
    if not lun.layout.fault_tolerant:
        raise InvalidOperation(
            f"LUN {lun.name!r} is {lun.layout.value}: there is nothing to compare its data with",
            remedy="scrub LUNs with redundancy",
        )
    if lun.lost or raid is None or raid.lost:
        raise ObjectFailed(
            f"LUN {lun.name!r} is not whole, and only whole LUNs can be compared with themselves",
            remedy=f"run first: blkrecov recover {lun.name}",
        )
    refuse_busy(document, lun)
    if not raid.in_sync:
        raise AnotherCallInProgress(
            f"LUN {lun.name!r} is being synchronised", remedy=f"wait for that with: blkrecov recover {lun.name}"
        )
    # A repair is followed by a check: "repaired" is not "verified".
    phases = (Phase.REPAIR, Phase.CHECK) if repair else (Phase.CHECK,)
    task = Task(id=document.next_task, kind=TaskKind.SCRUB, lun=lun.uuid, objects=(lun.name,), phases=phases)
    task = tasks.started(task)
    word = "repair" if repair else "check"
    proposal = Proposal(
        document=document.with_task(task),
        why=f"scrub of LUN {lun.name}",
        then=(plex_message(document, lun, word),),
        lun=lun.uuid,
    )
    return proposal, task


def counted(lun: Lun, task: Task, raid: RaidStatus) -> Lun:
    """The LUN after a check; the kernel shows the count only right after one, and begins anew after a pause."""
    return msgspec.structs.replace(lun, mismatches=task.mismatches + int(raid.mismatch))


def repaired(lun: Lun) -> Lun:
    """The LUN after a repair."""
    return msgspec.structs.replace(lun, mismatches=None, suspect=False, initialised=True)
