"""LUNs as SCSI disks on a real kernel: LIO, sysfs, udev. What is made here is named blkrecov-… or p83-…."""

import errno
import mmap
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from blkrecov.errors import (
    DeviceInUse,
    IdentityMismatch,
    NotSupported,
    ObjectExists,
    ObjectNotFound,
    PathNotFound,
    ProviderFailure,
    TimedOut,
)
from blkrecov.holders import holders
from blkrecov.page83 import export as export_module
from blkrecov.page83 import sysfs, udev
from blkrecov.page83.designator import Kind, eligible
from blkrecov.page83.export import Exporter
from blkrecov.page83.identity import Witness, naa_of_serial, serial_of, target_wwn_of, verify
from tests.kernel.lab import take_down_exports

SERIAL = serial_of(UUID("01234567-89ab-cdef-0123-456789abcdef"))
NAA = "60014050123456789abcdef012345678"
OTHER_SERIAL = serial_of(UUID("fedcba98-7654-3210-fedc-ba9876543210"))
TARGET = Path("/sys/kernel/config/target")
DEADLINE_S = 20.0
MIB = 2048  # In sectors.


def run(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@dataclass(frozen=True)
class Devices:
    """dm-linear devices on one loop device: one, two, each 64 MiB, with room behind to grow."""

    loop: str
    one: str = "/dev/mapper/p83-one"
    two: str = "/dev/mapper/p83-two"

    def table(self, number: int, size: int) -> str:
        return f"0 {size} linear {self.loop} {number * 128 * MIB}"

    def resize(self, name: str, table: str) -> None:
        run("dmsetup", "load", name, "--table", table)
        run("dmsetup", "resume", name)


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devices]:
    with ExitStack() as undo:
        backing = tmp_path_factory.mktemp("page83") / "backing"
        run("truncate", "--size=256M", str(backing))
        made = Devices(run("losetup", "--find", "--show", str(backing)))
        undo.callback(run, "losetup", "--detach", made.loop)
        for number, name in enumerate(("p83-one", "p83-two")):
            run("dmsetup", "create", name, "--table", made.table(number, 64 * MIB))
            undo.callback(run, "dmsetup", "remove", "--retry", name)
        yield made


@pytest.fixture
def exporter(devices: Devices) -> Iterator[Exporter]:
    """What it exports is gone when the test has ended, whoever has a disk open: a test's failure stays its own."""
    yield Exporter(DEADLINE_S)
    take_down_exports()


@pytest.fixture
def lun(devices: Devices) -> str:
    return devices.one


def configfs() -> list[str]:
    return sorted(str(path) for top in ("core", "loopback") for path in (TARGET / top).glob("*/*"))


def hosts() -> list[str]:
    return sorted(path.name for path in Path("/sys/class/scsi_host").glob("*"))


def read_error(disk: str) -> int:
    """The errno of a direct read, 0 where it succeeds."""
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        with closing(mmap.mmap(-1, 4096)) as buffer:
            os.preadv(fd, [buffer], 0)
    except OSError as error:
        return error.errno or -1
    finally:
        os.close(fd)
    return 0


def test_the_disk_answers_with_the_identity_that_we_computed(lun: str, exporter: Exporter) -> None:
    """Our computation, the kernel's page, sg3_utils' reading of it and udev's entry and link: all one."""
    made = exporter.export("one", lun, SERIAL)
    assert made.naa == NAA == naa_of_serial(SERIAL)
    assert f"0x{NAA}" in run("sg_vpd", "-p", "di", made.disk)
    assert udev.properties(made.disk)["ID_WWN_WITH_EXTENSION"] == f"0x{NAA}"
    assert udev.link_of(NAA).resolve() == Path(made.disk)
    metadata = Witness("metadata", NAA, "the test")
    assert verify("LUN one", [metadata, sysfs.witness(made.disk), udev.witness(made.disk)]).naa == NAA


def test_the_disk_bears_our_names(lun: str, exporter: Exporter) -> None:
    """Operators see vendor and model in lsscsi; the model is the LUN's name as far as it fits."""
    made = exporter.export("a-name-beyond-sixteen", lun, SERIAL)
    udev.settle(10)  # The disk of the test before had this name and this identity.
    said = udev.properties(made.disk)
    assert (said["ID_VENDOR"], said["ID_MODEL"]) == ("blkrecov", "a-name-beyond-si")


def test_the_host_lists_the_disk_with_its_page(lun: str, exporter: Exporter) -> None:
    """Size in sectors, state, the kernel's own wwid, and designators that identify it."""
    made = exporter.export("one", lun, SERIAL)
    (disk,) = [disk for disk in sysfs.scsi_disks() if disk.disk == made.disk]
    assert (disk.hctl, disk.state, disk.size, disk.wwid) == (made.hctl, "running", 64 * MIB, f"naa.{NAA}")
    page = sysfs.read_page(made.disk)
    assert page is not None
    assert [d.kind for d in page.designators if eligible(d)] == [Kind.NAA, Kind.T10_VENDOR_ID]


def test_export_again_gives_the_same_export(lun: str, exporter: Exporter) -> None:
    """A daemon that restarts finds its exports, and does not disturb who uses them."""
    made = exporter.export("one", lun, SERIAL)
    assert exporter.export("one", lun, SERIAL) == made
    assert (exporter.exports(), exporter.find(SERIAL)) == ((made,), made)


def test_identity_survives_a_new_export(lun: str, exporter: Exporter) -> None:
    """The serial makes the identity, not the order or number of exports."""
    first = exporter.export("one", lun, SERIAL)
    exporter.unexport("one")
    second = exporter.export("one", lun, SERIAL)
    assert (second.naa, sysfs.witness(second.disk).naa) == (first.naa, NAA)


def test_unexport_leaves_nothing(lun: str, exporter: Exporter) -> None:
    """Neither backstore nor target, neither SCSI host nor disk, nor udev's link; and the device is free."""
    exporter.export("warm-up", lun, OTHER_SERIAL)
    exporter.unexport(OTHER_SERIAL)
    before = (configfs(), hosts())
    made = exporter.export("one", lun, SERIAL)
    assert (configfs(), hosts()) != before
    exporter.unexport(SERIAL)
    assert (configfs(), hosts()) == before
    assert not Path("/sys/class/block", Path(made.disk).name).exists()
    assert not udev.link_of(NAA).exists()
    assert holders(lun) == ()
    assert exporter.find(SERIAL) is None


def test_unexport_of_nothing_is_refused(exporter: Exporter) -> None:
    """A mistyped name is told."""
    with pytest.raises(ObjectNotFound, match="nobody is not exported"):
        exporter.unexport("nobody")


def test_a_mounted_disk_stays(lun: str, exporter: Exporter, tmp_path: Path) -> None:
    """Refused before anything is taken down: the file system still works, and the export is whole."""
    made = exporter.export("one", lun, SERIAL)
    run("mkfs.ext4", "-q", made.disk)
    place = tmp_path / "mount point"
    place.mkdir()
    run("mount", made.disk, str(place))
    try:
        with pytest.raises(DeviceInUse, match=f"a mount on {place}"):
            exporter.unexport("one")
        (place / "file").write_text("still here")
        assert exporter.find(SERIAL) == made
    finally:
        run("umount", str(place))


def test_an_open_disk_stays(lun: str, exporter: Exporter) -> None:
    """A process that reads the disk is named with its number."""
    made = exporter.export("one", lun, SERIAL)
    with open(made.disk, "rb"), pytest.raises(DeviceInUse, match=f"process {os.getpid()} "):
        exporter.unexport("one")


def test_what_udev_starts_to_look_at_a_disk_does_not_hold_it(lun: str, exporter: Exporter, tmp_path: Path) -> None:
    """scsi_id and its like are children of udev's workers, and gone in a moment; the same program started by us is named."""
    disk = exporter.export("one", lun, SERIAL).disk
    began, probe, rule = tmp_path / "began", tmp_path / "probe", Path("/run/udev/rules.d/99-p83.rules")
    os.mkfifo(began)
    probe.write_text(f"#!/bin/sh\nexec 3<$1\necho $$ >{began}\nexec sleep 100\n")
    probe.chmod(0o755)
    rule.parent.mkdir(exist_ok=True)
    rule.write_text(f'ACTION=="change", KERNEL=="{Path(disk).name}", PROGRAM="{probe} $devnode"\n')
    with ExitStack() as undo:
        undo.callback(udev.settle, DEADLINE_S)
        undo.callback(run, "udevadm", "control", "--reload")
        undo.callback(rule.unlink)
        run("udevadm", "control", "--reload")
        run("udevadm", "trigger", "--action=change", disk)
        looking = int(run("timeout", f"{DEADLINE_S:g}", "cat", str(began)))
        undo.callback(os.kill, looking, signal.SIGKILL)
        assert Path(f"/proc/{looking}/fd/3").readlink() == Path(disk)
        assert holders(disk) == ()
        ours = undo.enter_context(subprocess.Popen([probe, disk]))
        undo.callback(ours.kill)
        assert int(run("timeout", f"{DEADLINE_S:g}", "cat", str(began))) == ours.pid
        (holder,) = holders(disk)
        assert holder.startswith(f"process {ours.pid} ")


def test_a_disk_under_dm_stays(lun: str, exporter: Exporter) -> None:
    """What is stacked on the disk is named as its owner knows it."""
    made = exporter.export("one", lun, SERIAL)
    run("dmsetup", "create", "p83-above", "--table", f"0 8 linear {made.disk} 0")
    try:
        with pytest.raises(DeviceInUse, match="dm device p83-above"):
            exporter.unexport("one")
    finally:
        run("dmsetup", "remove", "--retry", "p83-above")


def test_holders_of_a_lun_name_its_export(lun: str, exporter: Exporter) -> None:
    """LIO holds the device below; other modules ask before they take it away."""
    exporter.export("one", lun, SERIAL)
    assert [holder for holder in holders(lun) if "LIO" in holder] == ["LIO backstore iblock_0/blkrecov-one"]


def test_a_second_lun_of_the_same_serial_is_refused(devices: Devices, exporter: Exporter) -> None:
    """Two disks of one identity would be one to multipath, and to us; both are named."""
    made = exporter.export("one", devices.one, SERIAL)
    with pytest.raises(IdentityMismatch, match=rf"{NAA} is claimed by LUN two, {made.disk} \(LUN one\)"):
        exporter.export("two", devices.two, SERIAL)
    assert exporter.exports() == (made,)


def test_a_name_that_is_taken_is_refused(devices: Devices, exporter: Exporter) -> None:
    """Another LUN, another identity, but the name of this export."""
    exporter.export("one", devices.one, SERIAL)
    with pytest.raises(ObjectExists):
        exporter.export("one", devices.two, OTHER_SERIAL)


def test_two_luns_have_a_host_each(devices: Devices, exporter: Exporter) -> None:
    """Error handling stops a SCSI host; one LUN's trouble is not the other's."""
    one = exporter.export("one", devices.one, SERIAL)
    two = exporter.export("two", devices.two, OTHER_SERIAL)
    assert one.hctl.split(":")[0] != two.hctl.split(":")[0]
    assert exporter.exports() == (one, two)


def test_a_device_in_use_is_refused(devices: Devices, exporter: Exporter) -> None:
    """The loop device under the dm device is claimed; the dm device is named."""
    before = configfs()
    with pytest.raises(DeviceInUse, match="dm device p83-one, dm device p83-two"):
        exporter.export("loop", devices.loop, SERIAL)
    assert configfs() == before


def test_a_path_that_is_no_device_is_refused(exporter: Exporter) -> None:
    """Before anything is made."""
    with pytest.raises(PathNotFound, match="is no block device"):
        exporter.export("one", "/etc/passwd", SERIAL)


def test_the_disk_grows_on_rescan(devices: Devices, exporter: Exporter) -> None:
    """LIO follows the device by itself, the disk only when it is told to ask."""
    made = exporter.export("one", devices.one, SERIAL)
    devices.resize("p83-one", devices.table(0, 96 * MIB))
    try:
        assert sysfs.size(made.disk) == 64 * MIB
        assert exporter.rescan(made) == 96 * MIB
        assert sysfs.witness(made.disk).naa == NAA
        exporter.unexport("one")
    finally:
        devices.resize("p83-one", devices.table(0, 64 * MIB))


def test_a_wrong_identity_is_never_left_exported(lun: str, exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's page is compared with our computation; here ours is made to differ."""
    exporter.export("warm-up", lun, OTHER_SERIAL)
    exporter.unexport(OTHER_SERIAL)
    before = (configfs(), hosts())
    monkeypatch.setattr(export_module, "naa_of_serial", lambda serial: "6" + 31 * "0")
    with pytest.raises(IdentityMismatch, match=NAA):
        exporter.export("one", lun, SERIAL)
    assert (configfs(), hosts()) == before


def test_a_refusal_half_way_leaves_nothing(lun: str, exporter: Exporter) -> None:
    """The target's name is taken by someone else: theirs stays, ours goes."""
    exporter.export("warm-up", lun, OTHER_SERIAL)
    exporter.unexport(OTHER_SERIAL)
    foreign = TARGET / "loopback" / target_wwn_of(SERIAL)
    foreign.mkdir()
    try:
        before = configfs()
        with pytest.raises(ProviderFailure, match="already exists"):
            exporter.export("one", lun, SERIAL)
        assert configfs() == before
    finally:
        foreign.rmdir()


def test_a_disk_that_does_not_come_in_time_leaves_nothing(lun: str, exporter: Exporter) -> None:
    """The deadline passes while sd and udev are still at work on the new disk; it is taken away under them."""
    exporter.export("warm-up", lun, OTHER_SERIAL)
    exporter.unexport(OTHER_SERIAL)
    before = (configfs(), hosts())
    with pytest.raises(TimedOut, match="the SCSI disk of one"):
        Exporter(timeout_s=0.0).export("one", lun, SERIAL)
    assert (configfs(), hosts()) == before
    assert exporter.export("one", lun, SERIAL).naa == NAA


def test_a_missing_module_is_named(lun: str, exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of small virtual machines come without LIO; the operator is told what to install."""
    monkeypatch.setattr(export_module, "_MODULES", ("target_core_mod", "p83_no_such_module"))
    with pytest.raises(NotSupported, match="the kernel module p83_no_such_module is not available"):
        exporter.export("one", lun, SERIAL)


def test_the_disk_discards_where_the_device_does(lun: str, exporter: Exporter) -> None:
    """Thin storage below stays thin; a device that cannot discard is not said to."""
    made = exporter.export("one", lun, SERIAL)
    below, above = (
        int(Path("/sys/class/block", Path(node).resolve().name, "queue/discard_max_bytes").read_text())
        for node in (lun, made.disk)
    )
    assert (below > 0) == (above > 0)


def test_remains_of_a_crash_are_cleared_by_the_next_export(lun: str, exporter: Exporter) -> None:
    """A crash runs no undo: the backstore is there, with its serial and half a target, and holds the device."""
    exporter.export("one", lun, SERIAL)
    link = next((TARGET / "loopback").glob("*/tpgt_1/lun/lun_0/blkrecov-one"))
    link.unlink()
    assert exporter.exports() == ()
    made = exporter.export("one", lun, SERIAL)
    assert exporter.exports() == (made,)


def test_remains_of_a_crash_can_be_unexported(lun: str, exporter: Exporter) -> None:
    """The operator who gives up the LUN gets its device back."""
    exporter.export("one", lun, SERIAL)
    next((TARGET / "loopback").glob("*/tpgt_1/lun/lun_0/blkrecov-one")).unlink()
    exporter.unexport("one")
    assert holders(lun) == ()
    assert not list((TARGET / "loopback").glob("naa.*"))


def test_a_disk_that_is_not_ready_fails_at_once_and_heals(lun: str, exporter: Exporter) -> None:
    """ALUA unavailable: an I/O error and no hang, the SCSI device stays, and the way back needs no new export."""
    made = exporter.export("one", lun, SERIAL)
    assert read_error(made.disk) == 0
    exporter.set_ready(made, False)
    assert not exporter.is_ready(made)
    assert read_error(made.disk) == errno.EIO
    sense = subprocess.run(["sg_turs", "-v", made.disk], check=False, capture_output=True, text=True)
    assert "not ready" in (sense.stdout + sense.stderr).lower()
    with pytest.raises(ProviderFailure, match="not ready"):
        exporter.rescan(made)
    exporter.set_ready(made, True)
    assert read_error(made.disk) == 0
    assert sysfs.scsi_disk(made.disk).state == "running"


def test_a_disk_that_is_not_ready_can_be_unexported(lun: str, exporter: Exporter) -> None:
    """A LUN that has failed is deleted from this state."""
    exporter.set_ready(exporter.export("one", lun, SERIAL), False)
    exporter.unexport("one")
    assert holders(lun) == ()


def test_export_needs_no_etc_target(lun: str, exporter: Exporter) -> None:
    """The array's metadata says what is exported; nothing is saved beside it."""
    saved = Path("/etc/target")
    if saved.exists():
        assert list(saved.iterdir()) == []
        saved.rmdir()
    exporter.export("one", lun, SERIAL)
    exporter.unexport("one")
    assert not saved.exists()


def test_wait_for_gives_up_at_its_deadline(devices: Devices) -> None:
    """A bounded wait says what it waited for."""
    with pytest.raises(TimedOut, match="udev's entry of /dev/no-such-disk"):
        udev.wait_for("/dev/no-such-disk", bool, 0.1)


def test_wait_for_sees_what_is_there_already(devices: Devices) -> None:
    """No event comes for a device that udev has handled before."""
    udev.settle(DEADLINE_S)
    assert udev.wait_for(devices.one, lambda said: said.get("DM_NAME") == "p83-one", DEADLINE_S)["DM_NAME"] == "p83-one"
