"""Device-mapper as this kernel has it: what control.py and events.py promise, over loop devices.

Everything made here is called blkrecov-dmtest-*. A test's devices are removed when it ends, whatever state it left
them in.
"""

import errno
import os
import re
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from blkrecov.dm.abi import DeviceNumber, udev_event
from blkrecov.dm.control import Control, KernelRefused, LeftSuspended, NoSuchDevice, TargetMissing, node
from blkrecov.dm.events import EventWatcher
from blkrecov.dm.status import LegHealth, SnapshotUsage, parse_mirror, parse_raid, parse_snapshot
from blkrecov.dm.sync import SyncStart, data_legs
from blkrecov.dm.table import (
    FLAKEY_LIMIT_S,
    CoreLog,
    CorruptByte,
    CowStore,
    DelayTable,
    DiskLog,
    DropWrites,
    DustTable,
    ErrorTable,
    ErrorWrites,
    FlakeyTable,
    Leg,
    LinearTable,
    MirrorLeg,
    MirrorPart,
    MirrorTable,
    RaidKind,
    RaidTable,
    Segment,
    SnapshotOriginTable,
    SnapshotTable,
    Table,
    TargetLine,
)
from blkrecov.errors import NotSupported
from blkrecov.units import MIB, Sectors, sectors

PREFIX = "blkrecov-dmtest-"
DEADLINE_S = 30.0
SIZE = sectors(8 * MIB)
META = sectors(1 * MIB)
ZORK: Table = (TargetLine(start=Sectors(0), length=Sectors(8), kind="zork", params=""),)


class Bench:
    """Makes devices and takes them away again."""

    def __init__(self, control: Control, loop: str) -> None:
        self.control = control
        self.loop = loop
        self._made: list[str] = []
        self._next = 0

    def create(self, name: str) -> str:
        full = PREFIX + name
        self.control.create(full, f"BLKRECOV-{0:032x}-{name}")
        self._made.append(full)
        return full

    def device(self, name: str, table: Table, *, visible: bool = False) -> str:
        full = self.create(name)
        self.control.load(full, table)
        legs = [leg for line in table if line.kind == "raid" for leg in data_legs(line.params)]
        start = SyncStart(self.control, tuple(legs))
        self.control.resume(full, visible=visible)
        start.wait(full)
        return full

    def piece(self, name: str, length: Sectors = SIZE) -> str:
        """A linear device on a part of the loop device that no other has. Gives its major:minor."""
        segment = Segment(device=self.loop, offset=Sectors(self._next), length=length)
        self._next += length
        return self.number(self.device(name, LinearTable(segments=(segment,)).render()))

    def number(self, name: str) -> str:
        return str(self.control.info(name).number)

    def legs(self, count: int, meta: Sectors = META) -> tuple[Leg, ...]:
        return tuple(
            Leg(meta=self.piece(f"rmeta_{index}", meta), data=self.piece(f"rimage_{index}")) for index in range(count)
        )

    def sweep(self) -> None:
        """Remove everything, the upper devices first: as long as one lies on another, that is busy."""
        deadline = time.monotonic() + DEADLINE_S
        while self._made:
            assert time.monotonic() < deadline, f"{self._made} stay busy"
            self._made = [name for name in reversed(self._made) if not self._is_gone(name)]

    def _is_gone(self, name: str) -> bool:
        with suppress(NoSuchDevice):
            try:
                # What a suspended device holds keeps it open.
                if self.control.info(name).suspended:
                    self.control.clear(name)
                    self.control.resume(name, visible=False)
                self.control.remove(name, patience_s=0.1)
            except NoSuchDevice:
                raise
            except KernelRefused as refused:
                if refused.errno != errno.EBUSY:
                    raise
                return False
        return True


@pytest.fixture
def control() -> Iterator[Control]:
    with Control() as opened:
        yield opened


@pytest.fixture
def bench(control: Control, tmp_path: Path) -> Iterator[Bench]:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(128 * MIB)
    found = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True)
    loop = found.stdout.strip()
    with ExitStack() as undo:
        undo.callback(subprocess.run, ["losetup", "--detach", loop], check=True)
        made = Bench(control, loop)
        undo.callback(made.sweep)
        yield made


def until(watcher: EventWatcher, holds: Callable[[], bool]) -> None:
    """Looks again after each event, until it holds or the deadline has passed."""
    deadline = time.monotonic() + DEADLINE_S
    watcher.arm()
    while not holds():
        assert time.monotonic() < deadline, "the event never came"
        watcher.wait(1.0)
        watcher.arm()


def linear(number: str, length: Sectors = SIZE, offset: int = 0) -> Table:
    return LinearTable(segments=(Segment(device=number, offset=Sectors(offset), length=length),)).render()


def settle() -> None:
    subprocess.run(["udevadm", "settle", "--timeout=30"], check=True)


def test_the_kernel_takes_our_header(control: Control) -> None:
    """Another size would be another ioctl number, which is ENOTTY."""
    assert control.version() >= (4, 37, 0)
    assert {"linear", "error"} <= control.targets().keys()


def test_a_missing_control_node_is_not_supported(tmp_path: Path) -> None:
    """The remedy tells a missing driver from a missing node; here the driver is there."""
    with pytest.raises(NotSupported, match="device-mapper is there") as caught:
        Control(tmp_path / "control")
    assert caught.value.remedy.startswith("mknod ")


def test_a_device_lives_from_create_to_remove(bench: Bench) -> None:
    """Each step shows in info(), and the kernel prints a table as we render it."""
    control = bench.control
    number = bench.piece("below")
    name = bench.create("life")
    assert not control.info(name).live
    table = linear(number)
    control.load(name, table)
    assert control.info(name).inactive
    control.resume(name, visible=False)
    info = control.info(name)
    assert (info.live, info.inactive, info.suspended, info.open_count) == (True, False, False, 0)
    assert info.uuid == f"BLKRECOV-{0:032x}-life"
    assert control.table(name) == table
    assert control.status(name)[0].kind == "linear"
    assert [str(below) for below in control.deps(name)] == [number]
    assert name in {entry.name for entry in control.devices()}
    control.suspend(name)
    assert control.info(name).suspended
    control.resume(name, visible=False)
    control.rename(name, name + "2", visible=False)
    assert control.find(name) is None
    control.remove(name + "2")
    assert control.find(name + "2") is None


def test_an_unknown_name_is_no_such_device(control: Control) -> None:
    """Whatever is asked of it; a load must not take it for a target's own ENXIO."""
    for ask in (
        control.info,
        control.status,
        control.table,
        control.deps,
        control.suspend,
        control.remove,
        control.clear,
    ):
        with pytest.raises(NoSuchDevice):
            ask(PREFIX + "nobody")
    with pytest.raises(NoSuchDevice):
        control.load(PREFIX + "nobody", ErrorTable(length=Sectors(8)).render())
    with pytest.raises(NoSuchDevice):
        control.message(PREFIX + "nobody", Sectors(0), "check")


def test_a_name_that_is_taken_is_refused(bench: Bench) -> None:
    """EBUSY, for a name as for a UUID."""
    name = bench.create("taken")
    with pytest.raises(KernelRefused) as caught:
        bench.control.create(name, "BLKRECOV-other")
    assert caught.value.errno == errno.EBUSY


def test_a_read_only_device_says_so(bench: Bench) -> None:
    """The flag is the table's, not the device's."""
    name = bench.create("ro")
    bench.control.load(name, linear(bench.piece("below")), read_only=True)
    bench.control.resume(name, visible=False)
    assert bench.control.info(name).read_only


def test_a_refused_load_leaves_the_old_table_running(bench: Bench) -> None:
    """Even when an earlier load had left a table in the inactive slot, which a resume would have made live."""
    number = bench.piece("below")
    name = bench.device("top", linear(number))
    bench.control.load(name, ErrorTable(length=SIZE).render())
    with pytest.raises(KernelRefused):
        bench.control.replace(name, linear("0:0"), visible=False)
    info = bench.control.info(name)
    assert (info.live, info.inactive, info.suspended) == (True, False, False)
    assert bench.control.table(name) == linear(number)


def test_a_table_that_the_resume_refuses_leaves_the_old_one_running(bench: Bench) -> None:
    """For a device with a live table, the sizes below are compared only when the new one takes its place."""
    number = bench.piece("below")
    name = bench.device("top", linear(number))
    with pytest.raises(KernelRefused, match="too small for target"):
        bench.control.replace(name, linear(number, offset=8), visible=False)
    assert not bench.control.info(name).suspended
    assert bench.control.table(name) == linear(number)


def test_the_kernels_reason_is_in_the_error(bench: Bench) -> None:
    """EINVAL alone tells nobody that the device below is too small."""
    number = bench.piece("below")
    name = bench.create("top")
    with pytest.raises(KernelRefused) as caught:
        bench.control.load(name, linear(number, offset=8))
    assert caught.value.errno == errno.EINVAL
    assert any("too small for target" in line for line in caught.value.log)
    assert "too small for target" in caught.value.message


def test_a_missing_target_names_its_module(bench: Bench) -> None:
    """And the old table runs."""
    name = bench.device("top", ErrorTable(length=Sectors(8)).render())
    with pytest.raises(TargetMissing) as caught:
        bench.control.replace(name, ZORK, visible=False)
    assert caught.value.module == "dm-zork"
    assert not bench.control.info(name).suspended


def test_a_target_is_there_before_a_table_needs_it(bench: Bench) -> None:
    """Its module is loaded by the asking, or is named."""
    bench.control.require("dust")
    assert "dust" in bench.control.targets()
    with pytest.raises(TargetMissing) as caught:
        bench.control.require("zork")
    assert "dm-zork" in caught.value.remedy


def test_a_resume_that_fails_leaves_the_device_suspended_and_says_so(bench: Bench) -> None:
    """The new table is live by then. A metadata device too small for the bitmap is found out only at the resume."""
    legs = bench.legs(2, meta=Sectors(8))
    name = bench.device("top", linear(bench.piece("old")))
    table = RaidTable(kind=RaidKind.RAID1, length=SIZE, chunk=Sectors(0), region=Sectors(1024), legs=legs, nosync=True)
    with pytest.raises(LeftSuspended) as caught:
        bench.control.replace(name, table.render(), visible=False)
    assert [type(error) for error in caught.value.errors] == [KernelRefused]
    assert bench.control.info(name).suspended
    bench.control.replace(name, ErrorTable(length=SIZE).render(), visible=False)


def test_replace_changes_the_table_under_an_open_device(bench: Bench) -> None:
    """Number and node stay: that is what a LUN lives on."""
    name = bench.device("top", linear(bench.piece("one")))
    before = bench.control.info(name).number
    path = bench.control.ensure_node(name)
    other = bench.piece("two")
    with path.open("rb"):
        bench.control.replace(name, linear(other), visible=False)
        assert bench.control.info(name).open_count == 1
    assert bench.control.table(name) == linear(other)
    assert bench.control.info(name).number == before


def test_remove_waits_only_as_long_as_it_is_told(bench: Bench) -> None:
    """A device that stays open is EBUSY; one that is closed meanwhile goes."""
    name = bench.device("busy", ErrorTable(length=Sectors(8)).render())
    settle()
    held = os.open(bench.control.ensure_node(name), os.O_RDONLY)
    with pytest.raises(KernelRefused) as caught:
        bench.control.remove(name, patience_s=0)
    assert caught.value.errno == errno.EBUSY
    closer = threading.Timer(0.2, os.close, [held])
    closer.start()
    bench.control.remove(name, patience_s=DEADLINE_S)
    closer.join()
    assert bench.control.find(name) is None


def test_every_raid_kind_is_accepted_and_printed_as_rendered(bench: Bench) -> None:
    """Our order of options is the kernel's."""
    legs = bench.legs(4)
    region = Sectors(1024)
    for kind, count, times in (
        (RaidKind.RAID0, 4, 4),
        (RaidKind.RAID1, 2, 1),
        (RaidKind.RAID4, 3, 2),
        (RaidKind.RAID5, 4, 3),
        (RaidKind.RAID6, 4, 2),
        (RaidKind.RAID10, 4, 2),
    ):
        for leg in legs:
            zero(str(leg.meta), MIB)
        striped, synced = kind is not RaidKind.RAID1, kind is not RaidKind.RAID0
        table = RaidTable(
            kind=kind,
            length=Sectors(SIZE * times),
            chunk=Sectors(128 if striped else 0),
            region=region if synced else None,
            min_recovery_rate=1000 if synced else None,
            max_recovery_rate=2000000 if synced else None,
            legs=legs[:count],
        )
        name = bench.device(kind.value, table.render())
        assert bench.control.table(name) == table.render()
        status = parse_raid(bench.control.status(name)[0].params)
        assert (status.kind, len(status.legs)) == (kind.value, count)
        bench.control.remove(name)


def test_a_raid_whose_sync_has_begun_may_be_removed(bench: Bench) -> None:
    """One that is removed before that takes the machine with it, in one of a few dozen tries (Linux 6.1.176)."""
    legs = bench.legs(3)
    table = RaidTable(kind=RaidKind.RAID5, length=Sectors(SIZE * 2), chunk=Sectors(128), legs=legs).render()
    for _ in range(20):
        for leg in legs:
            zero(str(leg.meta), MIB)
        bench.control.remove(bench.device("brief", table))


def test_every_other_table_is_accepted(bench: Bench) -> None:
    """One device of each type, one after the other."""
    one, two, three = bench.piece("one"), bench.piece("two"), bench.piece("three")
    source = Segment(device=one, offset=Sectors(0), length=SIZE)
    half = Sectors(SIZE // 2)
    legs = (MirrorLeg(device=one, offset=Sectors(0)), MirrorLeg(device=two, offset=Sectors(0)))
    upper = tuple(MirrorLeg(device=leg.device, offset=half) for leg in legs)
    core, disk = CoreLog(region=Sectors(1024), in_sync=True), DiskLog(device=three, region=Sectors(1024))
    for table in (
        ErrorTable(length=SIZE).render(),
        DelayTable(source=source, read_ms=0, write_ms=1).render(),
        DustTable(source=source, block=4096).render(),
        FlakeyTable(source=source, up_s=0, down_s=1).render(),
        FlakeyTable(source=source, up_s=30, down_s=FLAKEY_LIMIT_S - 30).render(),
        FlakeyTable(source=source, up_s=1, down_s=1, features=(ErrorWrites(),)).render(),
        FlakeyTable(source=source, up_s=1, down_s=1, features=(DropWrites(), CorruptByte(nth=1, value=2))).render(),
        MirrorTable(parts=(MirrorPart(length=SIZE, log=disk, legs=legs),)).render(),
        MirrorTable(
            parts=(MirrorPart(length=half, log=core, legs=legs), MirrorPart(length=half, log=core, legs=upper))
        ).render(),
        SnapshotOriginTable(length=SIZE, origin=one).render(),
        SnapshotTable(
            length=SIZE, origin=one, cow=three, chunk=Sectors(32), store=CowStore.PERSISTENT_OVERFLOW
        ).render(),
    ):
        kind = table[0].kind
        if kind == "snapshot":
            zero(three, 4096)
        name = bench.device(f"type-{kind}", table)
        assert bench.control.table(name) == table
        match kind:
            case "mirror":
                assert len(parse_mirror(bench.control.status(name)[0].params).legs) == 2
            case "snapshot":
                assert isinstance(parse_snapshot(bench.control.status(name)[0].params), SnapshotUsage)
        bench.control.remove(name)


def test_a_failed_leg_wakes_the_watcher(bench: Bench) -> None:
    """No uevent comes for it, and nothing polls."""
    legs = bench.legs(2)
    table = RaidTable(kind=RaidKind.RAID1, length=SIZE, chunk=Sectors(0), region=Sectors(1024), legs=legs, nosync=True)
    name = bench.device("raid", table.render())
    path = bench.control.ensure_node(name)
    settle()
    with EventWatcher() as watcher:
        assert name in watcher.changed()
        bench.control.replace(
            PREFIX + "rimage_1", ErrorTable(length=SIZE).render(), visible=False, flush=False, freeze=False
        )
        target = os.open(path, os.O_WRONLY | os.O_SYNC)
        try:
            os.write(target, bytes(4096))
        finally:
            os.close(target)

        def failed() -> bool:
            return parse_raid(bench.control.status(name)[0].params).legs[1] is LegHealth.FAILED

        until(watcher, failed)
        assert name in watcher.changed()
        assert watcher.changed() == {}


def test_a_new_device_is_a_change_and_the_poll_is_armed(bench: Bench) -> None:
    """A name that comes back as another device is new, though its event number is as before."""
    with EventWatcher() as watcher:
        watcher.changed()
        assert not watcher.wait(0)
        name = bench.create("again")
        assert select.select([watcher], [], [], DEADLINE_S)[0] == [watcher]
        assert watcher.changed() == {name: 0}
        assert not watcher.wait(0)
        bench.control.remove(name)
        bench.control.create(name, "BLKRECOV-another")
        assert watcher.wait(DEADLINE_S)
        assert watcher.changed() == {name: 0}


def test_udev_keeps_private_layers_out_of_dev_disk(bench: Bench) -> None:
    """A leg of a mirror holds the same file system as the LUN; only one of them may appear by its UUID."""
    private = bench.device("private", linear(bench.piece("one")))
    visible = bench.device("visible", linear(bench.piece("two")), visible=True)
    for name in (private, visible):
        bench.control.ensure_node(name)
    settle()
    subprocess.run(["udevadm", "trigger", "--action=add", "--settle", "--subsystem-match=block"], check=True)
    by_id = {path.name for path in Path("/dev/disk/by-id").glob("dm-name-blkrecov-*")}
    assert by_id == {f"dm-name-{visible}"}
    assert node(private).is_block_device()


@pytest.mark.parametrize("visible", [True, False])
def test_the_bench_answers_to_our_cookies_as_dmsetup_does(visible: bool) -> None:
    """In the guest a rule gives udev the flags that two processes would be started for; they have to be the same ones."""
    cookie = udev_event(visible=visible)
    rules = Path(__file__).parents[2].joinpath("scripts/uml/54-dm-cookies.rules").read_text().replace("\\\n", "")
    (rule,) = (line for line in rules.splitlines() if line.startswith(f'ENV{{DM_COOKIE}}=="{cookie}"'))
    said = subprocess.run(["dmsetup", "udevflags", str(cookie)], check=True, capture_output=True, text=True).stdout
    flags = set(re.findall(r"^(DM_UDEV_\w+)='1'$", said, re.MULTILINE))
    assert set(re.findall(r'ENV\{(DM_UDEV_\w+)\}="1"', rule)) == flags != set()


def test_a_node_that_udev_did_not_make_is_made(bench: Bench) -> None:
    """In containers and early at boot there is no udevd; here it is given no time. A wrong link is put right too."""
    name = bench.device("alone", ErrorTable(length=Sectors(8)).render())
    settle()
    path = node(name)
    path.unlink()
    path.symlink_to("../null")
    assert bench.control.ensure_node(name, patience_s=0) == path
    found = path.stat().st_rdev
    assert DeviceNumber(os.major(found), os.minor(found)) == bench.control.info(name).number


def test_a_list_longer_than_the_buffer_is_read_whole(bench: Bench) -> None:
    """300 devices of some 100 bytes each: the first answer is BUFFER_FULL."""
    made = [bench.create(f"many-{number:03}-{'x' * 40}") for number in range(300)]
    assert {entry.name for entry in bench.control.devices()} >= set(made)


def test_a_table_longer_than_the_buffer_is_loaded_and_read_back(bench: Bench) -> None:
    """A LUN of many extents: 1000 segments."""
    number = bench.piece("below")
    segments = tuple(
        Segment(device=number, offset=Sectors(8 * place), length=Sectors(8)) for place in reversed(range(1000))
    )
    name = bench.device("long", LinearTable(segments=segments).render())
    assert bench.control.table(name) == LinearTable(segments=segments).render()


def test_a_call_that_is_held_stops_no_other_thread(bench: Bench) -> None:
    """A load whose constructor waits for a hung drive, and a suspend that waits for I/O which that drive holds.

    The load's buffer is larger than 1024 bytes: with fcntl.ioctl() the whole interpreter would stand still here.
    """
    control = bench.control
    legs = bench.legs(2)
    upper = bench.device("upper", linear(legs[0].data))
    other = bench.create("other")
    path = control.ensure_node(upper)
    settle()
    table = RaidTable(kind=RaidKind.RAID1, length=SIZE, chunk=Sectors(0), legs=legs, nosync=True)
    hung = (PREFIX + "rmeta_0", PREFIX + "rimage_0")
    for name in hung:
        control.suspend(name)
    with ThreadPoolExecutor() as pool:
        try:
            reading = pool.submit(path.read_bytes)
            # The read is on its way when the kernel counts it: /sys/block/dm-N/inflight, reads first.
            inflight = Path(f"/sys/block/dm-{control.info(upper).number.minor}/inflight")
            deadline = time.monotonic() + DEADLINE_S
            while inflight.read_text().split()[0] == "0":
                assert time.monotonic() < deadline, "the read never started"
            suspending = pool.submit(control.suspend, upper)
            loading = pool.submit(control.load, other, table.render())
            for _ in range(20):
                assert control.status(upper)[0].kind == "linear"
                assert control.status(PREFIX + "rimage_1")[0].kind == "linear"
            assert not loading.done()
            assert not reading.done()
        finally:
            for name in hung:
                control.resume(name, visible=False)
        loading.result(DEADLINE_S)
        suspending.result(DEADLINE_S)
        control.resume(upper, visible=False)
        reading.result(DEADLINE_S)


def zero(number: str, size: int) -> None:
    """Make a device's first bytes forget what they said. devtmpfs has the node at once, where udev's links take their time."""
    device = os.open(f"/dev/dm-{number.partition(':')[2]}", os.O_WRONLY | os.O_SYNC)
    try:
        os.write(device, bytes(size))
    finally:
        os.close(device)
