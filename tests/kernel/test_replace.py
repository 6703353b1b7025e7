"""Members that move to another drive while they serve, on a real kernel: copied by dm-mirror below the RAID layer.

What a task would do is done here by hand (blkrecov.replace's theory), so that a test may look between any two steps.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest

from blkrecov import replace
from blkrecov.array import Array
from blkrecov.converge import converge
from blkrecov.dm import counters, names
from blkrecov.dm.control import Control
from blkrecov.dm.status import LegHealth
from blkrecov.dm.table import ErrorTable, Table, TargetLine
from blkrecov.model import Document, MemberState
from blkrecov.replace import Copy
from blkrecov.units import MIB, SECTOR, Sectors
from blkrecov.views import regions
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
    our_devices,
    read,
    recover,
    regions_of,
    scrub,
    show,
    states,
    until,
)


@dataclass(frozen=True)
class Case:
    layout: str
    members: int
    size: int
    copied: int
    """Of the member that moves, superblock included."""

    def __str__(self) -> str:
        return self.layout


CASES = [
    Case("raid5", 4, 48 * MIB, 17 * MIB),
    Case("raid1", 2, 16 * MIB, 17 * MIB),
    Case("raid0", 2, 32 * MIB, 16 * MIB),
    Case("linear", 1, 16 * MIB, 16 * MIB),
]


def ids() -> Iterator[UUID]:
    while True:
        yield uuid4()


def begin(array: Array, new: str, old: str = "d0", name: str = "vol") -> None:
    """Have the kernel begin. The task is left out: nobody else is to act on it."""
    before = array.document
    proposal, _ = replace.propose(
        before, array.observe(), before.lun(name), before.drive(old), before.drive(new), ids()
    )
    document = msgspec.structs.replace(proposal.document, tasks=before.tasks)
    array.carry_out(dataclasses.replace(proposal, document=document))


def look(array: Array, name: str = "vol") -> Copy:
    return replace.copied(array.document, array.observe(), array.document.lun(name))


def stored(array: Array, document: Document) -> None:
    array.store(document)
    array._run(converge(array.document, array.observe()))


def finish(array: Array, name: str = "vol") -> None:
    until("the copy", lambda: look(array, name).complete)
    for step in replace.flushes(array.document, array.document.lun(name)):
        array._actor.act(step)
    stored(array, replace.finished(array.document, array.document.lun(name)))
    assert array.trouble == {}


def abandon(array: Array, name: str = "vol") -> None:
    stored(array, replace.abandoned(array.document, array.document.lun(name)))
    assert array.trouble == {}


def plex_events(array: Array, name: str = "vol") -> int:
    with Control() as control:
        return control.info(names.plex_name(array.document.name, name)).event_nr


def health(array: Array, name: str = "vol") -> set[LegHealth]:
    raid = array.observed.raid(array.document.lun(name))
    return set(raid.legs) if raid is not None else {LegHealth.IN_SYNC}


def written(array: Array, drive: str) -> int:
    """Bytes that reached a drive since its port was made."""
    live = array.observed.devices[names.dm_uuid(array.document.drive(drive).uuid, "drive")]
    return counters.sectors_written(live.number) * SECTOR


@contextmanager
def slow_spare(slow: Slow, array: Array, milliseconds: int) -> Iterator[None]:
    """A drive s0 whose writes take their time."""
    array.add_drive(str(slow.directory / "s0"), size=slow.drive, name="s0", spare=True, force=False)
    slow.delay(milliseconds)
    yield
    slow.delay(0)


def replaced(name: str, table: Table) -> None:
    """Another table for a device, behind the array's back."""
    with Control() as control:
        control.replace(name, table, visible=False, flush=False, freeze=False)


def buffered(files: Files) -> list[str]:
    """The files that are wrong when they are read through the page cache, whose read-ahead dm-mirror fails where it has not
    copied yet (drivers/md/dm-raid1.c, mirror_map(), REQ_RAHEAD); the cache reads again what it needs.
    """
    Path("/proc/sys/vm/drop_caches").write_text("1")
    paths = sorted(files.point.glob("file*"))
    return [path.name for path in paths if sha256(path.read_bytes()).hexdigest() != checksum(str(path))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_member_moves_to_another_drive_under_writes(slow: Slow, lab: Lab, case: Case) -> None:
    """The raid never notices, the host only waits; the kernel moves the member's length and no more; nothing stays behind."""
    lab.create(case.members)
    with lab.opened() as array:
        disk = lun(array, "vol", case.layout, case.size, drives=[f"d{n}" for n in range(case.members)], exported=False)
        in_sync(array, "vol")
        files = Files.make(disk, lab.directory / "mnt", 4 * MIB)
        with slow_spare(slow, array, 10), Writer(files.room("writes", MIB), MIB) as writer:
            before, events, moved = our_devices(), plex_events(array), written(array, "s0")
            begin(array, "s0")
            looks = 0
            while not (copy := look(array)).complete:
                assert (copy.failed, health(array), plex_events(array)) == (False, {LegHealth.IN_SYNC}, events)
                assert set(states(array, "vol")) == {"in_sync"}
                if not looks:
                    shown = [row for row in regions(array.document, array.document.drive("s0")) if row["lun"]]
                    assert {row["status"] for row in shown} == {"regenerating"}
                    assert (files.wrong(), buffered(files), regions_of(array, "d0")) == ([], [], {"vol"})
                looks += 1
                writer.wait_for(1)
            assert looks
            assert copy.total * SECTOR == case.copied
            moved = written(array, "s0") - moved
            assert case.copied <= moved <= case.copied + (writer.acknowledged + 20) * 64 * 1024
            finish(array)
            writer.wait_for(5)
            assert (health(array), plex_events(array)) == ({LegHealth.IN_SYNC}, events)
        assert our_devices() == before
        assert (regions_of(array, "d0"), regions_of(array, "s0")) == (set(), {"vol"})
        assert not array.document.drive("s0").hot_spare
        array.fail_drive("d0")
        assert (show(array, "vol")["health"], files.wrong(), writer.wrong()) == ("healthy", [], [])
        files.umount()
        assert disagreements(array, "vol") == []
        digest = checksum(disk)
        array.stop()
    with lab.opened() as array:
        assert (show(array, "vol")["health"], checksum(disk_of(array, "vol"))) == ("healthy", digest)
        if case.layout.startswith("raid") and case.layout != "raid0":
            assert "0 mismatches" in scrub(array, "vol").message


@pytest.mark.parametrize("case", [CASES[1], CASES[3]], ids=str)
def test_a_copy_whose_destination_fails_is_taken_away_and_writes_go_on(slow: Slow, lab: Lab, case: Case) -> None:
    """The mirror holds writes that it cannot put on both drives; none of them is lost, and none fails."""
    lab.create(case.members)
    with lab.opened() as array, slow_spare(slow, array, 10):
        disk = lun(array, "vol", case.layout, case.size, drives=[f"d{n}" for n in range(case.members)], exported=False)
        in_sync(array, "vol")
        digest = fill(disk, 4 * MIB, seed=1, offset=12 * MIB)
        before, events = our_devices(), plex_events(array)
        with Writer(disk, 8 * MIB) as writer:
            begin(array, "s0")
            until("the first regions", lambda: look(array).done > 4 * MIB // SECTOR)
            port = names.drive_name(lab.name, "s0")
            replaced(port, ErrorTable(length=Sectors(array.document.drive("s0").size // SECTOR)).render())
            until("the failure", lambda: look(array).failed)
            copy = look(array)
            assert (copy.source_failed, copy.complete) == (False, False)
            abandon(array)
            writer.wait_for(20)
            assert (look(array).total, our_devices(), plex_events(array)) == (0, before, events)
            # Again, and this time the drive is taken for failed while the copy runs.
            begin(array, "s0")
            until("the first regions", lambda: look(array).done > 4 * MIB // SECTOR)
            array.fail_drive("s0")
            writer.wait_for(20)
        assert array.document.lun("vol").members[0].successor is None
        assert (our_devices(), health(array)) == (before, {LegHealth.IN_SYNC})
        assert (writer.error, writer.wrong()) == (None, [])
        assert sha256(read(disk, 12 * MIB, 4 * MIB)).hexdigest() == digest
        assert disagreements(array, "vol") == []


@pytest.mark.parametrize("case", [Case("raid5", 3, 48 * MIB, 25 * MIB), Case("linear", 1, 24 * MIB, 24 * MIB)], ids=str)
def test_a_copy_goes_on_from_its_log_after_a_power_cut(slow: Slow, lab: Lab, case: Case) -> None:
    """With writes under way at the cut. What was copied before is not copied again, and nothing that was acknowledged is lost."""
    lab.create(case.members)
    with lab.opened() as array:
        array.add_drive(str(slow.directory / "s0"), size=slow.drive, name="s0", spare=True, force=False)
        disk = lun(array, "vol", case.layout, case.size, drives=[f"d{n}" for n in range(case.members)], exported=False)
        in_sync(array, "vol")
        digest = fill(disk, 8 * MIB, seed=1)
        slow.delay(40)
        with Writer(disk, 2 * MIB, offset=8 * MIB) as writer:
            begin(array, "s0")
            until("a good part of the copy", lambda: look(array).done > 9 * MIB // SECTOR)
            assert not look(array).complete
            lab.power_cut()
    slow.delay(0)
    with lab.opened() as array:
        disk = disk_of(array, "vol")
        assert (checksum(disk, 8 * MIB), writer.wrong(disk)) == (digest, [])
        finish(array)
        assert 2 * MIB <= written(array, "s0") <= case.copied * 9 // 10
        array.fail_drive("d0")
        assert (checksum(disk, 8 * MIB), writer.wrong(disk)) == (digest, [])
        in_sync(array, "vol")
        assert disagreements(array, "vol") == []
        assert show(array, "vol")["health"] == "healthy"


def test_another_member_may_be_lost_during_the_copy(slow: Slow, lab: Lab) -> None:
    """The raid is degraded by that, as it would be without the copy, which goes on; afterwards a spare makes it whole."""
    lab.create(4)
    with lab.opened() as array, slow_spare(slow, array, 10):
        disk = lun(array, "vol", "raid5", 32 * MIB, drives=["d0", "d1", "d2"], exported=False)
        in_sync(array, "vol")
        digest = fill(disk, 16 * MIB, seed=1)
        with Writer(disk, 8 * MIB, offset=16 * MIB) as writer:
            begin(array, "s0")
            writer.wait_for(5)
            array.fail_drive("d1")
            writer.wait_for(5)
            assert states(array, "vol") == ["in_sync", "failed", "in_sync"]
            assert not look(array).failed
            slow.delay(0)
            finish(array)
            writer.wait_for(5)
        assert states(array, "vol") == ["in_sync", "failed", "in_sync"]
        assert (regions_of(array, "d0"), checksum(disk, 16 * MIB), writer.wrong()) == (set(), digest, [])
        assert recover(array, "vol", "d3").code == "S_OK"
        assert (checksum(disk, 16 * MIB), writer.wrong(), disagreements(array, "vol")) == (digest, [], [])


def test_a_source_that_cannot_be_read_is_told_and_regenerated_instead(slow: Slow, lab: Lab) -> None:
    """A few bad sectors on the drive that is to leave: what is on them has to come from the other members."""
    lab.create(2)
    with lab.opened() as array, slow_spare(slow, array, 10):
        disk = lun(array, "vol", "raid1", 16 * MIB, drives=["d0", "d1"], exported=False)
        in_sync(array, "vol")
        digest = fill(disk, 16 * MIB, seed=1)
        member, port = array.document.lun("vol").members[0], names.drive_name(lab.name, "d0")
        begin(array, "s0")
        replaced(port, with_hole(port, member.data[0].start + 15 * MIB // SECTOR))
        until("the failure", lambda: look(array).failed)
        copy = look(array)
        assert (copy.source_failed, copy.destination_failed, copy.log_failed) == (True, False, False)
        assert not copy.complete
        slow.delay(0)
        abandon(array)
        assert checksum(disk) == digest
        given_up = msgspec.structs.replace(member, state=MemberState.FAILED)
        stored(array, array.document.with_lun(array.document.lun("vol").with_member(0, given_up)))
        assert recover(array, "vol", "s0").code == "S_OK"
        assert (checksum(disk), disagreements(array, "vol"), regions_of(array, "d0")) == (digest, [], set())


def with_hole(port: str, sector: int) -> Table:
    """A port's table with eight sectors that cannot be read."""
    with Control() as control:
        (line,) = control.table(port)
    device, start = line.params.split()
    assert (line.kind, start) == ("linear", "0")
    after = sector + 8
    return (
        TargetLine(start=Sectors(0), length=Sectors(sector), kind="linear", params=f"{device} 0"),
        TargetLine(start=Sectors(sector), length=Sectors(8), kind="error", params=""),
        TargetLine(
            start=Sectors(after), length=Sectors(line.length - after), kind="linear", params=f"{device} {after}"
        ),
    )
