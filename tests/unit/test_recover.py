"""Recover: what is found wrong, what is done about it, and in which order it is refused."""

import msgspec
import pytest

from blkrecov import provision, recover, tasks
from blkrecov.errors import (
    AnotherCallInProgress,
    BlkrecovError,
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
    Layout,
    Lun,
    MemberState,
    Phase,
    Task,
    TaskKind,
    TaskState,
)
from blkrecov.proposal import Proposal
from blkrecov.steps import Message, ZeroExtent
from tests.unit.arrays import FAULT_TOLERANT, array, drive, drives, raid_words, seen, uuids, with_lun, with_states

LOST = MemberState.FAILED
GOOD = MemberState.IN_SYNC
REBUILDING = MemberState.REBUILDING


def mirror(*others: int, initialised: bool = True) -> Document:
    """A raid1 v on d0 and d1, and more drives of so many units, d2 and on."""
    document = array(drive(0), drive(1), *(drive(2 + index, units) for index, units in enumerate(others)))
    document, lun = with_lun(document, Layout.RAID1, on=("d0", "d1"))
    return document.with_lun(msgspec.structs.replace(lun, initialised=initialised))


def without(document: Document, name: str = "d0") -> Document:
    """The array after a drive failed."""
    return provision.fail_drive(document, name).document


def proposed(document: Document, words: str | None = None, spare: str | None = None) -> tuple[Proposal, Task]:
    named = document.drive(spare) if spare else None
    return recover.propose(document, seen(document, words), document.lun("v"), named, uuids(0x9000))


def drive_of(document: Document, index: int) -> str:
    return document.drive_of(document.lun("v").members[index].drive).name


def test_a_healthy_lun_is_done_at_once() -> None:
    """S_OK and 100 percent: what was asked for is true."""
    document = mirror(200)
    proposal, task = proposed(document, raid_words("AA"))
    assert (task.state, task.percent, task.code, task.phases) == (TaskState.COMPLETED, 100, "S_OK", ())
    assert proposal.document.luns == document.luns
    assert (proposal.prepare, proposal.then) == ((), ())
    assert proposal.document.task(1) == task


def test_a_lost_member_is_substituted() -> None:
    """Another drive, another UUID, zeroed metadata, and the kernel to regenerate its contents."""
    before = without(mirror(200))
    proposal, task = proposed(before, raid_words("DA"))
    lost, member = before.lun("v").members[0], proposal.document.lun("v").members[0]
    assert drive_of(proposal.document, 0) == "d2"
    assert member.uuid != lost.uuid
    assert (member.state, member.length) == (MemberState.REBUILDING, lost.length)
    assert proposal.prepare == (ZeroExtent("/dev/mapper/blkrecov-lab-drive-d2", member.meta[0]),)
    assert proposal.then == ()
    assert (task.state, task.phases, task.objects) == (
        TaskState.IN_PROGRESS,
        (Phase.REBUILD, Phase.VERIFY),
        ("v", "d2"),
    )
    assert proposal.document.task_on(before.lun("v").uuid) == task
    assert proposal.document.lun("v").members[1] == before.lun("v").members[1]


def test_the_lost_member_s_space_is_free_again() -> None:
    """Nothing refers to it any more; its drive could be removed."""
    proposal, _ = proposed(without(mirror(200)), raid_words("DA"))
    assert [drive.name for drive in provision.remove_drive(proposal.document, "d0").document.drives] == ["d1", "d2"]


def test_the_kernel_s_word_is_enough() -> None:
    """A leg that md has given up is lost, whether or not the document knows yet."""
    proposal, task = proposed(mirror(200), raid_words("AD"))
    assert drive_of(proposal.document, 1) == "d2"
    assert task.phases == (Phase.REBUILD, Phase.VERIFY)


def test_the_smallest_hot_spare_that_fits_is_chosen_first() -> None:
    """And is a hot spare no more (VDS_DRF_HOTSPARE)."""
    spares = (drive(3, 300, hot_spare=True), drive(4, 70, hot_spare=True), drive(5, 20, hot_spare=True))
    document, _ = with_lun(array(drive(0), drive(1), drive(2, 66), *spares), Layout.RAID1, on=("d0", "d1"))
    proposal, _ = proposed(without(document), raid_words("DA"))
    assert drive_of(proposal.document, 0) == "d4"
    assert [drive.hot_spare for drive in proposal.document.drives] == [False, False, False, True, False, True]


def test_an_explicit_spare_goes_before_hot_spares() -> None:
    """Whoever names it has reasons; the hot spare stays one."""
    document, _ = with_lun(array(drive(0), drive(1), drive(2), drive(3, hot_spare=True)), Layout.RAID1, on=("d0", "d1"))
    proposal, _ = proposed(without(document), raid_words("DA"), spare="d2")
    assert drive_of(proposal.document, 0) == "d2"
    assert proposal.document.drive("d3").hot_spare


def test_free_space_serves_where_there_is_no_spare() -> None:
    """Also on a drive that other LUNs use."""
    document = mirror(200)
    document, _ = with_lun(document, Layout.LINEAR, "w", on=("d2",))
    proposal, _ = proposed(without(document), raid_words("DA"))
    assert drive_of(proposal.document, 0) == "d2"
    assert proposal.document.lun("v").members[0].meta[0].start == document.drive("d2").data_start + 64 * UNIT


@pytest.mark.parametrize("layout", [Layout.RAID6, Layout.RAID10])
def test_all_lost_members_are_substituted_at_once(layout: Layout) -> None:
    """On different drives; an explicit spare is for the first of them."""
    document, _ = with_lun(drives(8), layout, on=("d0", "d1", "d2", "d3"))
    proposal, task = proposed(without(without(document, "d0"), "d2"), None, spare="d7")
    members = proposal.document.lun("v").members
    assert [member.state for member in members] == [REBUILDING, GOOD, REBUILDING, GOOD]
    assert drive_of(proposal.document, 0) == "d7"
    assert len({member.drive for member in members}) == 4
    assert len(proposal.prepare) == 2
    assert task.objects == ("v", "d7", drive_of(proposal.document, 2))


@pytest.mark.parametrize(
    "words", [raid_words("AA", "resync", "3/64"), raid_words("Aa", "recover", "3/64"), raid_words("Aa")]
)
def test_a_mirror_out_of_sync_is_waited_for(words: str) -> None:
    """The kernel is at it already: nothing is asked of it, nothing changes."""
    document = mirror(200)
    proposal, task = proposed(document, words)
    assert task.phases == (Phase.REBUILD, Phase.VERIFY)
    assert (proposal.prepare, proposal.then) == ((), ())
    assert proposal.document.luns == document.luns


@pytest.mark.parametrize("change", [{"mismatches": 8}, {"suspect": True}])
def test_members_that_disagree_are_repaired(change: dict[str, int | bool]) -> None:
    """Parity regeneration: the kernel compares all of it and rewrites what differs."""
    document, lun = with_lun(drives(3), Layout.RAID5)
    document = document.with_lun(msgspec.structs.replace(lun, initialised=True, **change))
    proposal, task = proposed(document, raid_words("AAA"))
    assert task.phases == (Phase.REPAIR, Phase.VERIFY)
    assert proposal.then == (Message("blkrecov-lab-v-plex", "repair"),)


def test_a_scrub_that_found_nothing_is_no_reason_to_repair() -> None:
    """0 mismatches is a good answer, not an unknown one."""
    document = mirror(200)
    document = document.with_lun(msgspec.structs.replace(document.lun("v"), mismatches=0))
    assert proposed(document, raid_words("AA"))[1].state is TaskState.COMPLETED


@pytest.mark.parametrize("change", [{"suspect": True}, {"initialised": False}])
def test_doubt_about_the_other_members_is_repaired_after_the_rebuild(change: dict[str, bool]) -> None:
    """The rebuild ends an initial synchronisation for good, and does not cover what it had not come to."""
    document = without(mirror(200))
    document = document.with_lun(msgspec.structs.replace(document.lun("v"), **change))
    proposal, task = proposed(document, raid_words("DA"))
    assert task.phases == (Phase.REBUILD, Phase.REPAIR, Phase.VERIFY)
    assert proposal.then == ()


@pytest.mark.parametrize("layout", FAULT_TOLERANT)
def test_too_many_lost_members_are_beyond_recovery(layout: Layout) -> None:
    """VDS_E_OBJECT_STATUS_FAILED, naming which and how many."""
    document, lun = with_lun(drives(8), layout)
    lun = with_states(lun, *[LOST] * (lun.layout.parity + 1 if lun.layout.parity else 2))
    with pytest.raises(ObjectFailed, match="has lost members 0, 1"):
        proposed(document.with_lun(lun))


@pytest.mark.parametrize("layout", [Layout.LINEAR, Layout.RAID0])
def test_without_redundancy_there_is_nothing_to_recover_from(layout: Layout) -> None:
    """VDS_E_INVALID_OPERATION for as long as the LUN works."""
    document, _ = with_lun(drives(3), layout)
    with pytest.raises(InvalidOperation):
        proposed(document)


@pytest.mark.parametrize("layout", [Layout.LINEAR, Layout.RAID0])
def test_failed_goes_before_not_fault_tolerant(layout: Layout) -> None:
    """The precedence of errors in recover.examine's own words: ObjectFailed, then InvalidOperation."""
    document, lun = with_lun(drives(3), layout)
    document = without(document, document.drive_of(lun.members[0].drive).name)
    with pytest.raises(ObjectFailed):
        proposed(document)


def running(document: Document, lun: Lun) -> Document:
    task = Task(id=document.next_task, kind=TaskKind.SCRUB, lun=lun.uuid, objects=(lun.name,))
    return document.with_task(tasks.started(task))


def test_failed_goes_before_busy() -> None:
    """Lasting facts first: a retry loop on "busy" must not hide what can never work."""
    document, lun = with_lun(drives(4), Layout.RAID1)
    lun = with_states(lun, LOST, LOST)
    with pytest.raises(ObjectFailed):
        proposed(running(document.with_lun(lun), lun))


def test_not_fault_tolerant_goes_before_busy() -> None:
    """The same."""
    document, lun = with_lun(drives(4), Layout.RAID0)
    with pytest.raises(InvalidOperation):
        proposed(running(document, lun))


def test_busy_goes_before_healthy_and_before_resources() -> None:
    """A second Recover of one LUN is refused even where it would have nothing to do."""
    for document in (mirror(200), without(mirror())):
        with pytest.raises(AnotherCallInProgress):
            proposed(running(document, document.lun("v")))


@pytest.mark.parametrize(
    ("others", "spare", "error"),
    [
        ((), None, NotEnoughDrives),
        ((64,), None, NotEnoughSpace),
        ((64, 200), "d2", NotEnoughSpace),
        ((200,), "d1", InvalidArgument),
        ((200,), "d0", NotEnoughDrives),
    ],
)
def test_resources_come_last(others: tuple[int, ...], spare: str | None, error: type[BlkrecovError]) -> None:
    """No drive, no room, a spare that cannot serve: the document stays as it was."""
    with pytest.raises(error):
        proposed(without(mirror(*others)), raid_words("DA"), spare=spare)


def test_a_member_that_is_being_rebuilt_is_no_copy() -> None:
    """The only whole member of a mirror is lost while the other one is half regenerated: the data is gone, and a Recover that
    began would let the kernel compute members from each other's garbage.
    """
    document = mirror(200)
    lun = with_states(document.lun("v"), LOST, REBUILDING)
    with pytest.raises(ObjectFailed):
        proposed(document.with_lun(lun), raid_words("Da", "idle", "3/64"))


def test_rebuilt_members_are_members_like_all_others() -> None:
    """Lost ones stay lost."""
    _, lun = with_lun(drives(4), Layout.RAID6)
    lun = with_states(lun, REBUILDING, LOST, GOOD, REBUILDING)
    assert [member.state for member in recover.rebuilt(lun).members] == [GOOD, LOST, GOOD, GOOD]


def test_the_lost_member_s_own_drive_serves_when_it_is_back() -> None:
    """Last choice, with the space that the lost member had."""
    document = without(mirror())
    back = msgspec.structs.replace(document.drive("d0"), status=DriveStatus.ONLINE)
    proposal, _ = proposed(document.with_drive(back), raid_words("DA"))
    assert drive_of(proposal.document, 0) == "d0"
    assert proposal.document.lun("v").members[0].uuid != document.lun("v").members[0].uuid


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    ("initialised", "phases"),
    [(True, (Phase.REBUILD, Phase.VERIFY)), (False, (Phase.REBUILD, Phase.REPAIR, Phase.VERIFY))],
)
def test_a_substitute_that_no_task_has_seen_to_its_end_is_recovered(
    frozen: bool, initialised: bool, phases: tuple[Phase, ...]
) -> None:
    """Its task failed or was cancelled, and the kernel is done by now: the document calls it no member still. And what the first
    recovery had to repair, the second has to."""
    document = mirror(200, initialised=initialised)
    lun = with_states(document.lun("v"), REBUILDING, GOOD)
    document = document.with_lun(msgspec.structs.replace(lun, frozen=frozen))
    proposal, task = proposed(document, raid_words("AA"))
    assert (task.state, task.phases) == (TaskState.IN_PROGRESS, phases)
    recovered = proposal.document.lun("v")
    assert (recovered.members, recovered.frozen, proposal.prepare) == (lun.members, False, ())
