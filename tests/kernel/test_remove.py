"""`drive remove` on a real kernel: all that is on a drive is moved off underneath its LUNs, and then the drive leaves."""

from contextlib import ExitStack
from itertools import count

import pytest

from blkrecov.array import Array
from blkrecov.drives import loop
from blkrecov.drives.store import DriveStore, IoCounter
from blkrecov.errors import (
    AnotherCallInProgress,
    DriveNotOnline,
    InvalidArgument,
    InvalidDisk,
    NotEnoughSpace,
    ObjectDeleted,
)
from blkrecov.events import EventLog
from blkrecov.model import Task, TaskKind, TaskState
from blkrecov.running import Progress
from blkrecov.units import MIB, Bytes
from tests.kernel.lab import (
    DEADLINE_S,
    Lab,
    Slow,
    Writer,
    blkrecov,
    checksum,
    disagreements,
    disk_of,
    fill,
    in_sync,
    lun,
    mirrors,
    our_devices,
    read,
    regions_of,
    tables,
    until,
)
from tests.kernel.test_reconnect import forget_tables, killed
from tests.kernel.test_snapshots import take

WIDE = Bytes(52 * MIB)
LUNS = ("mirror", "parity", "plain", "shadow")


def begin(array: Array, name: str = "d0") -> Task:
    proposal, task, _ = array.propose_remove(name)
    return array.remove(proposal, task)


def removed(array: Array, name: str = "d0") -> Task:
    return array.wait(begin(array, name).id, timeout_s=DEADLINE_S)


def children(array: Array, task: Task) -> list[Task]:
    return [array.document.task(number) for number in task.children]


def test_what_has_come_to_a_drives_old_place_keeps_its_label(lab: Lab) -> None:
    """Names of disks change hands at a boot, and of a drive that has failed the last place is remembered."""
    lab.create(3)
    with lab.opened() as array:
        lun(array, "a", "linear", Bytes(8 * MIB), drives=("d2",), exported=False)
        array.fail_drive("d1")
        array.stop()
    first, second = lab.path("d1"), lab.path("d2")
    first.rename(lab.directory / "between")
    second.rename(first)
    (lab.directory / "between").rename(second)
    with lab.opened() as array:
        digest = fill(disk_of(array, "a"), 8 * MIB, seed=4)
        assert removed(array, "d1").state is TaskState.COMPLETED
        assert not [device for device in loop.attached() if device.autoclear]  # Told to go, it would at the next close.
        array.stop()
    with lab.opened() as array:
        assert (array.document.drive("d2").online, checksum(disk_of(array, "a"))) == (True, digest)
        assert [drive.name for drive in array.document.drives] == ["d0", "d2"]
    with pytest.raises(InvalidDisk), DriveStore(str(second), IoCounter(), writable=False) as left:
        left.read_label()
    lab.drives[:] = ["d0", "d2"]


def two_linear(array: Array) -> dict[str, str]:
    """LUNs a and b on d0, with something on them: their checksums."""
    found = {}
    for seed, name in enumerate(("a", "b")):
        disk = lun(array, name, "linear", 4 * MIB, drives=["d0"], exported=False)
        found[name] = fill(disk, 4 * MIB, seed)
    return found


def sums(array: Array, *names: str) -> dict[str, str]:
    return {name: checksum(disk_of(array, name)) for name in names}


def test_a_drive_is_emptied_under_writes_and_leaves(slow: Slow, lab: Lab) -> None:
    """A mirror, a parity, a LUN without redundancy and a shadow copy's store move one after the other; no host notices."""
    lab.create(3)
    with lab.opened() as array, ExitStack() as stack:
        array.add_drive(str(slow.directory / "s0"), size=WIDE, name="s0", spare=True, force=False)
        mirror = lun(array, "mirror", "raid1", 4 * MIB, drives=["d0", "d1"], exported=False)
        parity = lun(array, "parity", "raid5", 8 * MIB, drives=["d0", "d1", "d2"], exported=False)
        plain = lun(array, "plain", "linear", 4 * MIB, drives=["d0"], exported=False)
        for name in ("mirror", "parity"):
            in_sync(array, name)
        digests = {disk: fill(disk, 3 * MIB, seed) for seed, disk in enumerate((mirror, parity, plain))}
        shadow = take(array, "parity", "shadow", store=4 * MIB, layout="raid1", drives=("d0", "d2"))
        in_sync(array, "shadow")
        frozen = read(shadow, 0, 8 * MIB)
        before = our_devices()
        writers = [stack.enter_context(Writer(disk, MIB, offset=3 * MIB)) for disk in (parity, plain)]
        slow.delay(2)
        task = begin(array)
        assert (task.kind, task.state, len(task.children)) == (TaskKind.REMOVE, TaskState.IN_PROGRESS, 4)
        assert len(mirrors()) in (1, 2), "one LUN at a time: its data, and its superblock if it has one"
        with pytest.raises(InvalidArgument, match="being removed"):
            lun(array, "new", "linear", MIB, drives=["d0"])
        with pytest.raises(AnotherCallInProgress, match=f"task {task.id}"):
            begin(array)
        percents: list[int] = []
        members: set[str] = set()

        def look(progress: Progress) -> None:
            percents.append(progress.task.percent)
            array.observe()
            shown = [array.lun_json(item) for item in array.document.luns]
            members.update(member["state"] for item in shown for member in item["members"])

        task = array.wait(task.id, on_progress=look, timeout_s=DEADLINE_S)
        assert (task.state, task.percent) == (TaskState.COMPLETED, 100), task
        assert {text.partition(" moved to ")[0] for text in task.message.split(", ")} == set(LUNS)
        assert task.bytes_kernel >= 16 * MIB
        assert (members, percents == sorted(percents), len(set(percents)) > 4) == ({"in_sync"}, True, True), percents
        for writer in writers:
            writer.wait_for(2)
            writer.stop()
            assert writer.wrong() == []
        slow.delay(0)
        assert (regions_of(array, "s0"), array.document.drive("s0").hot_spare) == (set(LUNS), False)
        assert our_devices() == [name for name in before if not name.endswith("-drive-d0")]
        assert {disk: checksum(disk, 3 * MIB) for disk in digests} == digests
        assert read(shadow, 0, 8 * MIB) == frozen
        assert [disagreements(array, name) for name in ("mirror", "parity", "shadow")] == [[]] * 3
        with pytest.raises(ObjectDeleted):
            array.document.drive("d0")
        kinds = [event.kind.value for event in EventLog(lab.state).read() if event.drive == "d0"]
        assert kinds[-2:] == ["removal_started", "removal_done"]
        array.stop()
    with lab.opened() as array:
        # Its file has no label any more.
        array.add_drive(str(lab.path("d0")), size=None, name="d0", spare=False, force=False)
        assert {disk: checksum(disk, 3 * MIB) for disk in digests} == digests
        assert [writer.wrong() for writer in writers] == [[], []]
        assert read(disk_of(array, "shadow"), 0, 8 * MIB) == frozen


def test_the_command_says_what_it_does_and_its_json_has_one_shape(lab: Lab) -> None:
    """The task, with the drive as it was last, whether or not there was anything to move."""
    lab.create(3)
    with lab.opened() as array:
        digests = two_linear(array)
    before, loaded = lab.sequence(), tables()
    answer = blkrecov(lab, "drive", "remove", "d0", "--plan")
    assert (answer.status, lab.sequence(), tables()) == (0, before, loaded)
    for text in (
        "LUN a moves from drive d0",
        "LUN b moves from drive d0",
        "mirror",
        f"take the label off {lab.path('d0')}",
    ):
        assert text in answer.out
    empty = blkrecov(lab, "drive", "remove", "d2", "--json")
    assert (empty.status, empty.json["state"], empty.json["kind"]) == (0, "completed", "remove")
    assert (empty.json["drive"]["name"], empty.json["message"]) == ("d2", "nothing was on it")
    begun = blkrecov(lab, "drive", "remove", "d0", "--json", "--no-wait")
    assert (begun.status, begun.json.keys()) == (0, empty.json.keys())
    ended = blkrecov(lab, "task", "wait", str(begun.json["id"]), "--json")
    assert ended.status == 0, ended
    assert (ended.json["state"], ended.json["message"]) == ("completed", "a moved to d1, b moved to d1")
    with lab.opened() as array:
        assert ([drive.name for drive in array.document.drives], sums(array, "a", "b")) == (["d1"], digests)
        lab.drives[:] = ["d1"]


def test_a_drive_that_cannot_be_emptied_stays_as_it_is(lab: Lab) -> None:
    """There is room for each of its LUNs, and not for both. Nothing is begun, and who lacks what is told."""
    lab.create(3)
    with lab.opened() as array:
        lun(array, "a", "linear", 12 * MIB, drives=["d0"], exported=False)
        lun(array, "b", "linear", 10 * MIB, drives=["d0"], exported=False)
        lun(array, "c", "raid1", 10 * MIB, drives=["d1", "d2"], exported=False)
        lun(array, "e", "linear", 16 * MIB, drives=["d2"], exported=False)
        in_sync(array, "c")
        before, loaded = array.document, tables()
        with pytest.raises(NotEnoughSpace, match=r"cannot be emptied: no drive outside LUN 'b' has the 11 MiB free"):
            array.propose_remove("d0")
        array.fail_drive("d1")
        with pytest.raises(DriveNotOnline, match="LUN 'c' has a part there") as refused:
            array.propose_remove("d1")
        assert "blkrecov recover c" in refused.value.remedy
        assert (array.document.tasks, before.tasks) == ((), ())
        assert [line for line in tables().splitlines() if "-d1:" not in line] == [
            line for line in loaded.splitlines() if "-d1:" not in line
        ]
        array.carry_out(array.propose_delete("e"))
        array.carry_out(array.propose_delete("c"))
        # Nothing is on it any more: it need not answer.
        assert removed(array, "d1").state is TaskState.COMPLETED
        lab.drives.remove("d1")


def test_what_has_moved_when_it_is_cancelled_stays_moved(slow: Slow, lab: Lab) -> None:
    """The other LUN stays where it is, the drive stays, and the next removal moves the rest."""
    lab.create(1)
    with lab.opened() as array:
        array.add_drive(str(slow.directory / "s0"), size=WIDE, name="s0", spare=False, force=False)
        digests = two_linear(array)
        before = our_devices()
        slow.delay(40)
        task = begin(array)
        assert [child.state for child in children(array, task)] == [TaskState.IN_PROGRESS, TaskState.QUEUED]

        def second_moves() -> bool:
            array.advance_all()
            return children(array, task)[1].state is TaskState.IN_PROGRESS

        until("the second LUN's turn", second_moves)
        assert 50 <= array.progress(task.id).task.percent < 99
        task = array.cancel(task.id)
        assert (task.state, task.percent) == (TaskState.CANCELLED, 0)
        assert [child.state for child in children(array, task)] == [TaskState.COMPLETED, TaskState.CANCELLED]
        slow.delay(0)
        assert (regions_of(array, "d0"), regions_of(array, "s0"), our_devices()) == ({"b"}, {"a"}, before)
        assert sums(array, "a", "b") == digests
        lun(array, "again", "linear", MIB, drives=["d0"])
        assert removed(array).state is TaskState.COMPLETED
        assert (sums(array, "a", "b"), regions_of(array, "s0")) == (digests, {"a", "b", "again"})


def test_one_that_is_cancelled_fails_the_removal(slow: Slow, lab: Lab) -> None:
    """The other goes on; then it is told what is on the drive still."""
    lab.create(1)
    with lab.opened() as array:
        array.add_drive(str(slow.directory / "s0"), size=WIDE, name="s0", spare=False, force=False)
        digests = two_linear(array)
        slow.delay(20)
        task = begin(array)
        array.cancel(task.children[0])
        slow.delay(0)
        task = array.wait(task.id, timeout_s=DEADLINE_S)
        assert (task.state, task.code) == (TaskState.FAILED, "VDS_E_DEVICE_IN_USE")
        assert "LUN 'a' is on it still: replacement of a cancelled" in task.message
        assert (regions_of(array, "d0"), regions_of(array, "s0"), sums(array, "a", "b")) == ({"a"}, {"b"}, digests)


@pytest.mark.parametrize("machine", [False, True], ids=["the process dies", "the machine dies"])
def test_a_removal_that_was_cut_short_is_taken_up_by_the_next_process(slow: Slow, lab: Lab, machine: bool) -> None:
    """In the middle of the first LUN, while writes are under way; the second has not had its turn."""
    lab.create(2)
    with lab.opened() as array:
        array.add_drive(str(slow.directory / "s0"), size=WIDE, name="s0", spare=True, force=False)
        disk = lun(array, "a", "raid1", 8 * MIB, drives=["d0", "d1"], exported=False)
        in_sync(array, "a")
        other = fill(lun(array, "b", "linear", 4 * MIB, drives=["d0"], exported=False), 4 * MIB, 1)
        digest = fill(disk, 7 * MIB, 2)
        slow.delay(20)
        with Writer(disk, MIB, offset=7 * MIB) as writer:
            task = begin(array)
            assert mirrors()
            writer.wait_for(2)
            if machine:
                lab.power_cut()
    slow.delay(0)
    with lab.opened() as array:
        task = array.wait(task.id, timeout_s=DEADLINE_S)
        assert (task.state, task.message) == (TaskState.COMPLETED, "a moved to s0, b moved to s0"), task
        disk = disk_of(array, "a")
        assert (checksum(disk, 7 * MIB), writer.wrong(disk), sums(array, "b")) == (digest, [], {"b": other})
        in_sync(array, "a")
        assert disagreements(array, "a") == []
        assert [drive.name for drive in array.document.drives] == ["d1", "s0"]


# Each run takes some of the effects; with STEP 1 it takes all, which takes minutes.
STEP = 7


@pytest.mark.long
@pytest.mark.parametrize("then", ["the process", "the machine"])
def test_a_removal_that_dies_anywhere_is_done_or_can_be(lab: Lab, then: str) -> None:
    """Before any effect: the contents are right at once, and the drive leaves in the end, without its label."""
    lab.create(3)
    where = []
    for at in count(1, STEP):
        with lab.opened() as array:
            if "a" not in {item.name for item in array.document.luns}:
                digests = two_linear(array)
        point = killed(lab, at, lambda array: removed(array))
        where.append(point)
        if then == "the machine":
            forget_tables()
            lab.power_cut()
        with lab.opened() as array:
            assert sums(array, "a", "b") == digests, f"at {at}: {point}"
            for task in array.document.tasks:
                if not task.state.ended:
                    assert array.wait(task.id, timeout_s=60).state is TaskState.COMPLETED, f"at {at}: {point}"
            if any(drive.name == "d0" for drive in array.document.drives):
                assert removed(array).state is TaskState.COMPLETED, f"at {at}: {point}"
            assert (sums(array, "a", "b"), array.trouble) == (digests, {}), f"at {at}: {point}"
        with lab.opened() as array:
            array.add_drive(str(lab.path("d0")), size=None, name="d0", spare=False, force=False)
            for name in ("a", "b"):
                array.carry_out(array.propose_delete(name))
        if not point:
            break
    assert len(where) > 1
    print(f"a removal dies at {len(where) - 1} points, with {then}")
