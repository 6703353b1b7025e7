"""What the guest's programs share. Runs in the guest, as root, on its kernel."""

import json
import mmap
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from blkrecov import engine
from blkrecov.array import Array
from blkrecov.dm import names
from blkrecov.dm.control import Control
from blkrecov.dm.events import EventWatcher
from blkrecov.dm.table import DelayTable, Segment
from blkrecov.geometry import Request
from blkrecov.model import Layout, Lun
from blkrecov.settings import Settings
from blkrecov.units import MIB, SECTOR, Bytes, Sectors, sectors
from tests.crash.power import REPORT, Json

ARRAY: Final = "lab"
OUT: Final = Path(os.environ.get("BLKRECOV_VM_OUT", "/nonexistent"))
DEADLINE_S: Final = 90.0
T = TypeVar("T")


def settings() -> Settings:
    return Settings.load()


def report(value: Json) -> None:
    """Tell the host, whole or not at all."""
    fresh = OUT / "report.new"
    fresh.write_text(json.dumps(value, indent=1))
    fresh.rename(OUT / REPORT)


def mark(name: str) -> None:
    (OUT / name).touch()


def ubd(number: int) -> str:
    return f"/dev/ubd{chr(ord('a') + number)}"


def blkrecov(*words: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
    """The command, as an operator runs it."""
    done = subprocess.run(["blkrecov", *words], capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    said = f"blkrecov {' '.join(words)}: status {done.returncode}\n{done.stdout}{done.stderr}"
    assert expect is None or done.returncode == expect, said
    return done


def request(name: str, layout: str, mib: int, drives: int | str, *, exported: bool = True) -> Request:
    """A LUN on the first so many drives, or on those that are named."""
    on = tuple(f"d{number}" for number in range(drives)) if isinstance(drives, int) else tuple(drives.split(","))
    return Request(name=name, layout=Layout(layout), size=Bytes(mib * MIB), drives=on, exported=exported)


def make(requests: list[Request], drives: int) -> None:
    """A new array on the guest's disks, its LUNs synchronised, and that written down."""
    engine.create_array(settings(), ARRAY)
    with opened() as array:
        for number in range(drives):
            array.add_drive(ubd(number), size=None, name=f"d{number}", spare=False, force=False)
        for wanted in requests:
            array.create_lun(array.propose_lun(wanted))
        until_in_sync(array)
    deadline = time.monotonic() + DEADLINE_S
    while True:
        with opened() as array:
            if all(lun.initialised for lun in array.document.luns):
                return
            # Noted by an open that finds all in sync. For a moment after its end the kernel may say otherwise again.
            until_in_sync(array)
            assert time.monotonic() < deadline, f"the first synchronisation's end is not noted: {statuses(array)}"


@contextmanager
def opened() -> Iterator[Array]:
    with Array.opened(settings(), ARRAY) as array:
        assert not array.trouble, {str(lun): error.message for lun, error in array.trouble.items()}
        yield array


def until(array: Array, predicate: Callable[[], T | None], what: str, tick_s: float = 0.25) -> T:
    """What the predicate gives, looked for after every event of device-mapper and now and then."""
    deadline = time.monotonic() + DEADLINE_S
    with EventWatcher() as events:
        while True:
            events.changed()
            array.observe()
            value = predicate()
            if value is not None and value is not False:
                return value
            assert time.monotonic() < deadline, f"{what}: {statuses(array)}"
            events.wait(tick_s)


def until_in_sync(array: Array) -> None:
    """Until the kernel says of every LUN that can be whole that it is."""

    def done() -> bool:
        for lun in array.document.luns:
            raid = array.observed.raid(lun)
            if lun.layout.fault_tolerant and not lun.lost and not (raid and raid.in_sync):
                return False
        return True

    until(array, done, "in sync")


def statuses(array: Array) -> dict[str, str]:
    """The kernel's words for each LUN's plex."""
    found = {}
    for lun in array.document.luns:
        live = array.observed.plex(lun)
        found[lun.name] = live.status[0].params if live and live.status else "not loaded"
    return found


def disk_of(array: Array, lun: Lun) -> str:
    """A LUN's SCSI disk; for one without, its device-mapper device."""
    exported = array.observed.exports.get(lun.uuid)
    number = array.observed.devices[names.dm_uuid(lun.uuid, "lun")].number
    return exported.disk if exported else f"/dev/dm-{number.partition(':')[2]}"


def slow_down(array: Array, drive: str, write_ms: int) -> None:
    """Give a drive a long way to its medium: its port becomes a delay. The next process to open the array undoes it."""
    uuid = array.document.drive(drive).uuid
    device = array.observed.backings[uuid].device
    length = sectors(array.document.drive(drive).size)
    source = Segment(device=device, offset=Sectors(0), length=length)
    table = DelayTable(source=source, read_ms=0, write_ms=write_ms).render()
    with Control() as control:
        control.replace(names.drive_name(ARRAY, drive), table, visible=False)


def resyncs() -> int:
    """How many resynchronisations the kernel has begun since it was started."""
    log = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    return log.count("resync of RAID array")


def written_to_members(array: Array, lun: Lun) -> list[int]:
    """Bytes written to each member's data device since it was made."""
    found = []
    for member in lun.members:
        live = array.observed.devices.get(names.dm_uuid(member.uuid, "rimage"))
        stat = Path(f"/sys/dev/block/{live.number}/stat").read_text().split() if live else ["0"] * 17
        found.append(int(stat[6]) * SECTOR)
    return found


@contextmanager
def direct(disk: str) -> Iterator[int]:
    descriptor = os.open(disk, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_all(disk: str) -> bytes:
    """All of a disk, past the caches."""
    with direct(disk) as descriptor:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        buffer = mmap.mmap(-1, size)
        done = 0
        while done < size:
            done += os.preadv(descriptor, [memoryview(buffer)[done : done + MIB]], done)
        return buffer[:]


def write_all(disk: str, data: bytes) -> None:
    """From the disk's start, flushed."""
    with direct(disk) as descriptor:
        for at in range(0, len(data), MIB):
            piece = data[at : at + MIB]
            buffer = mmap.mmap(-1, len(piece))
            buffer[:] = piece
            assert os.pwritev(descriptor, [buffer], at) == len(piece)
        os.fdatasync(descriptor)
