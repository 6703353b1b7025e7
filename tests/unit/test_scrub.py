"""Scrub: what is refused, what is asked of the kernel, what is remembered."""

import msgspec
import pytest

from blkrecov import scrub
from blkrecov.dm.status import RaidStatus
from blkrecov.errors import AnotherCallInProgress, InvalidOperation, ObjectFailed
from blkrecov.model import Layout, MemberState, Phase, TaskState
from blkrecov.steps import Message
from tests.unit.arrays import drives, raid, with_lun, with_states


def test_a_check_is_one_phase_and_one_message() -> None:
    """The kernel counts; nothing is written."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    proposal, task = scrub.propose(document, lun, raid("AA"), repair=False)
    assert (task.state, task.phases) == (TaskState.IN_PROGRESS, (Phase.CHECK,))
    assert (proposal.prepare, proposal.then) == ((), (Message("blkrecov-lab-v-plex", "check"),))
    assert proposal.document.luns == document.luns
    assert proposal.document.task_on(lun.uuid) == task


def test_a_repair_is_checked_afterwards() -> None:
    """Repaired is not verified."""
    document, lun = with_lun(drives(3), Layout.RAID5)
    proposal, task = scrub.propose(document, lun, raid("AAA"), repair=True)
    assert task.phases == (Phase.REPAIR, Phase.CHECK)
    assert proposal.then == (Message("blkrecov-lab-v-plex", "repair"),)


@pytest.mark.parametrize("layout", [Layout.LINEAR, Layout.RAID0])
def test_without_redundancy_there_is_nothing_to_compare(layout: Layout) -> None:
    """A lasting fact: no state of the LUN changes the answer."""
    document, lun = with_lun(drives(2), layout)
    with pytest.raises(InvalidOperation):
        scrub.propose(document, lun, None, repair=False)


def test_one_operation_at_a_time() -> None:
    """Two scrubs of one LUN would be one, and two tasks that wait for it."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    proposal, _ = scrub.propose(document, lun, raid("AA"), repair=False)
    with pytest.raises(AnotherCallInProgress, match="task 1"):
        scrub.propose(proposal.document, lun, raid("AA"), repair=False)


def test_a_lun_that_lost_a_member_is_refused() -> None:
    """What is left has nothing to differ from, and a mirror's repair would be a lie."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    lun = with_states(lun, MemberState.FAILED)
    with pytest.raises(ObjectFailed) as refused:
        scrub.propose(document.with_lun(lun), lun, raid("DA"), repair=False)
    assert refused.value.remedy == "run first: blkrecov recover v"


@pytest.mark.parametrize("status", [raid("Aa", "recover", "3/64"), raid("AA", "resync", "3/64"), raid("AA", "check")])
def test_a_lun_that_the_kernel_is_at_is_refused(status: RaidStatus) -> None:
    """md does one thing at a time."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    with pytest.raises(AnotherCallInProgress):
        scrub.propose(document, lun, status, repair=False)


def test_a_check_s_count_is_remembered() -> None:
    """The kernel shows it only until the next load, and begins anew when a paused check goes on."""
    document, lun = with_lun(drives(2), Layout.RAID1)
    _, task = scrub.propose(document, lun, raid("AA"), repair=False)
    assert scrub.counted(lun, task, raid("AA", mismatch=128)).mismatches == 128
    paused = msgspec.structs.replace(task, mismatches=64)
    assert scrub.counted(lun, paused, raid("AA", mismatch=128)).mismatches == 192


def test_a_repair_ends_all_doubt() -> None:
    """After it the members agree everywhere, however they came to differ; how many did is for the next check."""
    _, lun = with_lun(drives(2), Layout.RAID1)
    doubtful = msgspec.structs.replace(lun, suspect=True, mismatches=128)
    after = scrub.repaired(doubtful)
    assert (after.suspect, after.mismatches, after.initialised) == (False, None, True)
