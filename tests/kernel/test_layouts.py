"""Every layout from its making to its last restart, on a real kernel: what is written stays, whatever is lost.

What the members hold is judged here by reading them, beside asking the kernel for its count.
"""

from dataclasses import dataclass

import pytest

from blkrecov.errors import Code, InvalidOperation, ObjectFailed
from blkrecov.model import TaskState
from blkrecov.units import MIB
from tests.kernel.lab import (
    Files,
    Lab,
    Slow,
    Writer,
    checksum,
    disagreements,
    disk_of,
    fill,
    in_sync,
    lun,
    overwrite,
    recover,
    regions_of,
    run,
    scrub,
    show,
    states,
)

SIZE = 12 * MIB
PROCESS_LIMIT = 2 * MIB


@dataclass(frozen=True)
class Case:
    """A layout, how many members, and which of them are lost."""

    layout: str
    members: int
    lost: tuple[int, ...] = (0,)

    def __str__(self) -> str:
        return f"{self.layout}-of-{self.members}-without-{'-and-'.join(map(str, self.lost))}"


REDUNDANT = [
    Case("raid1", 2),
    Case("raid1", 3, (0, 2)),
    Case("raid4", 3, (2,)),
    Case("raid5", 3),
    Case("raid6", 4, (1,)),
    Case("raid6", 5, (0, 3)),
    Case("raid10", 4),
    Case("raid10", 4, (1, 2)),
]
# One of each layout, for what does not depend on who is lost.
EACH = [
    Case("raid1", 2),
    Case("raid4", 3),
    Case("raid5", 3),
    Case("raid6", 4, (0, 1)),
    Case("raid10", 4, (0, 3)),
]
DATA_MEMBERS = {"raid1": 1, "raid5": 2}
BARE = [Case("linear", 1), Case("raid0", 2)]


@pytest.mark.parametrize("case", REDUNDANT, ids=str)
def test_a_spare_takes_the_place_of_a_drive_that_failed_under_writes(lab: Lab, case: Case) -> None:
    """The whole of Recover: nothing of what was acknowledged is lost, no member is left wrong, the kernel moved the data."""
    lost = [f"d{index}" for index in case.lost]
    spares = [f"s{index}" for index in range(len(lost))]
    lab.create(case.members, spares=len(spares))
    with lab.opened() as array:
        disk = lun(array, "vol", case.layout, SIZE, members=case.members)
        files = Files.make(disk, lab.directory / "mnt", 4 * MIB)
        in_sync(array, "vol")
        assert (show(array, "vol")["status"], show(array, "vol")["health"]) == ("online", "healthy")
        with Writer(files.room("writes", 2 * MIB), 2 * MIB) as writer:
            writer.wait_for(20)
            for name in lost:
                array.fail_drive(name)
            writer.wait_for(40)
            shown = show(array, "vol")
            assert (shown["status"], shown["health"]) == ("online", "failed_redundancy")
            expected = ["failed" if index in case.lost else "in_sync" for index in range(case.members)]
            assert [member["state"] for member in shown["members"]] == expected
            assert (files.wrong(), array.document.drive(lost[0]).status.value) == ([], "failed")
            task = recover(array, "vol")
            writer.wait_for(5)
        assert (task.state, task.percent, task.code) == (TaskState.COMPLETED, 100, "S_OK")
        member = array.document.lun("vol").members[case.lost[0]]
        assert task.bytes_kernel >= len(lost) * member.length * 512
        assert 0 < task.bytes_process < PROCESS_LIMIT
        assert (files.wrong(), writer.wrong()) == ([], [])
        shown = show(array, "vol")
        assert (shown["health"], shown["task"], states(array, "vol")) == ("healthy", None, ["in_sync"] * case.members)
        assert sorted(shown["members"][index]["drive"] for index in case.lost) == spares
        assert [regions_of(array, name) for name in lost] == [set()] * len(lost)
        files.umount()
        assert scrub(array, "vol").message == "0 mismatches"
        assert disagreements(array, "vol") == []


@pytest.mark.parametrize("case", [*BARE, *EACH], ids=str)
def test_acknowledged_writes_survive_a_power_cut_and_a_clean_restart(lab: Lab, case: Case) -> None:
    """With writes under way at the cut: the kernel would leave their regions different, the array has it repair them."""
    lab.create(case.members)
    with lab.opened() as array:
        disk = lun(array, "vol", case.layout, SIZE, members=case.members)
        digest = fill(disk, 4 * MIB, seed=1)
        in_sync(array, "vol")
        naa = show(array, "vol")["page83"]["naa"]
    with Writer(disk, 4 * MIB, offset=4 * MIB) as writer:
        writer.wait_for(60)
        lab.power_cut()
    with lab.opened() as array:
        disk = disk_of(array, "vol")
        assert (checksum(disk, 4 * MIB), writer.wrong(disk)) == (digest, [])
        in_sync(array, "vol")
        assert disagreements(array, "vol") == []
        whole = checksum(disk)
        array.stop()
    with lab.opened() as array:
        shown = show(array, "vol")
        assert (shown["status"], shown["health"], shown["page83"]["naa"]) == ("online", "healthy", naa)
        assert shown["page83"]["verified"]
        assert checksum(disk_of(array, "vol")) == whole


@pytest.mark.parametrize("case", [Case("raid1", 3, (0, 1)), Case("raid6", 4, (0, 1))], ids=str)
def test_a_degraded_lun_comes_back_degraded_and_recovers(lab: Lab, case: Case) -> None:
    """A member that was lost stays lost over a power cut, although its drive is there and looks as good as the others."""
    lab.create(case.members, spares=len(case.lost))
    with lab.opened() as array:
        disk = lun(array, "vol", case.layout, SIZE, members=case.members)
        in_sync(array, "vol")
        fill(disk, SIZE, seed=1)
        for index in case.lost:
            array.fail_drive(f"d{index}")
        digest = fill(disk, SIZE, seed=2)
    lab.power_cut()
    with lab.opened() as array:
        shown = show(array, "vol")
        assert (shown["status"], shown["health"]) == ("online", "failed_redundancy")
        assert [index for index, state in enumerate(states(array, "vol")) if state == "failed"] == list(case.lost)
        assert checksum(disk_of(array, "vol")) == digest
        assert recover(array, "vol").state is TaskState.COMPLETED
        assert show(array, "vol")["health"] == "healthy"
        assert (checksum(disk_of(array, "vol")), disagreements(array, "vol")) == (digest, [])


@pytest.mark.parametrize("case", [Case("raid1", 2), Case("raid5", 3)], ids=str)
def test_a_rebuild_goes_on_after_a_power_cut_and_ends_by_itself(slow: Slow, lab: Lab, case: Case) -> None:
    """The task is known again, does not begin anew, and completes for whoever opens the array next."""
    lab.create(case.members)
    with lab.opened() as array:
        array.add_drive(str(slow.directory / "s0"), size=slow.drive, name="s0", spare=True, force=False)
        size = 24 * MIB * DATA_MEMBERS[case.layout]
        disk = lun(array, "vol", case.layout, size, members=case.members, exported=False)
        in_sync(array, "vol")
        digest = fill(disk, size, seed=1)
        array.fail_drive("d0")
        slow.delay(100)
        proposal, task = array.propose_recover("vol", None)
        number = array.start(proposal, task).id
        assert array.progress(number).fraction < 0.9
    lab.power_cut()
    slow.delay(0)
    with lab.opened() as array:
        ended = array.wait(number, timeout_s=60)
        assert (ended.state, ended.percent) == (TaskState.COMPLETED, 100)
        assert ended.bytes_kernel > 0
        assert (show(array, "vol")["health"], checksum(disk_of(array, "vol"))) == ("healthy", digest)
        assert scrub(array, "vol").message == "0 mismatches"


@pytest.mark.parametrize("case", BARE, ids=str)
def test_without_redundancy_a_lost_drive_is_the_end_and_said_to_be(lab: Lab, case: Case) -> None:
    """Recover has nothing to work with, spare or no spare; the host gets errors, never zeros, before and after a restart."""
    lab.create(case.members, spares=1)
    with lab.opened() as array:
        disk = lun(array, "vol", case.layout, SIZE, members=case.members)
        digest = fill(disk, SIZE, seed=1)
        assert checksum(disk) == digest
        assert show(array, "vol")["fault_tolerance"] == 0
        for spare in (None, "s0"):
            with pytest.raises(InvalidOperation) as refused:
                array.propose_recover("vol", spare)
            assert refused.value.code is Code.VDS_E_INVALID_OPERATION
        used = next(drive.name for drive in array.document.drives if regions_of(array, drive.name))
        array.fail_drive(used)
        shown = show(array, "vol")
        assert (shown["status"], shown["health"]) == ("failed", "failed")
        with pytest.raises(ObjectFailed):
            array.propose_recover("vol", None)
        with pytest.raises(OSError, match="Input/output error"):
            checksum(disk)
    lab.power_cut()
    with lab.opened() as array:
        assert show(array, "vol")["status"] == "failed"
        with pytest.raises(ObjectFailed):
            array.propose_recover("vol", "s0")


@pytest.mark.parametrize("case", [Case("raid10", 4, (0, 1))], ids=str)
def test_one_member_too_many_is_told_and_nothing_is_made_up(lab: Lab, case: Case) -> None:
    """The LUN has failed: recovery is refused for want of data, and a restart does not bring it back with wrong contents."""
    lab.create(case.members, spares=2)
    with lab.opened() as array:
        lun(array, "vol", case.layout, SIZE, members=case.members)
        in_sync(array, "vol")
        for index in case.lost:
            array.fail_drive(f"d{index}")
        assert (show(array, "vol")["status"], show(array, "vol")["health"]) == ("failed", "failed")
        with pytest.raises(ObjectFailed):
            array.propose_recover("vol", None)
    lab.power_cut()
    with lab.opened() as array:
        assert show(array, "vol")["status"] == "failed"
        with pytest.raises(ObjectFailed):
            array.propose_recover("vol", None)


def test_a_lun_may_be_used_and_degraded_before_its_first_synchronisation_ends(slow: Slow, lab: Lab) -> None:
    """A substitution ends the kernel's initial synchronisation for good, so what that left undone is repaired after it."""
    lab.create(3, spares=1)
    with lab.opened() as array:
        array.add_drive(str(slow.directory / "d3"), size=slow.drive, name="d3", spare=False, force=False)
        slow.delay(50)
        disk = lun(array, "vol", "raid6", 24 * MIB, members=4, exported=False)
        assert show(array, "vol")["health"] == "rebuilding"
        digest = fill(disk, 2 * MIB, seed=1)
        array.fail_drive("d0")
        slow.delay(0)
        task = recover(array, "vol")
        assert (task.state, [phase.value for phase in task.phases]) == (
            TaskState.COMPLETED,
            ["rebuild", "repair", "verify"],
        )
        assert checksum(disk, 2 * MIB) == digest
        assert scrub(array, "vol").message == "0 mismatches"
        assert disagreements(array, "vol") == []


def test_a_member_that_is_wrong_is_found_and_put_right(lab: Lab) -> None:
    """Bits that rot on a drive: a scrub counts them, with repair it removes them, and the second count is nought."""
    lab.create(3)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid5", SIZE, members=3, exported=False)
        digest = fill(disk, SIZE, seed=1)
        in_sync(array, "vol")
        # In left-symmetric raid5 the parity of the first stripe is on the last member: no data is touched.
        overwrite(array, array.document.lun("vol").members[2], bytes(4096))
        assert disagreements(array, "vol") != []
        assert scrub(array, "vol").message == "8 mismatches"
        assert show(array, "vol")["health"] == "failing_redundancy"
        assert scrub(array, "vol", repair=True).message == "0 mismatches"
        assert (show(array, "vol")["health"], checksum(disk)) == ("healthy", digest)
        assert disagreements(array, "vol") == []


def test_nothing_of_a_lun_is_left_in_udev_when_it_has_gone(lab: Lab) -> None:
    """Links under /dev come and go with the disk."""
    lab.create(2)
    with lab.opened() as array:
        lun(array, "vol", "raid1", SIZE)
        naa = show(array, "vol")["page83"]["naa"]
        link = f"/dev/disk/by-id/wwn-0x{naa}"
        assert run("readlink", "-f", link) == disk_of(array, "vol")
        array.carry_out(array.propose_delete("vol"))
        assert run("udevadm", "settle", "--timeout=30") == ""
        assert run("sh", "-c", f"ls {link} 2>/dev/null | wc -l") == "0"
