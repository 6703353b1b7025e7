"""An array that is opened after something has happened to its drives: missing, damaged, copied, moved, split in two."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blkrecov.array import Array
from blkrecov.drives import label as format_
from blkrecov.errors import DeviceInUse, InvalidDisk, MetadataCorrupt
from blkrecov.locks import Lock
from blkrecov.settings import Settings
from blkrecov.units import MIB
from tests.kernel.lab import (
    Lab,
    checksum,
    copy,
    disagreements,
    disk_of,
    fail_at_once,
    fill,
    flip,
    in_sync,
    lun,
    recover,
    run,
    show,
    states,
    write,
)

SIZE = 8 * MIB


def mirror(lab: Lab, drives: int = 2) -> str:
    """A synchronised raid1 on d0 and d1 with random contents, and the array stopped: its checksum."""
    lab.create(drives)
    with lab.opened() as array:
        disk = lun(array, "vol", "raid1", SIZE, drives=("d0", "d1"), exported=False)
        in_sync(array, "vol")
        digest = fill(disk, SIZE, seed=1)
        array.stop()
    return digest


def take_away(lab: Lab, name: str) -> Path:
    """Put a drive's file where no search goes."""
    hidden = lab.directory / "away/and/out"
    hidden.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(lab.path(name), hidden / name))


def bring_back(lab: Lab, name: str) -> None:
    shutil.move(lab.directory / "away/and/out" / name, lab.path(name))


def test_a_missing_drive_leaves_the_lun_degraded(lab: Lab) -> None:
    """The array comes up with what is there, says what is not, and gives the contents."""
    digest = mirror(lab)
    take_away(lab, "d1")
    with lab.opened() as array:
        assert array.document.drive("d1").status.value == "removed"
        assert "d1" in array.document.drive("d1").reason
        shown = show(array, "vol")
        assert (shown["status"], shown["health"], states(array, "vol")) == (
            "online",
            "failed_redundancy",
            ["in_sync", "missing"],
        )
        assert checksum(disk_of(array, "vol")) == digest


@pytest.mark.parametrize("restart", ["stop", "power_cut"])
def test_a_drive_that_was_away_is_not_taken_for_in_sync(lab: Lab, restart: str) -> None:
    """It has missed writes and its superblock does not say so; no read may be answered from it until it is regenerated."""
    mirror(lab)
    take_away(lab, "d0")
    with lab.opened() as array:
        digest = fill(disk_of(array, "vol"), SIZE, seed=2)
    getattr(lab, restart)()
    bring_back(lab, "d0")
    with lab.opened() as array:
        assert array.document.drive("d0").status.value == "online"
        assert states(array, "vol") == ["failed", "in_sync"]
        assert checksum(disk_of(array, "vol")) == digest
        task = recover(array, "vol")
        assert (task.code, task.objects) == ("S_OK", ("vol", "d0"))
        assert (checksum(disk_of(array, "vol")), disagreements(array, "vol")) == (digest, [])


@pytest.mark.parametrize(("layout", "members"), [("raid1", 2), ("raid5", 3)])
def test_a_failure_that_only_the_kernel_saw_is_remembered_over_a_power_cut(lab: Lab, layout: str, members: int) -> None:
    """No process of ours was looking when the drive went: the others' superblocks are the only record."""
    lab.create(members, spares=1)
    with lab.opened() as array:
        disk = lun(array, "vol", layout, SIZE, members=members, exported=False)
        in_sync(array, "vol")
        fill(disk, SIZE, seed=1)
    fail_at_once(["blkrecov-lab-drive-d1"])
    digest = fill(disk, SIZE, seed=2)
    lab.power_cut()
    with lab.opened() as array:
        assert (states(array, "vol")[1], show(array, "vol")["health"]) == ("failed", "failed_redundancy")
        assert checksum(disk_of(array, "vol")) == digest
        assert recover(array, "vol").code == "S_OK"
        assert (checksum(disk_of(array, "vol")), disagreements(array, "vol")) == (digest, [])


def test_a_truncated_drive_is_refused_with_its_reason(lab: Lab) -> None:
    """Its end is missing: it is not used, the LUN is degraded, and the reason names the sizes."""
    digest = mirror(lab)
    os.truncate(lab.path("d1"), 20 * MIB)
    with lab.opened() as array:
        drive = array.document.drive("d1")
        assert drive.status.value == "failed"
        assert "its end is missing" in drive.reason
        assert show(array, "vol")["health"] == "failed_redundancy"
        assert checksum(disk_of(array, "vol")) == digest


def test_a_damaged_label_is_read_from_its_copy_and_mended(lab: Lab) -> None:
    """One bit: the drive is known all the same, and its LUN whole. The next bit may be the copy's."""
    digest = mirror(lab)
    for damaged in (100, lab.path("d0").stat().st_size - 4096 + 100):
        flip(lab.path("d0"), damaged)
        with lab.opened() as array:
            assert show(array, "vol")["health"] == "healthy"
            assert checksum(disk_of(array, "vol")) == digest
            array.stop()


def test_a_drive_with_both_labels_damaged_is_not_used(lab: Lab) -> None:
    """There is nothing left that says who it is."""
    digest = mirror(lab)
    flip(lab.path("d0"), 100)
    flip(lab.path("d0"), lab.path("d0").stat().st_size - 4096 + 100)
    with lab.opened() as array:
        assert array.document.drive("d0").status.value == "failed"
        assert (states(array, "vol"), checksum(disk_of(array, "vol"))) == (["failed", "in_sync"], digest)


def test_a_damaged_configuration_is_read_from_the_other_drives(lab: Lab) -> None:
    """Both slots of one drive: the others carry the newest."""
    digest = mirror(lab)
    sequence = newest(lab, "d1")
    for slot in (0, 1):
        flip(lab.path("d0"), format_.plan_layout(lab.path("d0").stat().st_size).slot_at(slot) + 4096 + 10)
    with lab.opened() as array:
        assert array.document.sequence > sequence
        assert show(array, "vol")["health"] == "healthy"
        assert checksum(disk_of(array, "vol")) == digest


def newest(lab: Lab, name: str) -> int:
    """The sequence number of the newest configuration on a drive that is not attached."""
    from blkrecov.drives.store import DriveStore, IoCounter

    with DriveStore(str(lab.path(name)), IoCounter(), writable=False) as store:
        slot = format_.newest(store.read_slots(store.read_label().label))
    assert slot is not None
    return slot.sequence


def test_a_stale_clone_beside_the_original_is_not_used(lab: Lab) -> None:
    """A copy of a drive's file made earlier says that it is that drive: neither is guessed at, and contents are right."""
    mirror(lab)
    (lab.directory / "away").mkdir()
    copy(lab.path("d0"), lab.directory / "away/d0")
    with lab.opened() as array:
        digest = fill(disk_of(array, "vol"), SIZE, seed=2)
        (lab.directory / "away/d0").replace(lab.directory / "copy-of-d0")
        # While the original is attached there is no doubt.
        array.reload()
        assert states(array, "vol") == ["in_sync", "in_sync"]
        array.stop()
    with lab.opened() as array:
        assert "both say" in array.document.drive("d0").reason
        assert (states(array, "vol"), checksum(disk_of(array, "vol"))) == (["missing", "in_sync"], digest)


def test_a_copy_that_somebody_looks_at_is_not_taken_for_the_drive(lab: Lab) -> None:
    """Attached it looks as if it served. It has the configuration before the last, as a drive may have that was cut off."""
    digest = mirror(lab)
    with lab.opened() as array:
        copy(lab.path("d0"), lab.directory / "copy-of-d0")
        array.stop()
    device = run("losetup", "--find", "--show", str(lab.directory / "copy-of-d0"))
    try:
        with lab.opened() as array:
            assert "both say" in array.document.drive("d0").reason
            assert (states(array, "vol"), checksum(disk_of(array, "vol"))) == (["missing", "in_sync"], digest)
            array.stop()
    finally:
        run("losetup", "--detach", device)
        (lab.directory / "copy-of-d0").unlink()


def test_a_stale_clone_in_place_of_the_original_is_not_taken_for_in_sync(lab: Lab) -> None:
    """An old backup put back: the configuration on it is old, and so is its contents."""
    mirror(lab)
    copy(lab.path("d0"), lab.directory / "away")
    with lab.opened() as array:
        digest = fill(disk_of(array, "vol"), SIZE, seed=2)
        array.stop()
    (lab.directory / "away").replace(lab.path("d0"))
    with lab.opened() as array:
        assert checksum(disk_of(array, "vol")) == digest


def test_an_array_that_ran_in_two_halves_is_refused(lab: Lab) -> None:
    """Each half holds writes that somebody was told are safe: choosing is for people."""
    mirror(lab)
    for name, other in (("d0", "d1"), ("d1", "d0")):
        take_away(lab, other)
        forget_versions(lab)  # Each half ran on another machine.
        with lab.opened() as array:
            fill(disk_of(array, "vol"), SIZE, seed=3)
            array.stop()
        bring_back(lab, other)
        assert lab.path(name).exists()
    forget_versions(lab)
    with pytest.raises(InvalidDisk, match="two histories"), lab.opened():
        pass
    lab.drives.clear()


def forget_versions(lab: Lab) -> None:
    """What the remedy of the error says: go on with what is found."""
    for file in lab.state.glob("*.sequence"):
        file.unlink()


def test_the_drive_that_failed_is_not_believed_when_the_others_are_away(lab: Lab) -> None:
    """Its configuration calls it well, and its contents are from before: the machine knows that there is a newer one."""
    mirror(lab)
    with lab.opened() as array:
        old = checksum(disk_of(array, "vol"))
        array.fail_drive("d1")
        fill(disk_of(array, "vol"), SIZE, seed=4)
        array.stop()
    take_away(lab, "d0")
    with pytest.raises(MetadataCorrupt, match="was written later") as refused, lab.opened():
        pass
    assert ".sequence" in refused.value.remedy
    assert str(lab.path("d0")) in refused.value.message
    forget_versions(lab)
    with lab.opened() as array:
        assert checksum(disk_of(array, "vol")) == old
        array.stop()
    lab.drives.clear()


def test_a_second_process_waits_and_is_told_who_it_waits_for(lab: Lab) -> None:
    """One process at a time; the one that has the lock is named."""
    lab.create(1)
    with lab.opened() as array, pytest.raises(DeviceInUse, match=f"process {os.getpid()} is working on array lab"):
        Lock(lab.settings, array.document.array, "lab").take(patience_s=0.1)


def test_two_commands_at_once_both_succeed(lab: Lab) -> None:
    """Neither loses the other's change."""
    lab.create(2)
    environment = {**os.environ, **lab.environment}
    command = [
        sys.executable,
        "-m",
        "blkrecov.cli.main",
        "lun",
        "create",
        "--layout",
        "raid1",
        "--size",
        "4M",
        "--no-export",
    ]
    both = [subprocess.Popen([*command, name], env=environment, stdout=subprocess.DEVNULL) for name in ("a", "b")]
    assert [process.wait(60) for process in both] == [0, 0]
    with lab.opened() as array:
        assert {item.name for item in array.document.luns} == {"a", "b"}
        assert [show(array, name)["status"] for name in ("a", "b")] == ["online", "online"]


def test_a_detached_loop_device_goes_on_while_it_is_used(lab: Lab) -> None:
    """losetup -d of a drive in use only marks it: contents stay, and the next start attaches the file anew."""
    digest = mirror(lab)
    with lab.opened() as array:
        loop = array._backings[array.document.drive("d0").uuid]
        run("losetup", "--detach", loop)
        assert checksum(disk_of(array, "vol")) == digest
    with lab.opened() as array:
        assert show(array, "vol")["health"] == "healthy"
        array.stop()
    with lab.opened() as array:
        assert (states(array, "vol"), checksum(disk_of(array, "vol"))) == (["in_sync", "in_sync"], digest)
        assert disagreements(array, "vol") == []


def test_stop_and_start_in_a_row_use_the_right_files(lab: Lab) -> None:
    """udev may keep a loop device for a moment after its detaching: that one is not to be used, nor given to another drive."""
    lab.create(2)
    with lab.opened() as array:
        digest = fill(lun(array, "vol", "raid0", SIZE, exported=False), SIZE, seed=1)
        array.stop()
    for _ in range(2):
        with lab.opened() as array:
            assert checksum(disk_of(array, "vol")) == digest
            held = [os.open(device, os.O_RDONLY | os.O_CLOEXEC) for device in list(array._backings.values())]
            try:
                array.stop()
                with Array.opened(
                    Settings(state=lab.directory / "elsewhere", directories=(str(lab.directory),))
                ) as again:
                    for descriptor in held:
                        os.close(descriptor)
                    held = []
                    assert checksum(disk_of(again, "vol")) == digest
                    again.stop()
            finally:
                for descriptor in held:
                    os.close(descriptor)


@pytest.mark.parametrize("directories", [True, False])
def test_moved_drives_are_found_by_their_labels(lab: Lab, directories: bool) -> None:
    """In a directory that is configured, or on any mounted file system; what this machine remembers is not needed."""
    digest = mirror(lab)
    moved = lab.directory.with_name(lab.directory.name + "-moved")
    lab.directory.rename(moved)
    lab.directory.mkdir()
    shutil.rmtree(moved / "state")
    settings = Settings(state=lab.state, directories=(str(moved),) if directories else ())
    try:
        with Array.opened(settings) as array:
            assert {drive.path for drive in array.document.drives} == {str(moved / "d0"), str(moved / "d1")}
            assert checksum(disk_of(array, "vol")) == digest
            array.stop()
        lab.drives.clear()
    finally:
        shutil.rmtree(moved)


def test_bytes_written_behind_the_back_of_a_drive_do_not_confuse_its_slots(lab: Lab) -> None:
    """The newest slot of every drive torn: this machine knows that there was one, and asks before it goes on with the one before,
    which lost one change and nothing older.
    """
    digest = mirror(lab)
    before = newest(lab, "d0")
    for name in ("d0", "d1"):
        layout = format_.plan_layout(lab.path(name).stat().st_size)
        at = next(slot for slot in (0, 1) if sequence_in(lab, name, slot) == before)
        write(str(lab.path(name)), layout.slot_at(at) + 4096, os.urandom(4096))
        assert newest(lab, name) == before - 1
    with pytest.raises(MetadataCorrupt, match=f"version {before} was written later"), lab.opened():
        pass
    forget_versions(lab)
    with lab.opened() as array:
        assert (states(array, "vol"), checksum(disk_of(array, "vol"))) == (["in_sync", "in_sync"], digest)


def sequence_in(lab: Lab, name: str, slot: int) -> int:
    from blkrecov.drives.store import DriveStore, IoCounter

    with DriveStore(str(lab.path(name)), IoCounter(), writable=False) as store:
        found = store.read_slots(store.read_label().label)[slot]
    return found.sequence if isinstance(found, format_.Slot) else -1
