"""Drives that fail again and again: each failure is noted, and at the third within a day the drive is set aside. Pure.

A drive that comes and goes costs a rebuild each time, and may be gone again before that has ended. Set aside, it serves what lies
on it and is given nothing more (geometry), until an operator trusts it again: `blkrecov drive trust`. That it has been quiet for
a while proves nothing, so time alone does not bring it back. A failure that the operator asked for is none.
"""

from typing import Final

import msgspec

from blkrecov.model import Document, Drive, DriveStatus, Member, MemberState

DAY: Final = 24 * 60 * 60
WINDOW: Final = DAY
LIMIT: Final = 3
BY_REQUEST: Final = "failed by blkrecov drive fail"
"""Drive.reason of a drive that the operator let fail."""

_GONE: Final = (DriveStatus.FAILED, DriveStatus.REMOVED)


def noted(before: Document, after: Document, now: int) -> Document:
    """`after`, with the failures that happened between the two: `before` is the document as it was when the world was looked at,
    `after` what that taught (drives away, members lost). Not for what an operation decides, such as a rebuild that is given up.

    A drive has failed when it was online and is not, or is and lost a member. However many members, that is one failure.
    `now` is in seconds since 1970; failures longer ago than the window are forgotten, of all drives.
    """
    known = {drive.uuid: drive for drive in before.drives}
    lost_before = {member.uuid for member in _lost(before)}
    lossy = {member.drive for member in _lost(after) if member.uuid not in lost_before}
    for drive in after.drives:
        earlier = known.get(drive.uuid)
        was_online = earlier is not None and earlier.online
        went = was_online and drive.status in _GONE and drive.reason != BY_REQUEST
        failures = tuple(failure for failure in drive.failures if abs(now - failure) < WINDOW)
        if went or (drive.online and drive.uuid in lossy):
            failures = tuple(sorted((*failures, now)))
        failing = drive.failing
        if not failing and len(failures) >= LIMIT:
            failing = f"failed or went away {len(failures)} times within {WINDOW // 3600} hours"
        if (failures, failing) != (drive.failures, drive.failing):
            after = after.with_drive(msgspec.structs.replace(drive, failures=failures, failing=failing))
    return after


def _lost(document: Document) -> tuple[Member, ...]:
    return tuple(member for lun in document.luns for member in lun.members if member.state is MemberState.FAILED)


def cleared(drive: Drive) -> Drive:
    """The drive with a clean slate."""
    return msgspec.structs.replace(drive, failures=(), failing="")
