"""In the guest: blkrecovd as systemd runs it, through both stories; then killed, restarted, stopped, stuck and held up by the
kernel in the midst of what it is at, while another LUN is written to; and what those may do who are not root.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from blkrecov.bus.interfaces import (
    ARRAY,
    DRIVE,
    INTERFACES,
    INTROSPECTABLE,
    LUN,
    MANAGER,
    NAME,
    OBJECT_MANAGER,
    PROPERTIES,
    SESSION,
    TASK,
)
from blkrecov.bus.objects import ROOT
from blkrecov.units import KIB, MIB, SECTOR
from tests.kernel.buslab import Client
from tests.system.bus import busctl, call, get, heard, named, until
from tests.system.guest import DRIVES, Writer, run
from tests.system.machine import Json
from tests.system.story import SIZE, Files, by_bus, by_commands, mounted

SERVICE: Final = "blkrecovd.service"
DENIED: Final = "org.freedesktop.DBus.Error.AccessDenied"
DROP_IN: Final = Path("/run/systemd/system/blkrecovd.service.d/sooner.conf")
WATCHDOG_S: Final = 5
LONG: Final = bool(os.environ.get("BLKRECOV_LONG"))


def _is(*keys: str) -> list[str]:
    """What systemd says of the service."""
    said = run("systemctl", "show", SERVICE, *(f"--property={key}" for key in keys)).splitlines()
    known = dict(line.partition("=")[::2] for line in said)
    return [known[key] for key in keys]


def _ends(number: signal.Signals) -> None:
    """Send it a signal, and wait until systemd has started it again, and it says that it is ready."""
    restarts, main = _is("NRestarts", "MainPID")
    os.kill(int(main), number)
    until("a restart", lambda: _is("NRestarts", "ActiveState") == [str(int(restarts) + 1), "active"])


def kill() -> None:
    _ends(signal.SIGKILL)


def stop_answering() -> None:
    """Its loop stands still; who sees that is the watchdog."""
    _ends(signal.SIGSTOP)


def restart() -> None:
    """And from then on with a watchdog that does not take as long as the package's."""
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text(f"[Service]\nWatchdogSec={WATCHDOG_S}\nRestartSec=1\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "restart", SERVICE)


def stop_and_start() -> None:
    run("systemctl", "stop", SERVICE)
    run("systemctl", "start", SERVICE)


def in_the_midst(task: str, *ways: Callable[[], None]) -> list[Json]:
    """Have the service end in each of these ways while the task is under way."""
    rows = []
    for way in ways:
        before = until("progress", lambda: get(task, TASK, "Percent"))
        began = time.monotonic()
        way()
        took_s = time.monotonic() - began
        state, percent = get(task, TASK, "State"), get(task, TASK, "Percent")
        rows.append({"way": way.__name__, "state": state, "percent": [before, percent], "seconds": round(took_s, 1)})
    return rows


@contextmanager
def written_beside(array: str) -> Iterator[Writer]:
    """A LUN of its own drive in the array, which is written to all the time."""
    call(array, ARRAY, f"AddDrive sa{{sv}} {DRIVES}/lab-d3.img 2 name s d3 size t {32 * MIB}")
    beside = call(array, ARRAY, f"CreateLun ssta{{sv}} beside linear {4 * MIB} 1 drives as 1 d3")
    disk, point = get(beside, LUN, "Device"), Path("/mnt/beside")
    run("mkfs.ext4", "-q", disk)
    with mounted(disk, point), Writer(point / "log") as writer:
        yield writer


def ended() -> Json:
    """A rebuild and a restore, during each of which the service ends again and again."""
    array, point = named(ARRAY, "lab"), Path("/mnt/vol")
    vol = named(LUN, "vol", array)
    disk, files = get(vol, LUN, "Device"), Files(point)
    drives = {name: named(DRIVE, name, array) for name in ("d0", "d1", "d2")}
    call(drives["d1"], DRIVE, "Reconnect a{sv} 0")
    call(drives["d1"], DRIVE, "SetHotSpare ba{sv} true 0")
    call(array, ARRAY, f"Configure a{{sv}} 1 rate-max t {(64 if LONG else 192) * KIB}")
    report: Json = {}
    with mounted(disk, point):
        for _ in range(8):
            files.write()
        before = set(get(array, ARRAY, "Tasks"))
        call(drives["d0"], DRIVE, "Fail a{sv} 0")
        (rebuild,) = until("the rebuild", lambda: set(get(array, ARRAY, "Tasks")) - before)
        with files.growing():
            ways = (kill, restart, stop_answering, *([stop_and_start, kill] if LONG else []))
            report["rebuild"] = in_the_midst(rebuild, *ways)
            call(rebuild, TASK, f"SetRates a{{sv}} 1 rate-max t {1000 * MIB}")
            report["rebuilt"] = call(rebuild, TASK, "Wait a{sv} 0")[:2]
        report["rebuilt"] += [get(vol, LUN, "Health"), files.are_there()]
        copy, _ = call(vol, LUN, f"CreateShadowCopy sa{{sv}} tuesday 1 store t {SIZE}")
        files.ruin()
    # Rates are md's; what copies a shadow copy knows none.
    call(drives["d2"], DRIVE, f"Fail a{{sv}} 1 slow t {500 if LONG else 250}")
    with Client.connected() as client:
        session = client.call(array, ARRAY, "InitializeForRestore", "a{sv}", {})
        client.call(session, SESSION, "Add", "ssa{sv}", copy, "", {})
        restore = client.call(session, SESSION, "Resync", "a{sv}", {})
    report["restore"] = in_the_midst(restore, kill, stop_and_start, *([restart, stop_answering, kill] if LONG else []))
    call(drives["d2"], DRIVE, "Reconnect a{sv} 0")
    report["restored"] = call(restore, TASK, "Wait a{sv} 0")[:2]
    with mounted(disk, point):
        report["restored"] += [get(vol, LUN, "Health"), files.are_there()]
    return report


@contextmanager
def held_up() -> Iterator[None]:
    """An array whose drive lies on a disk that takes minutes for a write, which cannot be told beforehand: what it is asked for
    meanwhile, a LUN, waits in the kernel.
    """
    image, point = DRIVES / "disk.img", Path("/mnt/far")
    point.mkdir()
    run("truncate", f"--size={64 * MIB}", image)
    loop = run("losetup", "--find", "--show", image).strip()
    tables = [f"0 {64 * MIB // SECTOR} delay {loop} 0 0 {loop} 0 {delay_ms}" for delay_ms in (0, 300_000)]
    run("dmsetup", "create", "far", "--table", tables[0])
    # Without a journal, whose thread would wait as well.
    run("mkfs.ext4", "-q", "-O", "^has_journal", "/dev/mapper/far")
    with mounted("/dev/mapper/far", point):
        array = call(ROOT, MANAGER, "CreateArray sa{sv} slow 0")
        call(array, ARRAY, f"AddDrive sa{{sv}} {point}/d0.img 1 size t {32 * MIB}")
        _put("far", tables[1])
        try:
            busctl(f"--expect-reply=no call {NAME} {array} {ARRAY} CreateLun ssta{{sv}} late linear {MIB} 0")
            yield
            assert get(array, ARRAY, "Luns") == []
        finally:
            _put("far", tables[0])  # What waits is let go.
        until("the LUN", lambda: get(array, ARRAY, "Luns"))
        call(array, ARRAY, "Stop a{sv} 0")
    run("dmsetup", "remove", "--retry", "far")


def _put(device: str, table: str) -> None:
    run("dmsetup", "reload", device, "--table", table)
    # Not frozen for that: to thaw it is to write to it, which would be delayed already.
    run("dmsetup", "suspend", "--nolockfs", device)
    run("dmsetup", "resume", device)


def slow() -> Json:
    """An array is held up for longer than the watchdog waits."""
    before = _is("NRestarts", "MainPID")
    with held_up():
        time.sleep(WATCHDOG_S + 2)
    return {"lived": _is("NRestarts", "MainPID") == before}


def others() -> Json:
    """What root, the group and a stranger read and hear, and what the two are answered to every call that there is."""
    run("useradd", "--system", "stranger")
    run("useradd", "--system", "--groups", "blkrecov", "reader")
    array = named(ARRAY, "lab")
    with Client.connected() as client:
        sessions = [client.call(array, ARRAY, "InitializeForRestore", "a{sv}", {}) for _ in range(2)]
        return _others(client, sessions[0])


def _others(client: Client, other: str) -> Json:
    """The session `other` is ended meanwhile, for those who listen to hear of it."""
    before = client.objects()
    lasting = {path: known for path, known in before.items() if path != other}
    everything = {ROOT: {MANAGER: {item.name: None for item in INTERFACES[MANAGER].properties}}, **lasting}
    one_of_each = {frozenset(known): path for path, known in everything.items()}
    reads = list(_reads(everything))
    calls = [each for path in one_of_each.values() for each in _calls(client, path)]
    work = Path("/run/users")
    work.mkdir()
    shutil.copy(Path(__file__).with_name("user.py"), work)
    with ExitStack() as stack:
        asked = {"root": reads, "reader": reads + calls, "stranger": reads + calls}
        users = {name: stack.enter_context(_user(name, work, wanted)) for name, wanted in asked.items()}
        client.call(other, SESSION, "End", "a{sv}", {})
        said: dict[str, Json] = {name: json.loads(user.communicate("now\n")[0]) for name, user in users.items()}
    read = {name: each["answers"][: len(reads)] for name, each in said.items()}
    answered = {name: zip(calls, said[name]["answers"][len(reads) :], strict=True) for name in ("reader", "stranger")}
    return {
        "kinds": sorted(name for known in one_of_each for name in known),
        "asked": [len(reads), len(calls)],
        "read": {name: sum(isinstance(answer, list) for answer in found) for name, found in read.items()},
        "same": read["reader"] == read["root"],
        "not_denied": {
            name: sorted({f"{asked['interface']}.{asked['member']}" for asked, answer in rows if answer != DENIED})
            for name, rows in answered.items()
        },
        "heard": {name: each["heard"] for name, each in said.items()},
        "unchanged": client.objects() == lasting,
    }


@contextmanager
def _user(name: str, work: Path, asked: Sequence[Json]) -> Iterator[subprocess.Popen[str]]:
    """Somebody who listens, and asks all that when there is a line to read."""
    file = work / f"{name}.json"
    file.write_text(json.dumps(asked))
    command = ["runuser", "--user", name, "--", "/usr/bin/python3", "-I", "-B", str(work / "user.py"), str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield process


def _reads(objects: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[Json]:
    """All that can be read of these objects."""

    def read(path: str, interface: str, member: str, *words: str) -> Json:
        return {"path": path, "interface": interface, "member": member, "signature": "s" * len(words), "body": words}

    yield read(ROOT, OBJECT_MANAGER, "GetManagedObjects")
    for path, known in objects.items():
        yield read(path, INTROSPECTABLE, "Introspect")
        for name, values in known.items():
            yield read(path, PROPERTIES, "GetAll", name)
            yield from (read(path, PROPERTIES, "Get", name, key) for key in values)


def _calls(client: Client, path: str) -> Iterator[Json]:
    """Every method that an object says it has: by its full name, without the interface, and of the connection by its own name."""
    owner = busctl(f"call org.freedesktop.DBus / org.freedesktop.DBus GetNameOwner s {NAME}")[0]
    for interface in ElementTree.fromstring(client.call(path, INTROSPECTABLE, "Introspect")).iter("interface"):
        for method in interface.iter("method"):
            takes = [argument for argument in method.iter("arg") if argument.get("direction") == "in"]
            signature = "".join(argument.attrib["type"] for argument in takes)
            words = {"path": path, "member": method.get("name"), "signature": signature}
            yield {**words, "interface": interface.get("name")}
            yield {**words, "interface": None}
            yield {**words, "interface": interface.get("name"), "destination": owner}


def service(_wheel: str, _package: str) -> Json:
    """`seconds`: what each part took."""
    report: Json = {"seconds": {}}

    def timed(name: str, part: Callable[[], Json]) -> None:
        began = time.monotonic()
        report[name] = part()
        report["seconds"][name] = round(time.monotonic() - began, 1)

    with heard() as signals:
        timed("bus", lambda: by_bus(signals))
    timed("commands", by_commands)
    # The second writes to memory: that waits for nothing but the machine, which has others to serve.
    with written_beside(named(ARRAY, "lab")) as writer, Writer(Path("/run/unhindered")) as unhindered:
        timed("ended", ended)
        timed("slow", slow)
        timed("others", others)
    report["written"] = {"writes": writer.writes, "trouble": writer.trouble, "longest_s": writer.longest_s}
    report["unhindered_s"] = unhindered.longest_s
    return report
