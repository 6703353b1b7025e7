"""Removal of a drive: what is refused, where everything goes, and when the drive leaves."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import geometry, provision, remove, replace, tasks
from blkrecov.errors import (
    AnotherCallInProgress,
    BlkrecovError,
    DeviceInUse,
    DriveNotOnline,
    InvalidArgument,
    InvalidOperation,
    NotEnoughDrives,
    NotEnoughSpace,
    ObjectDeleted,
    ObjectFailed,
)
from blkrecov.geometry import Request
from blkrecov.model import (
    Document,
    DriveStatus,
    Layout,
    MemberState,
    Pair,
    Restore,
    Task,
    TaskKind,
    TaskState,
    decode,
    encode,
)
from blkrecov.proposal import Proposal
from blkrecov.units import MIB, Bytes
from blkrecov.views import drive_view
from tests.unit.arrays import array, drive, drives, seen, uuids, with_lost, with_lun, with_shadow, with_states

D0 = drive(0).uuid


def proposed(document: Document, name: str = "d0") -> tuple[Proposal, Task, tuple[Proposal, ...]]:
    return remove.propose(document, seen(document), document.drive(name), uuids(0x9000))


def three_luns() -> Document:
    """A mirror m, a parity p and a linear LUN v on d0, beside others."""
    document, _ = with_lun(drives(6), Layout.RAID1, "m", mib=16, on=("d0", "d1"))
    document, _ = with_lun(document, Layout.RAID5, "p", mib=64, on=("d0", "d1", "d2"))
    return with_lun(document, Layout.LINEAR, "v", mib=8, on=("d0",))[0]


def moved(document: Document, *names: str) -> Document:
    """The array when the replacements of these LUNs have completed."""
    task = next(task for task in document.tasks if task.kind is TaskKind.REMOVE)
    for name in names:
        lun = document.lun(name)
        child = next(each for each in document.tasks if each.id in task.children and each.lun == lun.uuid)
        proposal, begun = replace.begin(document, seen(document), lun, child, uuids(0xA000 * child.id))
        document = replace.finished(proposal.document, proposal.document.lun_of(lun.uuid))
        document = document.with_task(tasks.completed(msgspec.structs.replace(begun, bytes_kernel=100)))
    return document


def test_each_lun_is_a_replacement_that_waits_and_the_longest_is_placed_first() -> None:
    proposal, task, moves = proposed(three_luns())
    after = proposal.document
    assert (task.id, task.kind, task.lun, task.objects) == (1, TaskKind.REMOVE, D0, ("d0",))
    assert (task.state, task.percent, task.children) == (TaskState.IN_PROGRESS, 0, (2, 3, 4))
    children = [after.task(number) for number in task.children]
    assert [child.lun for child in children] == [after.lun(name).uuid for name in "pmv"]
    assert {(child.kind, child.state, child.phases, child.leaving) for child in children} == {
        (TaskKind.REPLACE, TaskState.QUEUED, (), D0)
    }
    assert [child.objects[:2] for child in children] == [("p", "d0"), ("m", "d0"), ("v", "d0")]
    assert [after.drive_of(child.spare).name for child in children if child.spare] == [
        child.objects[2] for child in children
    ]
    # Nothing has a successor yet: the kernel copies when they have their turns.
    assert after.luns == three_luns().luns
    assert decode(encode(after)) == after
    assert [drive_view(after, each)["task"] for each in after.drives[:2]] == [1, None]
    assert [each.why for each in moves] == [
        f"LUN {child.objects[0]} moves from drive d0 to drive {child.objects[2]}" for child in children
    ]


def test_a_drive_that_nothing_lies_on_leaves_at_once() -> None:
    """Whether it answers or not."""
    for status in (DriveStatus.ONLINE, DriveStatus.FAILED, DriveStatus.REMOVED):
        document, _ = with_lun(drives(3), Layout.RAID1, on=("d1", "d2"))
        document = document.with_drive(msgspec.structs.replace(drive(0), status=status))
        proposal, task, moves = proposed(document)
        assert (task.state, task.percent, task.children, moves) == (TaskState.COMPLETED, 100, (), ())
        assert (task.message, proposal.document.task(1)) == ("nothing was on it", task)
        with pytest.raises(ObjectDeleted):
            proposal.document.drive("d0")


def test_the_drive_leaves_when_all_has_moved_and_not_before() -> None:
    """One version of the document takes it away and ends the task."""
    document = proposed(three_luns())[0].document
    document = moved(document, "p", "m")
    with pytest.raises(DeviceInUse, match=r"LUN 'v' is on it still: .*replacement of v queued"):
        remove.departed(document, document.task(1))
    document = moved(document, "v")
    proposal, task = remove.departed(document, document.task(1))
    assert (task.state, task.percent, task.bytes_kernel) == (TaskState.COMPLETED, 100, 300)
    assert task.message == "p moved to d3, m moved to d3, v moved to d3"
    assert proposal.document.task(1) == task
    assert [drive.name for drive in proposal.document.drives] == ["d1", "d2", "d3", "d4", "d5"]


def test_what_is_shown_beforehand_is_what_comes_of_it() -> None:
    document = three_luns()
    _, _, moves = proposed(document)
    shown = remove.afterwards(document, document.drive("d0"), moves).document
    assert D0 not in {member.drive for lun in shown.luns for member in lun.members}
    assert [drive.name for drive in shown.drives] == ["d1", "d2", "d3", "d4", "d5"]


def test_no_room_is_counted_twice() -> None:
    """Each would fit, and both do not: whichever lacks it is told, and nothing is begun."""
    document, _ = with_lun(array(drive(0), drive(1, 80)), Layout.LINEAR, "v", mib=64, on=("d0",))
    document, _ = with_lun(document, Layout.LINEAR, "w", mib=32, on=("d0",))
    with pytest.raises(NotEnoughSpace) as refused:
        proposed(document)
    assert "drive 'd0' cannot be emptied: no drive outside LUN 'w' has the 33 MiB free" in refused.value.message
    assert "'v'" not in refused.value.message


def test_all_that_lack_a_place_are_told() -> None:
    document, _ = with_lun(drives(2), Layout.RAID1, "v", on=("d0", "d1"))
    document, _ = with_lun(document, Layout.RAID1, "w", on=("d0", "d1"))
    with pytest.raises(NotEnoughDrives, match=r"serves LUN 'v' already.*serves LUN 'w' already"):
        proposed(document)


def test_a_drive_that_leaves_is_given_nothing_more() -> None:
    """Neither new LUNs, nor what grows, nor substitutes, nor logs; when the removal has ended, it is one like all others."""
    document = proposed(three_luns())[0].document
    named = Request(name="n", layout=Layout.LINEAR, size=Bytes(8 * MIB), drives=("d0",))
    with pytest.raises(InvalidArgument, match="'d0' is being removed"):
        geometry.place(document, named, uuids())
    for layout in (Layout.LINEAR, Layout.RAID5):
        placed = geometry.place(document, Request(name="n", layout=layout, size=Bytes(MIB), members=None), uuids())
        assert D0 not in placed.drives
    with pytest.raises(NotEnoughDrives, match="being removed: d0"):
        geometry.place(document, Request(name="n", layout=Layout.RAID6, size=Bytes(MIB), members=6), uuids())
    free_of_tasks, lun = with_lun(drives(3), Layout.RAID1, on=("d1", "d2"))
    free_of_tasks = free_of_tasks.with_task(document.task(1))
    with pytest.raises(NotEnoughDrives, match="none to substitute; being removed: d0"):
        geometry.choose_substitute(free_of_tasks, lun, lun.members[0].length, None)
    with pytest.raises(InvalidArgument, match="'d0' is being removed"):
        geometry.choose_substitute(free_of_tasks, lun, lun.members[0].length, free_of_tasks.drive("d0"))
    assert geometry.place_log(free_of_tasks)[0].name != "d0"
    ended = free_of_tasks.with_task(tasks.cancelled(document.task(1)))
    assert geometry.choose_substitute(ended, lun, lun.members[0].length, None).name == "d0"


def failed(document: Document) -> Document:
    return provision.fail_drive(document, "d0").document


def member_failed(document: Document) -> Document:
    lun = document.lun("m")
    return document.with_lun(with_states(lun, MemberState.FAILED, MemberState.IN_SYNC))


def busy(document: Document) -> Document:
    return document.with_task(Task(id=1, kind=TaskKind.SCRUB, lun=document.lun("m").uuid, objects=("m",)))


def wanted(document: Document) -> Document:
    """A recovery waits that is to use the drive."""
    return document.with_task(Task(id=1, kind=TaskKind.RECOVER, lun=drive(9).uuid, objects=("x",), spare=D0))


def restored(document: Document) -> Document:
    """A LUN that has no member on the drive is restored, and the copy's log is there."""
    document, lun = with_lun(document, Layout.LINEAR, "t", mib=8, on=("d5",))
    restore = Restore(
        uuid=drive(8).uuid, source=document.lun("v").uuid, drive=D0, log=geometry.free(document, drive(0))
    )
    document = document.with_lun(msgspec.structs.replace(lun, restore=restore))
    pair = Pair(source=restore.source, target=lun.uuid)
    return document.with_task(Task(id=1, kind=TaskKind.RESYNC, lun=lun.uuid, objects=("t",), pairs=(pair,)))


def lost_shadow(document: Document) -> Document:
    document, _ = with_shadow(document, of="p", on=("d0", "d3"))
    return with_lost(document)


def lun_failed(document: Document) -> Document:
    lun = document.lun("m")
    return document.with_lun(with_states(lun, MemberState.FAILED, MemberState.FAILED))


@pytest.mark.parametrize(
    ("spoil", "error", "text", "remedy"),
    [
        (failed, DriveNotOnline, "'d0' is failed: nothing can be copied off it, and LUN 'm', 'p', 'v'", "recover m"),
        (member_failed, InvalidOperation, "LUN 'm' has lost its member on drive 'd0'", "recover m"),
        (lun_failed, ObjectFailed, "LUN 'm' has failed", ""),
        (busy, AnotherCallInProgress, r"task 1 \(scrub\) is under way on LUN 'm'", "task wait 1"),
        (restored, AnotherCallInProgress, r"task 1 \(resync\) is under way on LUN 'v'", "task wait 1"),
        (wanted, AnotherCallInProgress, r"task 1 \(recover of x\) needs drive 'd0'", "task wait 1"),
        (lost_shadow, InvalidOperation, "shadow copy 's' on drive 'd0' has lost its contents", "snapshot delete s"),
        (
            lambda document: proposed(document)[0].document,
            AnotherCallInProgress,
            "task 1 .remove of d0. needs",
            "wait 1",
        ),
    ],
)
def test_what_cannot_be_moved_is_refused(
    spoil: Callable[[Document], Document], error: type[BlkrecovError], text: str, remedy: str
) -> None:
    with pytest.raises(error, match=text) as refused:
        proposed(spoil(three_luns()))
    assert remedy in refused.value.remedy


@given(
    st.lists(st.tuples(st.sampled_from(Layout), st.integers(1, 40)), max_size=6),
    st.lists(st.integers(20, 160), min_size=1, max_size=5),
)
def test_an_evacuation_overlaps_nothing_and_leaves_nothing(sizes: list[tuple[Layout, int]], others: list[int]) -> None:
    """Or it is refused. Whatever the order of their turns, each replacement has the drive that was found for it."""
    document = array(drive(0), *(drive(number, units) for number, units in enumerate(others, start=1)))
    for number, (layout, mib) in enumerate(sizes):
        try:
            document, _ = with_lun(document, layout, f"v{number}", mib=mib)
        except (NotEnoughDrives, NotEnoughSpace):
            continue
    try:
        proposal, task, moves = proposed(document)
    except (NotEnoughDrives, NotEnoughSpace):
        return
    on_it = {lun.name for lun in document.luns if D0 in lun.drives}
    assert {proposal.document.task(number).objects[0] for number in task.children} == on_it
    if not on_it:
        return
    together = document
    for move in moves:
        assert move.lun is not None
        together = together.with_lun(move.document.lun_of(move.lun))
    for target in together.drives:
        position = target.data_start
        for region in geometry.used(together, target):
            assert region.extent.start >= position, "two regions overlap"
            assert not (region.arriving and target.uuid == D0)
            position = region.extent.end
        assert position <= target.data_start + target.data_length
    # The last to have been placed gets its turn first, and so on.
    names = [proposal.document.task(number).objects[0] for number in reversed(task.children)]
    done = moved(proposal.document, *names)
    left, ended = remove.departed(done, done.task(task.id))
    assert ended.state is TaskState.COMPLETED
    for lun in left.document.luns:
        assert D0 not in lun.drives
        if lun.layout is not Layout.LINEAR:
            assert len(lun.drives) == len(lun.members)
