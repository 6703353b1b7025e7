"""MS-DMRP's storage objects: what each state of the array is called, what a change is told as, and in which bytes."""

import dataclasses
from collections.abc import Iterator
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import family, tasks
from blkrecov.dmrp import notify, storage
from blkrecov.dmrp.information import (
    DeviceState,
    DiskInfo,
    DriveLetterInfo,
    FileSystemInfo,
    FileSystemType,
    ProgressType,
    RegionInfo,
    RegionStatus,
    RegionType,
    StorageObject,
    TaskInfo,
    VolumeInfo,
    VolumeLayout,
    VolumeStatus,
)
from blkrecov.dmrp.notify import Action, Notification, frame, modified
from blkrecov.dmrp.storage import Mounted, ObjectList, listed, objects_of, oid, task_oid
from blkrecov.errors import Code, ObjectNotFound
from blkrecov.model import (
    Document,
    DriveStatus,
    Extent,
    Health,
    Layout,
    Lun,
    LunStatus,
    MemberState,
    Phase,
    Restore,
    Successor,
    Task,
    TaskKind,
    TaskState,
)
from blkrecov.observed import Observed
from blkrecov.tasks import RequestStatus
from tests.unit.arrays import drive, drives, raid_words, seen, with_lun, with_states

GOOD, LOST = MemberState.IN_SYNC, MemberState.FAILED
REBUILDING, RETURNING = MemberState.REBUILDING, MemberState.RETURNING
HERE = Mounted(lun=UUID(int=1), part="", path="/srv/v", fstype="ext4", total=100, available=60, unit=4096)


def mirror() -> tuple[Document, Lun]:
    return with_lun(drives(3), Layout.RAID1, on=("d0", "d1"))


def statuses(document: Document, observed: Observed, name: str) -> set[RegionStatus]:
    """Of what LUN v has on a drive."""
    found = listed(document, observed, ()).objects
    disk, volume = oid(document.drive(name).uuid), oid(document.lun("v").uuid)
    return {
        item.status for item in found if isinstance(item, RegionInfo) and (item.disk_id, item.vol_id) == (disk, volume)
    }


def volume(document: Document, observed: Observed, mounts: tuple[Mounted, ...] = ()) -> VolumeInfo:
    [found] = [item for item in listed(document, observed, mounts).objects if isinstance(item, VolumeInfo)]
    return found


# What a state is called.


@pytest.mark.parametrize(
    ("status", "failing", "state"),
    [
        (DriveStatus.UNKNOWN, "", 0x0),
        (DriveStatus.ONLINE, "", 0x1),
        (DriveStatus.NOT_READY, "", 0x10),
        (DriveStatus.OFFLINE, "", 0x40),
        (DriveStatus.FAILED, "", 0x8),
        (DriveStatus.REMOVED, "", 0x20),
        (DriveStatus.ONLINE, "it fails too often", 0x80),
        (DriveStatus.FAILED, "it fails too often", 0x88),
    ],
)
def test_a_drive_s_state(status: DriveStatus, failing: str, state: int) -> None:
    """A drive that is set aside serves, but is not healthy; each state of a drive that DMRP would reconnect has its bit."""
    assert storage.device_state(msgspec.structs.replace(drive(0), status=status, failing=failing)) == state


def test_every_drive_status_has_a_state() -> None:
    """A new one must not surprise a client."""
    for status in DriveStatus:
        assert storage.device_state(msgspec.structs.replace(drive(0), status=status)) in DeviceState


@pytest.mark.parametrize(
    ("layout", "status", "health", "found"),
    [
        (Layout.RAID1, LunStatus.ONLINE, Health.HEALTHY, VolumeStatus.HEALTHY),
        (Layout.RAID1, LunStatus.ONLINE, Health.REBUILDING, VolumeStatus.SYNCHING),
        (Layout.RAID10, LunStatus.ONLINE, Health.REBUILDING, VolumeStatus.SYNCHING),
        (Layout.RAID4, LunStatus.ONLINE, Health.REBUILDING, VolumeStatus.REGENERATING),
        (Layout.RAID5, LunStatus.ONLINE, Health.REBUILDING, VolumeStatus.REGENERATING),
        (Layout.RAID6, LunStatus.ONLINE, Health.REBUILDING, VolumeStatus.REGENERATING),
        (Layout.RAID5, LunStatus.NOT_READY, Health.REBUILDING, VolumeStatus.INITIALIZING),
        (Layout.LINEAR, LunStatus.NOT_READY, Health.FAILED, VolumeStatus.FAILED),
        (Layout.LINEAR, LunStatus.ONLINE, Health.FAILING, VolumeStatus.FAILING),
        (Layout.RAID1, LunStatus.ONLINE, Health.FAILING_REDUNDANCY, VolumeStatus.FAILING_REDUNDANCY),
        (Layout.RAID1, LunStatus.ONLINE, Health.FAILED_REDUNDANCY, VolumeStatus.FAILED_REDUNDANCY),
        (Layout.RAID6, LunStatus.ONLINE, Health.FAILED_REDUNDANCY_FAILING, VolumeStatus.FAILED_REDUNDANCY_FAILING),
        (Layout.RAID1, LunStatus.FAILED, Health.FAILED, VolumeStatus.FAILED),
        (Layout.RAID1, LunStatus.OFFLINE, Health.UNKNOWN, VolumeStatus.UNKNOWN),
    ],
)
def test_a_lun_s_status(layout: Layout, status: LunStatus, health: Health, found: VolumeStatus) -> None:
    """The specification has a word of its own for mirrors, and one for parity."""
    assert storage.volume_status(layout, status, health) is found


@given(st.sampled_from(Layout), st.sampled_from(LunStatus), st.sampled_from(Health))
def test_every_health_has_a_status(layout: Layout, status: LunStatus, health: Health) -> None:
    """Only what is not known is told as that."""
    found = storage.volume_status(layout, status, health)
    assert (found is VolumeStatus.UNKNOWN) is (health is Health.UNKNOWN)


@pytest.mark.parametrize(
    ("layout", "on", "found"),
    [
        (Layout.LINEAR, ("d0",), VolumeLayout.SIMPLE),
        (Layout.LINEAR, ("d0", "d1"), VolumeLayout.SPANNED),
        (Layout.RAID0, (), VolumeLayout.STRIPE),
        (Layout.RAID1, (), VolumeLayout.MIRROR),
        (Layout.RAID10, (), VolumeLayout.MIRROR),
        (Layout.RAID4, (), VolumeLayout.RAID5),
        (Layout.RAID5, (), VolumeLayout.RAID5),
        (Layout.RAID6, (), VolumeLayout.RAID5),
    ],
)
def test_a_layout_is_called_what_behaves_like_it(layout: Layout, on: tuple[str, ...], found: VolumeLayout) -> None:
    """A linear LUN that needs two drives spans them."""
    _, lun = with_lun(drives(4, 48), layout, on=on, mib=64 if len(on) > 1 else 32)
    if layout is Layout.LINEAR:
        assert len({member.drive for member in lun.members}) == len(on)
    assert storage.volume_layout(lun) is found


@pytest.mark.parametrize(
    ("state", "legs", "action", "found"),
    [
        (GOOD, "AA", "idle", RegionStatus.OK),
        (LOST, "AD", "idle", RegionStatus.FAILED),
        (GOOD, "AD", "idle", RegionStatus.FAILED),
        (REBUILDING, "Aa", "recover", RegionStatus.REGENERATING),
        (RETURNING, "AD", "idle", RegionStatus.REGENERATING),
        (GOOD, "aa", "resync", RegionStatus.REGENERATING),
        (GOOD, "aa", "idle", RegionStatus.NEEDSRESYNC),
    ],
)
def test_a_member_s_regions(state: MemberState, legs: str, action: str, found: RegionStatus) -> None:
    """What the document says of a member, and what the kernel does. All of its extents share it."""
    document, lun = mirror()
    document = document.with_lun(with_states(lun, GOOD, state))
    observed = seen(document, raid_words(legs, action, "32/64" if action != "idle" else "64/64"))
    assert statuses(document, observed, "d1") == {found}


def test_the_members_that_a_rebuild_reads_are_well() -> None:
    """Only the substitute is regenerated."""
    document, lun = mirror()
    document = document.with_lun(with_states(lun, GOOD, REBUILDING))
    assert statuses(document, seen(document, raid_words("Aa", "recover", "32/64")), "d0") == {RegionStatus.OK}


def test_regions_on_drives_that_are_not_well() -> None:
    """With a drive all of its regions have failed, what is free too; one that is set aside is failing."""
    document, _ = mirror()
    failed = msgspec.structs.replace(document.drive("d1"), status=DriveStatus.FAILED)
    gone = document.with_drive(failed)
    objects = listed(gone, seen(gone, raid_words("AD")), ()).objects
    on = [item for item in objects if isinstance(item, RegionInfo) and item.disk_id == oid(failed.uuid)]
    assert {item.region_type for item in on} == {RegionType.SUBDISK, RegionType.FREE}
    assert {item.status for item in on} == {RegionStatus.FAILED}
    aside = document.with_drive(msgspec.structs.replace(document.drive("d1"), failing="it fails too often"))
    assert statuses(aside, seen(aside, raid_words("AA")), "d1") == {RegionStatus.FAILING}


def test_regions_that_wait_need_a_resync() -> None:
    """A rebuild that is held, and members that may disagree: nobody is at work on them."""
    document, lun = mirror()
    held = msgspec.structs.replace(with_states(lun, GOOD, REBUILDING), frozen=True)
    document = document.with_lun(held)
    assert statuses(document, seen(document, raid_words("Aa", "frozen")), "d1") == {RegionStatus.NEEDSRESYNC}
    document = document.with_lun(msgspec.structs.replace(lun, suspect=True))
    assert statuses(document, seen(document, raid_words("AA")), "d1") == {RegionStatus.NEEDSRESYNC}


def test_where_a_member_moves_to_is_a_region_already() -> None:
    """With an id of its own, so that the member's keeps its."""
    document, lun = mirror()
    there = (Extent(16384 + 2048, 4096),)
    successor = Successor(uuid=UUID(int=9), drive=document.drive("d2").uuid, data=there, meta=(), log=())
    document = document.with_lun(lun.with_member(0, msgspec.structs.replace(lun.members[0], successor=successor)))
    observed = seen(document, raid_words("AA"))
    assert statuses(document, observed, "d2") == {RegionStatus.REGENERATING}
    assert statuses(document, observed, "d0") == {RegionStatus.OK}
    assert volume(document, observed).member_count == volume(*loaded()).member_count + 1


def loaded() -> tuple[Document, Observed]:
    document, _ = mirror()
    return document, seen(document, raid_words("AA"))


def test_a_restore_s_log_is_a_region() -> None:
    """It is no member's."""
    document, lun = mirror()
    log = (Extent(16384 + 2048, 2048),)
    restore = Restore(uuid=UUID(int=9), source=lun.uuid, drive=document.drive("d2").uuid, log=log)
    document = document.with_lun(msgspec.structs.replace(lun, restore=restore))
    assert statuses(document, seen(document, raid_words("AA")), "d2") == {RegionStatus.OK}


# What is in the list.


def test_the_regions_of_a_drive_are_all_of_its_room() -> None:
    """Used and free ones, in order and without gaps; the label is none of them."""
    document, observed = loaded()
    for each in document.drives:
        regions = [
            item
            for item in listed(document, observed, ()).objects
            if isinstance(item, RegionInfo) and item.disk_id == oid(each.uuid)
        ]
        position = each.data_start * 512
        for region in regions:
            assert region.start == position
            position += region.length
        assert position == (each.data_start + each.data_length) * 512


def test_what_a_mount_point_and_a_file_system_are() -> None:
    """One file system may be mounted twice; that of a partition is another one."""
    document, observed = loaded()
    lun = document.lun("v").uuid
    here = dataclasses.replace(HERE, lun=lun)
    mounts = (
        here,
        dataclasses.replace(here, path="/mnt"),
        dataclasses.replace(here, part="1", path="/boot", fstype="vfat"),
    )
    objects = listed(document, observed, mounts).objects
    assert [item.path for item in objects if isinstance(item, DriveLetterInfo)] == ["/srv/v", "/mnt", "/boot"]
    systems = {item.fs_type: item for item in objects if isinstance(item, FileSystemInfo)}
    assert set(systems) == {FileSystemType.OTHER, FileSystemType.FAT}
    assert systems[FileSystemType.OTHER].available_allocation_units == 60
    assert {item.storage_id for item in systems.values()} == {oid(lun)}
    assert volume(document, observed, mounts).fs_id == systems[FileSystemType.OTHER].id
    assert volume(document, observed).fs_id == 0


def test_ids_are_unique_and_stay() -> None:
    """In every process the same, positive, and of 63 bits."""
    document, observed = loaded()
    ids = [key for key, _ in objects_of(listed(document, observed, ()))]
    assert len(set(ids)) == len(ids)
    assert all(isinstance(number, int) and 0 < number < 2**63 for number in ids)
    assert oid(UUID(int=1)) == 2703480833569895348


# Tasks.


def task(state: TaskState, code: Code = Code.S_OK, kind: TaskKind = TaskKind.RECOVER, number: int = 1) -> Task:
    begun = Task(
        id=number, kind=kind, lun=UUID(int=5), objects=("v",), state=state, phases=(Phase.REBUILD,), percent=40
    )
    return msgspec.structs.replace(begun, code=code.name)


@pytest.mark.parametrize(
    ("state", "code", "status", "percent"),
    [
        (TaskState.QUEUED, Code.S_OK, RequestStatus.REQ_STARTED, 0),
        (TaskState.IN_PROGRESS, Code.S_OK, RequestStatus.REQ_IN_PROGRESS, 40),
        (TaskState.COMPLETED, Code.S_OK, RequestStatus.REQ_COMPLETED, 100),
        (TaskState.CANCELLED, Code.VDS_E_OPERATION_CANCELED, RequestStatus.REQ_ABORTED, 0),
        (TaskState.FAILED, Code.VDS_E_NOT_ENOUGH_SPACE, RequestStatus.REQ_FAILED, 0),
    ],
)
def test_task_info(state: TaskState, code: Code, status: RequestStatus, percent: int) -> None:
    """The result is the task's; what it is about is the LUN, or the drive."""
    document = drives(1)
    assert storage.task_info(document, task(state, code)) == TaskInfo(
        id=task_oid(document, 1),
        storage_id=oid(UUID(int=5)),
        percent_complete=percent,
        status=status,
        type=ProgressType.PROGRESS_SYNCHING,
        error=code.hresult,
    )


def test_a_reconnect_is_as_far_as_its_recoveries() -> None:
    """Its own percentage is not kept."""
    document = drives(1).with_task(task(TaskState.IN_PROGRESS, number=1)).with_task(task(TaskState.COMPLETED, number=2))
    parent = Task(
        id=3, kind=TaskKind.RECONNECT, lun=UUID(int=5), objects=("d0",), phases=(Phase.REBUILD,), children=(1, 2)
    )
    assert family.percent(document, tasks.started(parent)) == 0.7
    assert storage.task_info(document, tasks.started(parent)).percent_complete == 70


def test_a_scrub_synchronises_nothing() -> None:
    """Its percentage is of something else."""
    info = storage.task_info(drives(1), task(TaskState.IN_PROGRESS, kind=TaskKind.SCRUB))
    assert info.type is ProgressType.PROGRESS_UNKNOWN


def test_a_task_s_number_is_in_its_id() -> None:
    """The upper half is the array's: one client may know several arrays."""
    document = drives(1)
    assert task_oid(document, 7) & 0xFFFFFFFF == 7
    assert 0 < task_oid(document, 7) < 2**63
    assert task_oid(document, 7) != task_oid(msgspec.structs.replace(document, array=UUID(int=1)), 7)


# Changes.


def disk(number: int, state: DeviceState = DeviceState.HEALTHY) -> DiskInfo:
    return DiskInfo(
        id=number, length=0, free_bytes=0, region_count=0, device_state=state, name="d", dgid="g", dg_name="lab"
    )


def region(number: int, on: int, length: int = 1) -> RegionInfo:
    free, ok = RegionType.FREE, RegionStatus.OK
    return RegionInfo(id=number, disk_id=on, start=0, length=length, region_type=free, status=ok)


def volume_info(number: int, status: VolumeStatus = VolumeStatus.HEALTHY) -> VolumeInfo:
    layout = VolumeLayout.MIRROR
    return VolumeInfo(id=number, name="v", layout=layout, length=1, member_count=1, status=status)


def file_system(number: int, on: int, available: int = 1) -> FileSystemInfo:
    return FileSystemInfo(
        id=number,
        storage_id=on,
        total_allocation_units=9,
        available_allocation_units=available,
        allocation_unit_size=4096,
        fs_type=FileSystemType.OTHER,
        name="ext4",
    )


def info(number: int, status: RequestStatus, percent: int = 0) -> TaskInfo:
    synching = ProgressType.PROGRESS_SYNCHING
    return TaskInfo(id=number, storage_id=1, percent_complete=percent, status=status, type=synching, error=0)


def said(notifications: tuple[Notification, ...]) -> list[tuple[str, object]]:
    return [
        (each.action.name.lower(), each.object.path if isinstance(each.object, DriveLetterInfo) else each.object.id)
        for each in notifications
    ]


WHOLE = (disk(1), region(2, 1), volume_info(3), DriveLetterInfo(path="/v", storage_id=3), file_system(5, 3))


def test_what_comes_is_told_from_below() -> None:
    """Nothing lies on what is not known."""
    listing, told = modified(ObjectList(), ObjectList(WHOLE))
    assert said(told) == [("created", 1), ("created", 2), ("created", 3), ("created", "/v"), ("created", 5)]
    assert [item.last_known_state for item in listing.objects] == [1, 2, 3, 4, 5]


def test_what_goes_is_told_from_above() -> None:
    """MS-DMRP 3.2.6.2: what lies on a disk, then the disk."""
    before, _ = modified(ObjectList(), ObjectList(WHOLE))
    after, told = modified(before, ObjectList())
    assert said(told) == [("deleted", 5), ("deleted", "/v"), ("deleted", 3), ("deleted", 2), ("deleted", 1)]
    assert after == ObjectList(sequence=5)


def test_changes_come_dependents_first_after_what_is_new_and_before_what_goes() -> None:
    """Each changed object knows the task that did it; what has not changed keeps its number."""
    before, _ = modified(ObjectList(), ObjectList((disk(1), region(2, 1), region(4, 1), volume_info(3))))
    now = (disk(1, DeviceState.BAD), disk(6), region(2, 1), volume_info(3, VolumeStatus.FAILED))
    after, told = modified(before, ObjectList(now), task=77)
    assert said(told) == [("created", 6), ("modified", 3), ("modified", 1), ("deleted", 4)]
    numbers = {key: (item.last_known_state, item.task_id) for key, item in objects_of(after)}
    assert numbers == {1: (5, 77), 6: (6, 77), 2: (2, 0), 3: (7, 77)}


def test_that_a_file_system_is_used_is_no_change() -> None:
    """Else there would be one each time that somebody looks. The list knows it all the same."""
    before, _ = modified(ObjectList(), ObjectList(WHOLE))
    after, told = modified(before, ObjectList((*WHOLE[:-1], file_system(5, 3, available=7))))
    assert told == ()
    assert after.objects[-1] == msgspec.structs.replace(before.objects[-1], available_allocation_units=7)


RUNNING, DONE = RequestStatus.REQ_IN_PROGRESS, RequestStatus.REQ_COMPLETED


def test_a_task_begins_before_its_changes_and_ends_after_them() -> None:
    """When it ends it is told once more, and then off the list."""
    before = ObjectList((disk(1),), newest_task=9)
    listing, told = modified(before, ObjectList((disk(1), disk(2)), tasks=(info(10, RUNNING),), newest_task=10))
    assert said(told) == [("created", 10), ("created", 2)]
    assert listing.task(10).status is RUNNING
    listing, told = modified(listing, ObjectList((disk(1),), tasks=(info(10, DONE, 100),), newest_task=10))
    assert said(told) == [("deleted", 2), ("modified", 10)]
    assert listing.tasks == ()
    with pytest.raises(ObjectNotFound):
        listing.task(10)
    assert modified(listing, ObjectList((disk(1),), tasks=(info(10, DONE, 100),), newest_task=10))[1] == ()


def test_progress_is_told() -> None:
    """A percentage that has moved."""
    before = ObjectList(tasks=(info(10, RUNNING, 25),), newest_task=10)
    assert said(modified(before, ObjectList(tasks=(info(10, RUNNING, 25),), newest_task=10))[1]) == []
    assert said(modified(before, ObjectList(tasks=(info(10, RUNNING, 50),), newest_task=10))[1]) == [("modified", 10)]


def test_a_task_that_began_and_ended_meanwhile_is_told_once() -> None:
    """Who asked for it knows its id; those that had ended before are nobody's news."""
    before = ObjectList(newest_task=9)
    now = ObjectList(tasks=(info(8, DONE), info(10, DONE)), newest_task=10)
    assert said(modified(before, now)[1]) == [("modified", 10)]


@st.composite
def lists(draw: st.DrawFn) -> ObjectList:
    """Disks, regions on them, volumes, and file systems on these."""
    states = st.sampled_from((DeviceState.HEALTHY, DeviceState.BAD, DeviceState.BAD | DeviceState.FAILING))
    disks = [disk(number, draw(states)) for number in sorted(draw(st.sets(st.integers(1, 3))))]
    regions = [
        region(10 * on.id + number, on.id, draw(st.integers(1, 2)))
        for on in disks
        for number in sorted(draw(st.sets(st.integers(0, 3))))
    ]
    volumes = [
        volume_info(number, draw(st.sampled_from(VolumeStatus)))
        for number in sorted(draw(st.sets(st.integers(100, 102))))
    ]
    letters = [DriveLetterInfo(path=f"/{on.id}", storage_id=on.id) for on in volumes if draw(st.booleans())]
    systems = [file_system(on.id + 100, on.id, draw(st.integers(0, 1))) for on in volumes if draw(st.booleans())]
    return ObjectList((*disks, *regions, *volumes, *letters, *systems))


def below(item: StorageObject) -> int | None:
    match item:
        case RegionInfo():
            return item.disk_id
        case DriveLetterInfo() | FileSystemInfo():
            return item.storage_id
        case _:
            return None


def plain(item: StorageObject) -> StorageObject:
    item = msgspec.structs.replace(item, last_known_state=0, task_id=0)
    return msgspec.structs.replace(item, available_allocation_units=0) if isinstance(item, FileSystemInfo) else item


@given(st.lists(lists(), min_size=1, max_size=6))
def test_numbers_rise_with_each_change_and_never_come_twice(history: list[ObjectList]) -> None:
    """An object's number stays while it stays as it is; otherwise it is higher than any before, also when it had gone."""
    kept = ObjectList()
    used: dict[object, set[int]] = {}
    for after in history:
        before = {(type(item), key): item for key, item in objects_of(kept)}
        highest = kept.sequence
        kept, _ = modified(kept, after)
        for name, item in ((((type(item), key)), item) for key, item in objects_of(kept)):
            earlier = before.get(name)
            if earlier is not None and plain(earlier) == plain(item):
                assert item.last_known_state == earlier.last_known_state
            else:
                assert item.last_known_state > highest
                assert item.last_known_state not in used.get(name, set())
            used.setdefault(name, set()).add(item.last_known_state)
        assert kept.sequence == max([highest, *(item.last_known_state for item in kept.objects)])
        assert [plain(item) for item in kept.objects] == [plain(item) for item in after.objects]


@given(lists(), lists())
def test_who_hears_all_knows_all(first: ObjectList, second: ObjectList) -> None:
    """The list is the earlier one with what was told, and at no moment lies anything on what is not known."""
    before, _ = modified(ObjectList(), first)
    after, told = modified(before, second)
    known = {(type(item), key): item for key, item in objects_of(before)}
    for each in told:
        item = each.object
        assert not isinstance(item, TaskInfo)
        name = (type(item), item.path if isinstance(item, DriveLetterInfo) else item.id)
        assert (each.action is Action.CREATED) is (name not in known)
        if each.action is Action.DELETED:
            del known[name]
        else:
            known[name] = item
        ids = {other.id for other in known.values() if not isinstance(other, DriveLetterInfo)}
        assert all(under in ids for other in known.values() if (under := below(other)) is not None)
    assert {name: plain(item) for name, item in known.items()} == {
        (type(item), key): plain(item) for key, item in objects_of(after)
    }


@given(lists())
def test_the_list_outlives_its_process(listing: ObjectList) -> None:
    """As JSON, bit sets and numbers of any size included."""
    kept, told = modified(ObjectList(sequence=2**60), listing, task=2**62)
    assert msgspec.json.decode(msgspec.json.encode(kept), type=ObjectList) == kept
    assert msgspec.json.decode(msgspec.json.encode(told), type=tuple[Notification, ...]) == told


# Bytes.


def number(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def test_a_disk_s_frame() -> None:
    """The structure has 120 bytes on amd64, its first pointer would begin there; a flag of one byte is followed by three."""
    item = DiskInfo(
        id=0x0102030405060708,
        length=0x1000,
        free_bytes=0x800,
        region_count=3,
        device_state=DeviceState.BAD | DeviceState.FAILING,
        name="d1",
        dgid="ab",
        dg_name="lab",
        last_known_state=9,
        task_id=10,
    )
    data = frame(Notification(Action.MODIFIED, item))
    strings = b"d\x001\x00\x00\x00" + b"\x00\x00" + b"ab\x00" + b"\x00\x00" + b"l\x00a\x00b\x00\x00\x00"
    assert data[:12] == number(12 + 120 + len(strings), 4) + b"\x01\x00\x00\x00" + b"\x03\x00\x00\x00"
    body = data[12:132]
    assert body[0:8] == b"\x08\x07\x06\x05\x04\x03\x02\x01"
    assert body[8:16] == number(0x1000, 8)
    assert body[16:24] == number(0x800, 8)
    assert body[24:36] == number(32256, 4) + number(8225280, 4) + number(512, 4)
    assert body[36:40] == b"\x03\x00\x00\x00"
    assert body[44:48] == b"\x01\x00\x00\x00"
    assert body[48:52] == b"\x88\x00\x00\x00"
    assert body[60:80] == bytes(20)
    assert body[80:88] == b"\x09\x00\x00\x00\x00\x00\x00\x00"
    assert body[88:96] == b"\x0a\x00\x00\x00\x00\x00\x00\x00"
    assert body[96:116] == number(3, 4) + number(1, 4) + number(3, 4) + number(1, 4) + number(4, 4)
    assert body[116:120] == bytes(4)
    assert data[132:] == strings


def test_a_region_s_frame() -> None:
    """Enums have 32 bits here, not the 16 of NDR."""
    item = RegionInfo(
        id=1,
        disk_id=2,
        vol_id=3,
        start=5,
        length=6,
        region_type=RegionType.SUBDISK,
        status=RegionStatus.REGENERATING,
        last_known_state=7,
        task_id=8,
    )
    expected = [number(value, 8) for value in (1, 2, 3, 0, 5, 6)]
    expected += [number(6, 4), number(0, 4), b"\x00", bytes(3), number(4, 4), number(7, 8), number(8, 8), bytes(8)]
    assert frame(Notification(Action.CREATED, item)) == number(100, 4) + number(3, 4) + number(1, 4) + b"".join(
        expected
    )


def test_a_volume_s_frame() -> None:
    """It ends at a multiple of eight bytes."""
    item = VolumeInfo(
        id=1,
        name="v",
        layout=VolumeLayout.RAID5,
        length=2,
        fs_id=3,
        member_count=4,
        status=VolumeStatus.REGENERATING,
        last_known_state=5,
        task_id=6,
    )
    expected = [number(1, 8), number(4, 4), number(6, 4), number(2, 8), number(3, 8), number(4, 4), number(8, 4)]
    expected += [number(5, 8), number(6, 8), number(0, 4), bytes(4)]
    assert frame(Notification(Action.DELETED, item)) == number(76, 4) + number(2, 4) + number(2, 4) + b"".join(expected)


def test_a_mount_point_s_frame() -> None:
    """No letter; who knows of letters only passes over the path by the frame's size."""
    item = DriveLetterInfo(path="/v", storage_id=1, last_known_state=2, task_id=3)
    expected = [bytes(2), bytes(6), number(1, 8), b"\x01", bytes(7), number(2, 8), number(3, 8), bytes(4), bytes(4)]
    expected += [b"/\x00v\x00\x00\x00"]
    assert frame(Notification(Action.CREATED, item)) == number(66, 4) + number(5, 4) + number(1, 4) + b"".join(expected)


def test_a_file_system_s_frame() -> None:
    """A Linux file system is of an other type, which is the highest bit."""
    item = msgspec.structs.replace(file_system(1, 2, available=4), label="ä", last_known_state=5, task_id=6)
    expected = [number(1, 8), number(2, 8), number(9, 8), number(4, 8), number(4096, 4), bytes(4)]
    expected += [number(5, 8), number(6, 8), b"\x00\x00\x00\x80", number(2, 4), b"\xe4\x00\x00\x00"]
    assert frame(Notification(Action.MODIFIED, item)) == number(80, 4) + number(6, 4) + number(3, 4) + b"".join(
        expected
    )


def test_a_task_s_frame() -> None:
    """56 bytes, of which 52 are used."""
    item = msgspec.structs.replace(info(1, RequestStatus.REQ_FAILED), error=Code.VDS_E_NOT_ENOUGH_SPACE.hresult)
    expected = [number(1, 8), number(1, 8), bytes(16), bytes(4), number(5, 4), number(2, 4), number(0x8004240F, 4)]
    expected += [bytes(4), bytes(4)]
    assert frame(Notification(Action.MODIFIED, item)) == number(68, 4) + number(4, 4) + number(3, 4) + b"".join(
        expected
    )


@given(lists())
def test_frames_one_after_another_are_told_apart_by_their_sizes(listing: ObjectList) -> None:
    """As ByteStream has them."""
    _, told = modified(ObjectList(), listing)
    assert list(split(b"".join(map(frame, told)))) == [frame(each) for each in told]


def split(stream: bytes) -> Iterator[bytes]:
    while stream:
        size = int.from_bytes(stream[:4], "little")
        yield stream[:size]
        stream = stream[size:]


# For people and programs.


def test_json_has_the_specification_s_fields_and_words() -> None:
    """Enums by name, bit sets as lists."""
    view = notify.notification_view(Notification(Action.MODIFIED, disk(1, DeviceState.BAD | DeviceState.FAILING)))
    assert (view["type"], view["action"]) == ("DISK_INFO", "MODIFIED")
    assert view["object"]["kind"] == "disk"
    assert view["object"]["deviceState"] == ["bad", "failing"]
    assert view["object"]["deviceType"] == "vm"
    assert view["object"]["freeBytes"] == 0
    running = notify.view(info(1, RUNNING))
    assert (running["status"], running["type"], running["clientID"]) == ("in_progress", "synching", 0)


def test_a_sentence_counts_what_changed() -> None:
    """In the order of what it matters to."""
    told = tuple(Notification(Action.MODIFIED, item) for item in (disk(1), region(2, 1), region(3, 1), info(4, DONE)))
    assert notify.summary(told) == "changed: 1 task, 2 regions, 1 disk"
