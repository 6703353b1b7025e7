"""In the guest: the demo's story beside blkrecovd, by D-Bus alone and by commands alone.

A LUN with a file system, a drive that fails while files are written and that nobody recovers from but the service, a shadow copy
that is put back, a drive that goes and comes back. After each chapter all files are read from the drives again.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from blkrecov.bus.interfaces import ARRAY, DRIVE, INTERFACES, LUN, MANAGER, NAME, SESSION, SHADOW, TASK
from blkrecov.bus.objects import ROOT
from blkrecov.units import MIB
from tests.kernel.buslab import Client
from tests.system.bus import Heard, call, get, named, until
from tests.system.guest import DRIVES, run
from tests.system.machine import Json

SIZE: Final = 16 * MIB
_FILES: Final = 32
_FILE: Final = 128 * 1024


class Files:
    """Files of noise, and what ought to be in them."""

    def __init__(self, point: Path) -> None:
        self._point = point
        self._digests: dict[str, str] = {}
        self.written = 0

    @contextmanager
    def growing(self) -> Iterator[None]:
        """Written one after the other meanwhile."""
        ended = threading.Event()

        def go_on() -> None:
            while not ended.wait(0.02):
                self.write()

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def write(self) -> None:
        """The next file; one of the first again when there are enough."""
        name, contents = f"f{self.written % _FILES}", os.urandom(_FILE)
        with open(self._point / name, "wb") as file:
            file.write(contents)
            os.fsync(file.fileno())
        self._digests[name] = hashlib.sha256(contents).hexdigest()
        self.written += 1

    def ruin(self) -> None:
        """Overwrite them with something else, and forget that."""
        for name in self._digests:
            (self._point / name).write_bytes(os.urandom(_FILE))
        os.sync()

    def are_there(self) -> bool:
        """Whether each of them is what it was, read from the drives."""
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return len(self._digests) > 1 and self._digests == {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self._point.glob("f*")
        }


@contextmanager
def mounted(device: str, point: Path) -> Iterator[None]:
    point.mkdir(exist_ok=True)
    run("mount", device, point)
    try:
        yield
    finally:
        run("umount", point)


def page83(device: str) -> str:
    """What the disk answers by itself: its NAA identity."""
    said = run("sg_vpd", "--page=di", device)
    return next(word for word in said.split() if word.startswith("0x6"))


class Journal:
    """What the service says from here on."""

    def __init__(self) -> None:
        shown = run("journalctl", "--lines=0", "--show-cursor", "--quiet")
        self._cursor = shown.partition("cursor: ")[2].strip()

    def read(self) -> list[str]:
        words = ["--unit=blkrecovd", f"--after-cursor={self._cursor}", "--output=cat", "--no-pager"]
        return run("journalctl", *words).splitlines()


def by_bus(heard: Heard) -> Json:
    """Array `lab`. At the end its LUN `vol` is on drives d0 and d2; d1 has failed."""
    journal, point = Journal(), Path("/mnt/vol")
    array = call(ROOT, MANAGER, "CreateArray sa{sv} lab 0")
    for name, spare in (("d0", "false"), ("d1", "false"), ("d2", "true")):
        options = f"3 name s {name} size t {48 * MIB} spare b {spare}"
        call(array, ARRAY, f"AddDrive sa{{sv}} {DRIVES}/lab-{name}.img {options}")
    vol = call(array, ARRAY, f"CreateLun ssta{{sv}} vol raid1 {SIZE} 1 drives as 2 d0 d1")
    disk, files = get(vol, LUN, "Device"), Files(point)
    lines = run("busctl", "introspect", NAME, vol, LUN).splitlines()
    report: Json = {
        "shown": [line.split()[0] for line in lines if line.startswith(".")],
        "there": [
            *(f".{item.name}" for item in INTERFACES[LUN].methods),
            *(f".{item.name}" for item in INTERFACES[LUN].properties),
        ],
        "identity": [page83(disk), f"0x{get(vol, LUN, 'Naa')}"],
    }
    run("mkfs.ext4", "-q", disk)
    with mounted(disk, point):
        with files.growing():
            until("files", lambda: files.written > 4)
            before = files.written
            call(named(DRIVE, "d1", array), DRIVE, "Fail a{sv} 0")
            (recovery, state), *_ = until("the recovery's end", lambda: heard.completed(array))
            report["meanwhile"] = files.written - before
        report["recovery"] = [state, heard.members(recovery)[-1], get(recovery, TASK, "Percent")]
        report["health"] = heard.changes(vol, "Health")
        report["drives"] = [get(member[1], DRIVE, "Name") for member in get(vol, LUN, "Members")]
        report["recovered"] = files.are_there()
        monday, _ = call(vol, LUN, "CreateShadowCopy sa{sv} monday 0")
        files.ruin()
        report["ruined"] = not files.are_there()

    # A restore session ends with its client, and each busctl is one: this takes a program.
    with Client.connected() as client:
        session = client.call(array, ARRAY, "InitializeForRestore", "a{sv}", {})
        client.call(session, SESSION, "Add", "ssa{sv}", monday, "", {})
        restore = client.call(session, SESSION, "Resync", "a{sv}", {})
        report["restore"] = client.call(restore, TASK, "Wait", "a{sv}", {})[:2]
    with mounted(disk, point):
        report["restored"] = files.are_there()
        call(named(DRIVE, "d0", array), DRIVE, "Fail a{sv} 0")
        report["degraded"] = get(vol, LUN, "Health")
        with files.growing():
            task = call(named(DRIVE, "d0", array), DRIVE, "Reconnect a{sv} 0")
            report["reconnect"] = call(task, TASK, "Wait a{sv} 0")[:2]
        report["reconnected"] = files.are_there()
    call(monday, SHADOW, "Delete a{sv} 0")
    until("what has gone", lambda: len(heard.removed()) == 2)
    report["gone"] = heard.removed() == [session, monday]
    report["tasks"] = get(array, ARRAY, "Tasks")
    report["completed"] = [state for _, state in heard.completed(array)]
    report["identity"] += [page83(disk), call(vol, LUN, "Verify a{sv} 0")[0]]
    report["journal"] = journal.read()
    return report


def shell(*words: str) -> str:
    return run("blkrecov", "--array", "shell", *words)


def shown(*words: str) -> Any:
    return json.loads(shell(*words, "--json"))


def by_commands() -> Json:
    """The same with array `shell`, and a LUN with parity."""
    journal, point = Journal(), Path("/mnt/data")
    run("blkrecov", "array", "create", "shell")
    for number in range(4):
        spare = ["--spare"] if number == 3 else []
        shell("drive", "add", f"{DRIVES}/shell-d{number}.img", "--size", "40M", *spare)
    shell("lun", "create", "data", "--layout", "raid5", "--size", "16M", "--drives", "d0,d1,d2")
    lun = shown("lun", "show", "data")
    disk, files = lun["device"], Files(point)
    report: Json = {"identity": [page83(disk), f"0x{lun['page83']['naa']}"]}
    run("mkfs.ext4", "-q", disk)
    with mounted(disk, point):
        with files.growing():
            shell("drive", "fail", "d1")
            until("the recovery", lambda: any("is done" in line for line in journal.read()))
        lun = shown("lun", "show", "data")
        report["recovery"] = [lun["health"], [member["drive"] for member in lun["members"]]]
        report["recovered"] = files.are_there()
        shell("snapshot", "create", "data", "monday")
        files.ruin()
        report["ruined"] = not files.are_there()
    shell("resync", "monday:data")
    with mounted(disk, point):
        report["restored"] = files.are_there()
        shell("drive", "fail", "d0")
        files.write()
        report["degraded"] = shown("lun", "show", "data")["health"]
        shell("drive", "reconnect", "d0")
        report["reconnected"] = files.are_there()
        # A LUN that has lost too much, and its file system with it: the service may mount it again, from within its sandbox.
        shell("drive", "fail", "d0")
        shell("drive", "fail", "d2")
        with suppress(OSError):
            (point / "late").mkdir()
        run("sync", "--file-system", point, expect=1)
        report["failed"] = shown("lun", "show", "data")["status"]
        shell("drive", "reconnect", "d2")
        shell("drive", "reconnect", "d0")
        files.write()
        report["mounted"] = [files.are_there(), any("is mounted again" in line for line in journal.read())]
    lun = shown("lun", "show", "data")
    report["end"] = [lun["status"], lun["health"]]
    report["tasks"] = {task["kind"]: task["state"] for task in shown("task", "list")}
    report["identity"] += [page83(disk), lun["page83"]["verified"]]
    report["journal"] = journal.read()
    return report
