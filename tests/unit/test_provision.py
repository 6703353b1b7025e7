"""LUNs made, grown, deleted; drives failed and removed: what is wanted then, and what is refused."""

import msgspec
import pytest

from blkrecov import provision, shadows, tasks
from blkrecov.errors import (
    AnotherCallInProgress,
    DeviceInUse,
    InvalidArgument,
    InvalidOperation,
    NotSupported,
    ObjectDeleted,
    ObjectExists,
    ObjectFailed,
    ObjectNotFound,
)
from blkrecov.geometry import Request
from blkrecov.model import (
    UNIT,
    Document,
    Drive,
    DriveStatus,
    Extent,
    Layout,
    Lun,
    MemberState,
    Pair,
    Schedule,
    Task,
    TaskKind,
)
from blkrecov.steps import ZeroExtent
from blkrecov.units import MIB, Bytes
from tests.unit.arrays import (
    DATA_START,
    FAULT_TOLERANT,
    array,
    drives,
    uuids,
    with_lost,
    with_lun,
    with_plex,
    with_shadow,
    with_states,
)

TIB_UNITS = 1024 * 1024


def busy(document: Document, lun: Lun) -> Document:
    task = Task(id=document.next_task, kind=TaskKind.SCRUB, lun=lun.uuid, objects=(lun.name,))
    return document.with_task(tasks.started(task))


def test_a_new_lun_has_its_metadata_zeroed_first() -> None:
    """What an earlier LUN left there would pass for this one's superblock. Data is left as it is."""
    request = Request(name="v", layout=Layout.RAID1, size=Bytes(64 * MIB))
    proposal = provision.create(drives(2), request, uuids())
    assert proposal.prepare == (
        ZeroExtent("/dev/mapper/blkrecov-lab-drive-d0", Extent(DATA_START, UNIT)),
        ZeroExtent("/dev/mapper/blkrecov-lab-drive-d1", Extent(DATA_START, UNIT)),
    )
    assert proposal.lun == proposal.document.lun("v").uuid


@pytest.mark.parametrize("layout", Layout)
def test_preparing_touches_free_space_only(layout: Layout) -> None:
    """A crash before the document is written must leave nothing changed."""
    document, _ = with_lun(drives(6), layout, "old")
    request = Request(name="new", layout=layout, size=Bytes(20 * MIB))
    proposal = provision.create(document, request, uuids(0x9000))
    for step in proposal.prepare:
        assert isinstance(step, ZeroExtent)
        owner = document.drive(step.port.rpartition("-")[2])
        taken = [
            piece
            for lun in document.luns
            for member in lun.members
            for piece in (*member.meta, *member.data)
            if member.drive == owner.uuid
        ]
        assert all(step.extent.end <= piece.start or step.extent.start >= piece.end for piece in taken)


def test_a_name_that_is_taken_is_refused() -> None:
    """Before anything is placed."""
    document, _ = with_lun(drives(2), Layout.RAID1)
    with pytest.raises(ObjectExists, match="a LUN 'v' already"):
        with_lun(document, Layout.RAID1, "v")


@pytest.mark.parametrize("name", ["", "a b", "-v", "drive", "x" * 49])
def test_a_bad_name_is_refused(name: str) -> None:
    """It would be no device-mapper name, or another object's."""
    with pytest.raises(InvalidArgument):
        with_lun(drives(2), Layout.RAID1, name)


def test_a_lun_grows_in_the_document() -> None:
    """The devices follow from it."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    proposal = provision.extend(document, lun, Bytes(100 * MIB), uuids(0x9000))
    assert proposal.document.lun("v").size == 100 * UNIT
    assert proposal.prepare == ()


@pytest.mark.parametrize(
    ("state", "error"), [(MemberState.FAILED, ObjectFailed), (MemberState.REBUILDING, AnotherCallInProgress)]
)
def test_a_lun_that_is_not_whole_does_not_grow(state: MemberState, error: type[Exception]) -> None:
    """dm-raid would grow it with a bitmap that does not cover the new part."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    lun = with_states(lun, state)
    with pytest.raises(error):
        provision.extend(document.with_lun(lun), lun, Bytes(100 * MIB), uuids(0x9000))


def test_a_lun_does_not_outgrow_its_bitmap() -> None:
    """Its region size was chosen when it was made; 2^21 regions of 1 MiB are 2 TiB."""
    document, lun = with_lun(drives(2, 4 * TIB_UNITS), Layout.RAID1)
    with pytest.raises(NotSupported, match="bitmap"):
        provision.extend(document, lun, Bytes(2 * TIB_UNITS * MIB + MIB), uuids(0x9000))
    grown = provision.extend(document, lun, Bytes(2 * TIB_UNITS * MIB), uuids(0x9000))
    assert grown.document.lun("v").region == 2048


def test_a_deleted_lun_leaves_a_tombstone() -> None:
    """ "Deleted" is another answer than "never heard of"."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    after = provision.delete(document, lun, ()).document
    with pytest.raises(ObjectDeleted):
        after.lun("v")


def test_a_lun_in_use_is_not_deleted() -> None:
    """The message names who holds it."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    with pytest.raises(DeviceInUse, match="in use by /mnt, swap"):
        provision.delete(document, lun, ("/mnt", "swap"))


def test_a_lun_with_a_task_is_left_alone() -> None:
    """One operation at a time; the remedy names the task."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    document = busy(document, lun)
    with pytest.raises(AnotherCallInProgress) as refused:
        provision.delete(document, lun, ())
    assert refused.value.remedy == "wait for it with: blkrecov task wait 1"
    with pytest.raises(AnotherCallInProgress):
        provision.extend(document, lun, Bytes(100 * MIB), uuids(0x9000))


def test_another_lun_s_task_is_nobody_else_s_business() -> None:
    """Tasks are per LUN."""
    document, lun = with_lun(drives(4), Layout.RAID1)
    document, other = with_lun(document, Layout.RAID1, "w")
    assert provision.delete(busy(document, other), lun, ()).document.luns == (other,)


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_failed_drive_takes_its_members_along(layout: Layout) -> None:
    """It must be on the other drives before the LUN goes on without them."""
    document, lun = with_lun(drives(6), layout)
    name = document.drive_of(lun.members[1].drive).name
    after = provision.fail_drive(document, name).document
    assert after.drive(name).status is DriveStatus.FAILED
    assert after.drive(name).reason
    assert after.lun("v").lost == {1}


def test_a_failed_drive_takes_members_of_several_luns() -> None:
    """All that lie on it, and none that do not."""
    document, _ = with_lun(drives(3), Layout.RAID1, "v", on=("d0", "d1"))
    document, _ = with_lun(document, Layout.RAID1, "w", on=("d2", "d0"))
    document, _ = with_lun(document, Layout.RAID1, "x", on=("d1", "d2"))
    after = provision.fail_drive(document, "d0").document
    assert [after.lun(name).lost for name in "vwx"] == [{0}, {1}, frozenset()]


def test_a_drive_fails_once() -> None:
    """The second time is a mistake of name."""
    document = provision.fail_drive(drives(2), "d0").document
    with pytest.raises(InvalidOperation, match="'d0' is failed already"):
        provision.fail_drive(document, "d0")


def test_a_drive_that_serves_is_not_removed() -> None:
    """The message names the LUNs."""
    document, _ = with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))
    with pytest.raises(DeviceInUse, match="'d1' serves LUN 'v'"):
        provision.remove_drive(document, "d1")
    after = provision.remove_drive(document, "d2").document
    assert [drive.name for drive in after.drives] == ["d0", "d1"]


def test_a_drive_that_is_not_there_is_not_found() -> None:
    """Whatever is asked of it."""
    for attempt in (provision.remove_drive, provision.fail_drive):
        with pytest.raises(ObjectNotFound, match="no drive 'd9'"):
            attempt(drives(1), "d9")


@pytest.mark.parametrize("spare", [True, False])
def test_a_drive_becomes_a_hot_spare_and_none_again(spare: bool) -> None:
    """Nothing but the word changes."""
    before: Drive = msgspec.structs.replace(drives(1).drives[0], hot_spare=not spare)
    after = provision.set_hot_spare(array(before), "d0", spare).document.drives[0]
    assert after == msgspec.structs.replace(before, hot_spare=spare)


def test_a_drive_that_was_set_aside_is_trusted_again() -> None:
    """What it did is forgotten, and nothing else of it."""
    plain = drives(1)
    aside = msgspec.structs.replace(plain.drives[0], failures=(1, 2, 3), failing="failed 3 times")
    proposal = provision.trust(array(aside), "d0")
    assert proposal.document == plain
    assert proposal.why == "drive d0 is trusted again"


# Shadow copies.


def test_an_origin_is_not_deleted_before_its_shadow_copies() -> None:
    """They show its contents. Those that have lost theirs, and plexes, do not."""
    document, lun = with_lun(drives(6), Layout.RAID1)
    for name in ("s", "t"):
        document, _ = with_shadow(document, name)
    with pytest.raises(InvalidOperation, match="'v' has shadow copies that show its contents: s, t"):
        provision.delete(document, lun, ())
    document = with_lost(with_lost(document, "s"), "t")
    document, _ = with_plex(document)
    assert [each.name for each in provision.delete(document, lun, ()).document.luns] == ["s", "t", "p"]


def test_a_shadow_copy_is_deleted_like_any_lun() -> None:
    """Not while somebody has it open."""
    document, _ = with_lun(drives(6), Layout.RAID1)
    document, shadow = with_shadow(document)
    with pytest.raises(DeviceInUse):
        provision.delete(document, shadow, ("ext4 on /mnt",))
    assert [lun.name for lun in provision.delete(document, shadow, ()).document.luns] == ["v"]


def test_what_is_restored_from_is_as_busy_as_what_is_restored() -> None:
    """One task, on all of its LUNs."""
    document, lun = with_lun(drives(6), Layout.RAID1)
    document, source = with_plex(document)
    document, other = with_plex(document, "q")
    task = Task(
        id=1, kind=TaskKind.RESYNC, lun=lun.uuid, objects=("p:v",), pairs=(Pair(source=source.uuid, target=lun.uuid),)
    )
    document = document.with_task(tasks.started(task))
    for each in (lun, source):
        with pytest.raises(AnotherCallInProgress):
            provision.delete(document, each, ())
    assert other not in provision.delete(document, other, ()).document.luns


def test_a_drive_with_a_log_is_not_removed() -> None:
    """Nothing else is on it."""
    document, _ = with_lun(drives(3, units=80), Layout.RAID1, on=("d0", "d1"))
    document, plex = with_plex(document, on=("d0",), mib=10)
    document = document.with_lun(shadows.filled(document, document.lun("v"), plex, uuids(0x9000)))
    with pytest.raises(DeviceInUse, match="'d2' serves LUN 'v'"):
        provision.remove_drive(document, "d2")


# Settings.


def test_settings_that_are_not_given_stay_as_they_are() -> None:
    """Each is changed alone, and taken back alone; "default" is a value like the others."""
    plain = drives(1)
    all_set = provision.configure(
        plain, auto_recover=True, scrub=Schedule.WEEKLY, rate_min=10 * MIB, rate_max=50 * MIB
    ).document
    assert (all_set.auto_recover, all_set.scrub) == (True, Schedule.WEEKLY)
    assert (all_set.rate_min, all_set.rate_max) == (10 * MIB, 50 * MIB)
    assert provision.configure(all_set).document == all_set
    assert provision.configure(plain, auto_recover=False).document.auto_recover is False
    fewer = provision.configure(all_set, auto_recover=None, rate_min=0).document
    assert (fewer.auto_recover, fewer.rate_min) == (None, 0)
    assert provision.configure(fewer, scrub=Schedule.OFF, rate_max=0).document == plain


def test_the_smallest_rate_is_not_above_the_largest() -> None:
    """Whichever of them is given, and only where there is a largest."""
    low = provision.configure(drives(1), rate_max=10 * MIB).document
    with pytest.raises(InvalidArgument, match=r"lowest rate \(20 MiB/s\) is above the highest \(10 MiB/s\)"):
        provision.configure(low, rate_min=20 * MIB)
    assert provision.configure(low, rate_min=10 * MIB).document.rate_min == 10 * MIB
    assert provision.configure(low, rate_min=20 * MIB, rate_max=0).document.rate_min == 20 * MIB
    high = provision.configure(drives(1), rate_min=20 * MIB).document
    with pytest.raises(InvalidArgument, match="lowest rate"):
        provision.configure(high, rate_max=10 * MIB)


@pytest.mark.parametrize("rate", [-1, 1, 1023, 2**31 * 1024])
def test_a_rate_that_the_kernel_does_not_have_is_refused(rate: int) -> None:
    """It counts KiB per second, in an int: less than one would be none, more would be a negative number."""
    with pytest.raises(InvalidArgument, match="no rate that the kernel can keep to"):
        provision.configure(drives(1), rate_min=rate)
    with pytest.raises(InvalidArgument, match="no rate that the kernel can keep to"):
        provision.configure(drives(1), rate_max=rate)


def test_an_array_without_drives_has_nothing_to_write_its_settings_on() -> None:
    """They would be forgotten in silence."""
    with pytest.raises(InvalidOperation, match="no drive"):
        provision.configure(array(), auto_recover=True)
