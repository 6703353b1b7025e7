"""Replacement of a drive: what is refused and in which order, where members move, and what the kernel's words come to."""

from dataclasses import replace as with_changes

import msgspec
import pytest

from blkrecov import geometry, provision, replace, tasks
from blkrecov.dm import names
from blkrecov.dm.table import TargetLine
from blkrecov.errors import (
    AnotherCallInProgress,
    BlkrecovError,
    DriveNotOnline,
    InvalidArgument,
    InvalidOperation,
    NotEnoughDrives,
    NotEnoughSpace,
    ObjectFailed,
)
from blkrecov.model import (
    UNIT,
    Document,
    DriveStatus,
    Extent,
    Layout,
    MemberState,
    Phase,
    Task,
    TaskKind,
    TaskState,
    decode,
    encode,
)
from blkrecov.observed import Live, Observed
from blkrecov.proposal import Proposal
from blkrecov.replace import Copy
from blkrecov.steps import Flush, ZeroExtent
from blkrecov.units import Sectors
from tests.unit.arrays import (
    DATA_START,
    FAULT_TOLERANT,
    array,
    drive,
    drives,
    raid_words,
    seen,
    uuids,
    with_lun,
    with_states,
)

LENGTH = 64 * UNIT


def mirror(*others: int) -> Document:
    """A raid1 v on d0 and d1, and more drives of so many units, d2 and on."""
    document = array(drive(0), drive(1), *(drive(2 + index, units) for index, units in enumerate(others)))
    return with_lun(document, Layout.RAID1, on=("d0", "d1"))[0]


def proposed(
    document: Document, old: str = "d0", new: str | None = "d2", words: str | None = None
) -> tuple[Proposal, Task]:
    named = document.drive(new) if new else None
    lun = document.lun("v")
    return replace.propose(document, seen(document, words), lun, document.drive(old), named, uuids(0x9000))


def moving(document: Document, new: str | None = "d2") -> Document:
    return proposed(document, new=new)[0].document


def test_a_member_gets_a_place_on_the_other_drive_and_keeps_its_own() -> None:
    """Superblock, log, data; the first two are zeroed before anything refers to them."""
    before = mirror(200)
    proposal, task = proposed(before)
    member = proposal.document.lun("v").members[0]
    assert member.successor is not None
    assert msgspec.structs.replace(member, successor=None) == before.lun("v").members[0]
    assert member.successor.drive == before.drive("d2").uuid
    assert member.successor.meta == (Extent(DATA_START, UNIT),)
    assert member.successor.log == (Extent(DATA_START + UNIT, UNIT),)
    assert member.successor.data == (Extent(DATA_START + 2 * UNIT, LENGTH),)
    port = "/dev/mapper/blkrecov-lab-drive-d2"
    assert proposal.prepare == (
        ZeroExtent(port, Extent(DATA_START, UNIT)),
        ZeroExtent(port, Extent(DATA_START + UNIT, UNIT)),
    )
    assert (task.kind, task.state) == (TaskKind.REPLACE, TaskState.IN_PROGRESS)
    assert tasks.phase(task) is Phase.COPY
    assert (task.leaving, task.spare) == (before.drive("d0").uuid, before.drive("d2").uuid)
    assert (task.objects, proposal.document.task_on(before.lun("v").uuid)) == (("v", "d0", "d2"), task)


@pytest.mark.parametrize("layout", Layout)
def test_every_layout_can_leave_a_drive(layout: Layout) -> None:
    """Those without redundancy as well: it is mirrored before it is swapped (VDS: hot sparing of a failing drive)."""
    document, lun = with_lun(drives(6), layout, on=tuple(f"d{number}" for number in range(layout.minimum)))
    moved = moving(document, "d5")
    assert [member.successor is not None for member in moved.lun("v").members] == [
        index == 0 for index in range(layout.minimum)
    ]
    successor = moved.lun("v").members[0].successor
    assert successor is not None
    assert bool(successor.meta) == layout.fault_tolerant
    done = replace.finished(moved, moved.lun("v"))
    member = done.lun("v").members[0]
    assert (member.uuid, member.drive) == (lun.members[0].uuid, document.drive("d5").uuid)
    assert (member.data, member.meta, member.successor) == (successor.data, successor.meta, None)
    assert geometry.used(done, done.drive("d0")) == ()
    given_up = replace.abandoned(moved, moved.lun("v"))
    assert given_up.luns == document.luns


def test_all_of_a_linear_lun_leaves() -> None:
    """It may have several members on a drive, in the order of their making."""
    document, lun = with_lun(array(drive(0), drive(1)), Layout.LINEAR, on=("d0",))
    document = document.with_lun(
        lun.with_member(0, msgspec.structs.replace(lun.members[0], data=(Extent(DATA_START, UNIT),)))
    )
    other = msgspec.structs.replace(lun.members[0], uuid=document.array, data=(Extent(DATA_START + 9 * UNIT, UNIT),))
    lun = document.lun("v")
    document = document.with_lun(msgspec.structs.replace(lun, size=2 * UNIT, members=(*lun.members, other)))
    moved = moving(document, "d1").lun("v").members
    assert [member.successor.data if member.successor else None for member in moved] == [
        (Extent(DATA_START + UNIT, UNIT),),
        (Extent(DATA_START + 3 * UNIT, UNIT),),
    ]


def test_the_drive_is_chosen_as_for_a_substitute() -> None:
    """The smallest hot spare that fits; it stays one until the member has arrived."""
    spares = (drive(3, 300, hot_spare=True), drive(4, 70, hot_spare=True), drive(5, 65, hot_spare=True))
    document, _ = with_lun(array(drive(0), drive(1), drive(2), *spares), Layout.RAID1, on=("d0", "d1"))
    moved = moving(document, None)
    successor = moved.lun("v").members[0].successor
    assert successor is not None
    assert successor.drive == document.drive("d4").uuid  # d5 has no room for the log.
    assert moved.drive("d4").hot_spare
    assert not replace.finished(moved, moved.lun("v")).drive("d4").hot_spare
    assert replace.abandoned(moved, moved.lun("v")).drive("d4").hot_spare


def test_free_space_on_another_lun_s_drive_will_do() -> None:
    """Never on a drive of the LUN itself."""
    document, _ = with_lun(mirror(200), Layout.LINEAR, "w", on=("d2",))
    successor = moving(document, None).lun("v").members[0].successor
    assert successor is not None
    assert successor.drive == document.drive("d2").uuid


def test_a_place_that_is_taken_is_taken() -> None:
    """Nothing else is put there, the drive cannot be removed, and no second member of the LUN goes there."""
    document = moving(mirror(200))
    assert geometry.free_length(document, document.drive("d2")) == 200 * UNIT - LENGTH - 2 * UNIT
    with pytest.raises(BlkrecovError):
        provision.remove_drive(document, "d2")
    with pytest.raises(InvalidArgument):
        geometry.choose_drive(document, document.lun("v"), UNIT, document.drive("d2"))


def test_a_document_with_a_successor_is_read_again() -> None:
    """After a crash it is all that is left."""
    document = moving(mirror(200))
    assert decode(encode(document)) == document


def offline(document: Document, name: str, status: DriveStatus = DriveStatus.OFFLINE) -> Document:
    return document.with_drive(msgspec.structs.replace(document.drive(name), status=status))


def busy(document: Document) -> Document:
    task = Task(id=document.next_task, kind=TaskKind.SCRUB, lun=document.lun("v").uuid, objects=("v",))
    return document.with_task(task)


@pytest.mark.parametrize(
    ("document", "old", "new", "error"),
    [
        (mirror(200), "d2", None, InvalidArgument),
        (mirror(200), "d0", "d1", InvalidArgument),
        (mirror(200), "d0", "d0", InvalidArgument),
        (offline(mirror(200), "d0"), "d0", None, DriveNotOnline),
        (busy(mirror(200)), "d0", None, AnotherCallInProgress),
        (offline(mirror(200), "d2"), "d0", "d2", NotEnoughDrives),
        (mirror(65), "d0", "d2", NotEnoughSpace),
        (mirror(65), "d0", None, NotEnoughSpace),
        (mirror(), "d0", None, NotEnoughDrives),
    ],
)
def test_what_cannot_be_is_refused(document: Document, old: str, new: str | None, error: type[BlkrecovError]) -> None:
    """Before anything is written."""
    with pytest.raises(error) as refused:
        proposed(document, old, new)
    assert type(refused.value) is error


def lost(document: Document, state: MemberState = MemberState.FAILED) -> Document:
    return document.with_lun(with_states(document.lun("v"), state))


@pytest.mark.parametrize(
    ("document", "words", "error"),
    [
        (lost(mirror(200)), None, InvalidOperation),
        (mirror(200), raid_words("DA"), InvalidOperation),
        (lost(mirror(200), MemberState.REBUILDING), None, AnotherCallInProgress),
        (mirror(200), raid_words("aA", "recover", "3/64"), AnotherCallInProgress),
    ],
)
def test_a_member_that_holds_nothing_whole_is_recovered_instead(
    document: Document, words: str | None, error: type[BlkrecovError]
) -> None:
    """The remedy says how."""
    with pytest.raises(error) as refused:
        proposed(document, words=words)
    assert type(refused.value) is error
    assert refused.value.remedy == "run: blkrecov recover v"


def test_a_whole_member_of_a_degraded_lun_may_leave() -> None:
    """The copy takes no redundancy away, and the drive may be about to fail as well."""
    document, _ = with_lun(drives(6), Layout.RAID6, on=("d0", "d1", "d2", "d3"))
    document = provision.fail_drive(document, "d3").document
    assert moving(document, "d5").lun("v").members[0].successor is not None


def test_refusals_come_in_order() -> None:
    """Arguments, a failed LUN, what is to be recovered, a busy LUN, and resources last: a retry loop on "busy" never hides what
    can never work.
    """
    document = busy(mirror())
    dead = offline(offline(document, "d0"), "d1")
    steps: list[tuple[Document, str, str | None, type[BlkrecovError]]] = [
        (dead, "d0", "d1", InvalidArgument),
        (dead, "d0", None, ObjectFailed),
        (offline(document, "d0"), "d0", None, DriveNotOnline),
        (lost(document), "d0", None, InvalidOperation),
        (document, "d0", None, AnotherCallInProgress),
        (msgspec.structs.replace(document, tasks=()), "d0", None, NotEnoughDrives),
    ]
    for state, old, new, error in steps:
        with pytest.raises(error) as refused:
            proposed(state, old, new)
        assert type(refused.value) is error


def test_a_replacement_waits_for_another_on_the_same_drives() -> None:
    """Two copies at a time would make the drives' heads serve both. It begins as if it had been asked for later."""
    document, _ = with_lun(mirror(300), Layout.RAID1, "w", on=("d0", "d1"))
    document = moving(document)
    lun, observed = document.lun("w"), seen(document)
    proposal, task = replace.propose(document, observed, lun, document.drive("d0"), document.drive("d2"), uuids(0x9000))
    assert (task.state, proposal.document.luns, proposal.prepare) == (TaskState.QUEUED, document.luns, ())
    document = replace.finished(proposal.document, document.lun("v"))
    begun, task = replace.begin(document, observed, document.lun("w"), document.task(task.id), uuids(0xA000))
    assert (task.state, task.objects) == (TaskState.IN_PROGRESS, ("w", "d0", "d2"))
    assert begun.document.lun("w").members[0].successor is not None


def test_what_an_earlier_replacement_left_is_no_hindrance() -> None:
    """Its task has failed; the member moves to where it is told now."""
    document = msgspec.structs.replace(moving(mirror(200, 200)), tasks=())
    successor = moving(document, "d3").lun("v").members[0].successor
    assert successor is not None
    assert successor.drive == document.drive("d3").uuid


# What the kernel says.


def told(document: Document, *meta: str, data: tuple[str, ...] = ()) -> Observed:
    """A machine whose legs say these words, a mirror each; the data's are parts of equal length."""
    observed = seen(document, raid_words("AA"))
    member = document.lun("v").members[0]
    devices = dict(observed.devices)
    for role, words, length in (("rmeta", meta, UNIT), ("rimage", data, LENGTH)):
        each = length // max(len(words), 1)
        lines = tuple(
            TargetLine(start=Sectors(index * each), length=Sectors(each), kind="mirror", params=text)
            for index, text in enumerate(words)
        )
        uuid = names.dm_uuid(member.uuid, role)
        devices[uuid] = Live(
            name=role,
            uuid=uuid,
            number="253:9",
            table=lines,
            status=lines,
            suspended=False,
            inactive=False,
            open_count=1,
        )
    return with_changes(observed, devices=devices)


def core(ratio: str, legs: str = "AA") -> str:
    return f"2 253:1 253:2 {ratio} 1 {legs} 1 core"


def disk(ratio: str, legs: str = "AA", log: str = "A") -> str:
    return f"2 253:1 253:2 {ratio} 1 {legs} 3 disk 253:3 {log}"


def copied(document: Document, observed: Observed) -> Copy:
    return replace.copied(document, observed, document.lun("v"))


def test_parts_are_summed_up() -> None:
    """In sectors, superblocks included."""
    document = moving(mirror(200))
    copy = copied(document, told(document, core("8/8"), data=(disk("4/8"), disk("8/8"))))
    assert (copy.done, copy.total) == (UNIT + 48 * UNIT, UNIT + LENGTH)
    assert (copy.complete, copy.failed) == (False, False)


@pytest.mark.parametrize(
    ("meta", "data", "complete"),
    [
        ((core("8/8"),), (disk("8/8"), disk("8/8")), True),
        ((core("7/8"),), (disk("8/8"), disk("8/8")), False),
        ((core("8/8"),), (disk("8/8"), disk("7/8")), False),
        ((core("8/8"),), (), False),
        ((), (), False),
        ((core("8/8"),), (disk("8/8"), disk("8/8", "RA")), True),
        ((core("8/8"),), (disk("8/8"), disk("8/8", "AD")), False),
        ((core("8/8"),), (disk("8/8"), disk("8/8", log="D")), False),
    ],
)
def test_a_copy_is_complete_when_all_of_it_is(meta: tuple[str, ...], data: tuple[str, ...], complete: bool) -> None:
    """Every part, on a drive that works; from then on the source is not needed. A leg that is no mirror has copied nothing."""
    document = moving(mirror(200))
    assert copied(document, told(document, *meta, data=data)).complete == complete


@pytest.mark.parametrize(
    ("legs", "log", "failed"),
    [
        ("AA", "A", (False, False, False)),
        ("SA", "A", (True, False, False)),
        ("RA", "A", (True, False, False)),
        ("AS", "A", (False, True, False)),
        ("AF", "A", (False, True, False)),
        ("AA", "D", (False, False, True)),
        ("DD", "F", (True, True, True)),
    ],
)
def test_each_side_fails_by_itself(legs: str, log: str, failed: tuple[bool, bool, bool]) -> None:
    """What is done about it differs."""
    document = moving(mirror(200))
    copy = copied(document, told(document, core("8/8"), data=(disk("8/8"), disk("3/8", legs, log))))
    assert (copy.source_failed, copy.destination_failed, copy.log_failed) == failed
    assert copy.failed == any(failed)


def test_a_drive_that_went_away_has_failed() -> None:
    """Whatever the mirror knows of it yet."""
    document = moving(mirror(200))
    assert copied(document, seen(document, away=("d0",))).source_failed
    assert copied(document, seen(document, away=("d2",))).destination_failed
    assert copied(document, seen(document, raid_words("DA"))).source_failed
    other = copied(document, seen(document, raid_words("AD")))
    assert not other.failed


def test_a_copy_that_is_wanted_no_more_tells_which_side_is_gone() -> None:
    """Another process has seen the failure before, and made the LUN go on."""
    document = moving(mirror(200))
    to_nowhere = provision.fail_drive(document, "d2").document
    copy = copied(to_nowhere, seen(to_nowhere))
    assert (copy.source_failed, copy.destination_failed, copy.complete, copy.total) == (False, True, False, 0)
    from_nowhere = provision.fail_drive(document, "d0").document
    copy = copied(from_nowhere, seen(from_nowhere))
    assert (copy.source_failed, copy.destination_failed, copy.complete) == (True, False, False)


def test_the_new_drive_is_flushed_before_it_serves_alone() -> None:
    """A region counts as copied before the drive was told to keep it."""
    document = moving(mirror(200))
    assert replace.flushes(document, document.lun("v")) == (Flush("/dev/mapper/blkrecov-lab-drive-d2"),)


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_a_member_that_missed_writes_never_arrives(layout: Layout) -> None:
    """Its copy would be as stale as it is; the document drops its successor before."""
    document, lun = with_lun(drives(6), layout, on=tuple(f"d{number}" for number in range(layout.minimum)))
    moved = moving(document, "d5")
    stale = moved.lun("v").with_member(0, msgspec.structs.replace(moved.lun("v").members[0], state=MemberState.FAILED))
    with pytest.raises(AssertionError):
        replace.finished(moved.with_lun(stale), stale)
    assert replace.abandoned(moved.with_lun(stale), stale).lun("v").members[0].drive == lun.members[0].drive
