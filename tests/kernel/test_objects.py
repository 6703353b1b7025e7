"""MS-DMRP's list of storage objects on a real kernel: what it says while a drive comes back, and what is told of it when."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from blkrecov.array import Array
from blkrecov.dmrp import storage
from blkrecov.dmrp.information import (
    DeviceState,
    DiskInfo,
    RegionInfo,
    RegionStatus,
    VolumeInfo,
    VolumeStatus,
)
from blkrecov.dmrp.storage import ObjectList, oid, task_oid
from blkrecov.errors import ObjectNotFound
from blkrecov.events import Event, EventLog
from blkrecov.model import TaskState
from blkrecov.objects import ObjectFile
from blkrecov.proposal import Proposal
from blkrecov.tasks import RequestStatus
from blkrecov.units import KIB, MIB, Bytes
from tests.kernel.lab import Lab, blkrecov, in_sync, lun, run

SIZE: Final = 24 * MIB
HEIGHT: Final = {"DISK_INFO": 0, "REGION_INFO": 1, "VOLUME_INFO": 2, "DL_INFO": 3, "FS_INFO": 4}


@contextmanager
def mounted(disk: str, point: Path) -> Iterator[Path]:
    """A new ext4 on a LUN's disk."""
    run("mkfs.ext4", "-q", "-F", "-L", point.name, "-E", "nodiscard,lazy_itable_init=0", disk)
    point.mkdir()
    run("udevadm", "settle", "--timeout=30")
    run("mount", disk, str(point))
    try:
        yield point
    finally:
        run("umount", str(point))


def filled(point: Path) -> None:
    with (point / "data").open("wb") as file:
        file.write(os.urandom(6 * MIB))
        os.fsync(file.fileno())


def events(lab: Lab) -> list[Event]:
    return [event for event in EventLog(lab.state).read() if event.kind.value == "objects_changed"]


def told(lab: Lab, after: int = 0) -> list[dict[str, Any]]:
    """The notifications of all such events but the first few, in order."""
    return [item for event in events(lab)[after:] for item in event.data or ()]


def kept(array: Array, lab: Lab) -> ObjectFile:
    return ObjectFile(lab.settings.volatile / f"{array.document.array.hex[:8]}.objects")


def volumes(listing: ObjectList) -> dict[str, VolumeStatus]:
    return {item.name: item.status for item in listing.objects if isinstance(item, VolumeInfo)}


def disks(listing: ObjectList) -> dict[str, DeviceState]:
    return {item.name: item.device_state for item in listing.objects if isinstance(item, DiskInfo)}


def regions(listing: ObjectList, drive: int, *, used: bool = True) -> set[RegionStatus]:
    return {
        item.status
        for item in listing.objects
        if isinstance(item, RegionInfo) and item.disk_id == drive and bool(item.vol_id) is used
    }


def slowed(array: Array, rate: int) -> None:
    array.carry_out(Proposal(document=msgspec.structs.replace(array.document, rate_max=rate), why="for the test"))


def test_a_drive_comes_back(lab: Lab, tmp_path: Path) -> None:
    """Two LUNs in use on it: what is in progress stands in the list before the answer, and nothing is told until after it."""
    lab.create(3, size=Bytes(100 * MIB))
    with lab.opened() as array:
        mirror = lun(array, "mirror", "raid1", SIZE, drives=("d0", "d1"))
        parity = lun(array, "parity", "raid5", SIZE, drives=("d0", "d1", "d2"))
        drive = oid(array.document.drive("d1").uuid)
        for name in ("mirror", "parity"):
            in_sync(array, name)
        with mounted(mirror, tmp_path / "mirror") as first, mounted(parity, tmp_path / "parity") as second:
            array.observe()
            whole = array.objects()
            assert volumes(whole) == {"mirror": VolumeStatus.HEALTHY, "parity": VolumeStatus.HEALTHY}
            assert set(disks(whole).values()) == {DeviceState.HEALTHY}
            assert regions(whole, drive) == {RegionStatus.OK}
            array.fail_drive("d1")
            array.tell_objects()
            lost = array.objects()
            assert volumes(lost) == dict.fromkeys(("mirror", "parity"), VolumeStatus.FAILED_REDUNDANCY)
            assert disks(lost) == {"d0": DeviceState.HEALTHY, "d1": DeviceState.BAD, "d2": DeviceState.HEALTHY}
            assert regions(lost, drive) == regions(lost, drive, used=False) == {RegionStatus.FAILED}
            filled(first)
            filled(second)
            slowed(array, 256 * KIB)
            before = array.objects()
            seen = len(events(lab))

            task = array.reconnect(*array.propose_reconnect("d1"))

            answered = kept(array, lab)
            assert task.state is TaskState.IN_PROGRESS
            assert len(events(lab)) == seen
            waiting = answered.untold()
            started = array.objects()
            assert answered.untold() == waiting
            assert [item.action.name for item in waiting].count("CREATED") == 3
            assert max(item.last_known_state for item in started.objects) == started.sequence > before.sequence
            assert volumes(started) == {"mirror": VolumeStatus.SYNCHING, "parity": VolumeStatus.REGENERATING}
            assert disks(started)["d1"] is DeviceState.HEALTHY
            assert regions(started, drive) == {RegionStatus.REGENERATING}
            assert regions(started, drive, used=False) == {RegionStatus.OK}
            number = task_oid(array.document, task.id)
            assert [item.status for item in started.tasks] == [RequestStatus.REQ_IN_PROGRESS] * 3
            assert started.task(number).storage_id == drive
            shown = blkrecov_task(lab, array, task.id)
            assert (shown["status"], shown["type"], shown["id"]) == ("in_progress", "synching", number)

            slowed(array, 0)
            ended = array.wait(task.id, timeout_s=60)
            assert ended.state is TaskState.COMPLETED, ended
            after = array.objects()
            assert volumes(after) == volumes(whole)
            assert disks(after) == disks(whole)
            assert regions(after, drive) == {RegionStatus.OK}
            assert after.tasks == ()
            with pytest.raises(ObjectNotFound):
                after.task(number)
            again = array.reconnect(*array.propose_reconnect("d0"))
            [completion] = kept(array, lab).untold()
            assert (again.state, completion.object) == (TaskState.COMPLETED, storage.task_info(array.document, again))
            array.tell_objects()
        news = told(lab, seen)
        followed(before, news, after)
        ended_as = [item["object"] for item in news if item["type"] == "TASK_INFO" and item["action"] == "MODIFIED"]
        of_it = [item for item in ended_as if item["id"] == number]
        assert (of_it[-1]["status"], of_it[-1]["percentComplete"]) == ("completed", 100)
        assert [item["object"].get("id") for item in news].index(number) < news.index(
            next(item for item in news if item["type"] == "VOLUME_INFO")
        )
        assert kept(array, lab).untold() == ()


def blkrecov_task(lab: Lab, array: Array, number: int) -> dict[str, Any]:
    """What the command shows of a task to another process, while this one waits."""
    with array.unlocked():
        shown: dict[str, Any] = blkrecov(lab, "task", "show", str(number), "--json").json["dmrp"]
    array.reload()
    return shown


def followed(before: ObjectList, news: list[dict[str, Any]], after: ObjectList) -> None:
    """A client that had the list, and heard only this, has it still; and it never heard of what it does not know."""
    known = {key(view): view for view in views(before)}
    for item in news:
        view = item["object"]
        if item["type"] == "TASK_INFO":
            continue
        present = key(view) in known
        assert present is (item["action"] != "CREATED"), item
        below = [view[name] for name in ("diskId", "storageId") if name in view]
        assert all(any(other.get("id") == number for other in known.values()) for number in below), item
        if present:
            assert view["lastKnownState"] >= known[key(view)]["lastKnownState"]
        if item["action"] == "DELETED":
            del known[key(view)]
        else:
            known[key(view)] = view
    assert {name: numbered(view) for name, view in known.items()} == {
        key(view): numbered(view) for view in views(after)
    }


def views(listing: ObjectList) -> list[dict[str, Any]]:
    from blkrecov.dmrp.notify import view

    return [view(item) for item in listing.objects]


def key(view: dict[str, Any]) -> tuple[str, object]:
    return view["kind"], view.get("path", view.get("id"))


def numbered(view: dict[str, Any]) -> dict[str, Any]:
    """But for what is no change."""
    return {name: value for name, value in view.items() if name != "availableAllocationUnits"}


def test_mount_points_and_file_systems_come_and_go(lab: Lab, tmp_path: Path) -> None:
    """With mount and umount, seen by the next command; what comes back has a number that it never had."""
    lab.create(1)
    with lab.opened() as array:
        disk = lun(array, "vol", "linear", 8 * MIB)
        volume = oid(array.document.lun("vol").uuid)
    seen = len(events(lab))
    numbers = []
    for _ in range(2):
        with mounted(disk, tmp_path / "v") as point:
            found = blkrecov(lab, "objects", "--json").json
            [letter] = [item for item in found if item["kind"] == "mountPoint"]
            [system] = [item for item in found if item["kind"] == "fileSystem"]
            assert (letter["path"], letter["storageId"], letter["isUsed"]) == (str(point), volume, True)
            assert (system["name"], system["fsType"], system["label"]) == ("ext4", "other", "v")
            assert 0 < system["availableAllocationUnits"] < system["totalAllocationUnits"]
            assert [item["fsId"] for item in found if item["kind"] == "volume"] == [system["id"]]
            numbers.append(letter["lastKnownState"])
            shown = blkrecov(lab, "objects").out
            assert "mount point" in shown
            assert "ext4" in shown
        point.rmdir()
        gone = blkrecov(lab, "objects", "--json").json
        assert {item["kind"] for item in gone} == {"disk", "region", "volume"}
    assert numbers[1] > numbers[0]
    actions = [(item["action"], item["type"]) for item in told(lab, seen)]
    assert (
        actions
        == [
            ("CREATED", "DL_INFO"),
            ("CREATED", "FS_INFO"),
            ("MODIFIED", "VOLUME_INFO"),
            ("MODIFIED", "VOLUME_INFO"),
            ("DELETED", "FS_INFO"),
            ("DELETED", "DL_INFO"),
        ]
        * 2
    )


def test_who_dies_before_it_has_told_leaves_that_to_the_next(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list has changed, and so has what is to be told of it."""
    lab.create(2)
    with lab.opened() as array:
        lun(array, "vol", "raid1", 8 * MIB)
        in_sync(array, "vol")
        array.tell_objects()
        seen = len(events(lab))
        array.fail_drive("d1")
        array.objects()
        nothing: Callable[[], None] = lambda: None  # noqa: E731
        monkeypatch.setattr(array, "tell_objects", nothing)
    assert len(events(lab)) == seen
    with lab.opened():
        pass
    failed = [item["object"]["deviceState"] for item in told(lab, seen) if item["type"] == "DISK_INFO"]
    assert failed == [["bad"]]
