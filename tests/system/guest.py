"""In the guest: what an administrator does between one start of the machine and the next, and what is found then."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self
from uuid import UUID, uuid4

from blkrecov.drives.label import Label
from blkrecov.page83.export import Exporter
from blkrecov.units import MIB, Bytes
from tests.system.machine import Json

DEADLINE_S: Final = 120
DRIVES: Final = Path("/srv/drives")
STATE: Final = Path("/var/lib/blkrecov")
DATA: Final = Path("/data")
NETWORKED: Final = Path("/later")
UNITS: Final = ("blkrecov-arrays.service", "blkrecovd.service")


def run(*words: str | Path, expect: int | None = 0) -> str:
    """A command's output. Fails with all that it said where it ends otherwise than expected."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    said = f"{' '.join(map(str, words))}: status {done.returncode}\n{done.stdout}{done.stderr}"
    print(said, file=sys.stderr, flush=True)
    assert expect is None or done.returncode == expect, said
    return done.stdout


def blkrecov(*words: str) -> str:
    """The installed program, not the working tree's, which is first in the path; in the sandbox of the service.

    For all that is done here a daemon may be asked to do.
    """
    return run("systemd-run", "--quiet", "--pipe", "--wait", *sandbox(), "/usr/bin/blkrecov", *words)


def sandbox() -> list[str]:
    """The service's settings as systemd-run takes them, but those that say what runs."""
    text = Path("/lib/systemd/system/blkrecovd.service").read_text()
    settings = text.partition("[Service]")[2].partition("[Install]")[0].splitlines()
    others = ("#", "Type=", "ExecStart=", "Restart", "WatchdogSec=")
    return [f"--property={line}" for line in settings if "=" in line and not line.startswith(others)]


def asked(*words: str) -> Json:
    answer: Json = json.loads(blkrecov(*words, "--json"))
    return answer


def install(package: str) -> float:
    """How many seconds it took."""
    began = time.monotonic()
    # What the guest's disk has when its power goes is not what is tested here, and dpkg waits for it with each file.
    run("dpkg", "--install", "--force-unsafe-io", package)
    return time.monotonic() - began


def unit(name: str, key: str) -> str:
    return run("systemctl", "show", "--value", f"--property={key}", name).strip()


def states() -> list[str]:
    return [unit(name, "ActiveState") for name in UNITS]


def devices() -> list[str]:
    """Private and visible devices of ours that are in the kernel."""
    return sorted(path.name for path in Path("/dev/mapper").glob("blkrecov-*"))


def properties(device: str | Path) -> dict[str, str]:
    said = run("udevadm", "info", "--query=property", f"--name={device}")
    return dict(line.partition("=")[::2] for line in said.splitlines())


def watched(device: Path) -> bool:
    """Whether udev looks at a device again each time that it was open for writing."""
    number = device.stat().st_rdev
    # /run/udev/watch has links in both directions, from a watch to a device's id and back.
    return os.path.lexists(f"/run/udev/watch/b{os.major(number)}:{os.minor(number)}")


def mount_at_boot(source: str | Path, point: Path, options: str) -> None:
    point.mkdir(parents=True, exist_ok=True)
    with open("/etc/fstab", "a") as table:
        table.write(f"{source} {point} ext4 {options} 0 2\n")
    run("systemctl", "daemon-reload")
    run("mount", point)


def is_mounted(point: Path) -> bool:
    return os.path.ismount(point)


def make_lun(name: str, *options: str) -> Path:
    """A LUN with a file system; its name under /dev/disk/by-id."""
    blkrecov("lun", "create", name, *options)
    disk = Path(f"/dev/disk/by-id/wwn-0x{asked('lun', 'show', name)['page83']['naa']}")
    run("mkfs.ext4", "-q", disk)
    return disk


def first(_wheel: str, package: str) -> Json:
    """Install; an array with LUNs that /etc/fstab mounts; a drive fails while the service looks after it."""
    report: Json = {"install_s": install(package), "installed": states(), "group": run("getent", "group", "blkrecov")}
    report["enabled"] = run("systemctl", "is-enabled", *UNITS).split()
    # Logs that outlast this boot.
    Path("/var/log/journal").mkdir(exist_ok=True)
    run("systemctl", "restart", "systemd-journald")

    run("mkfs.ext4", "-q", "/dev/ubda")
    mount_at_boot("/dev/ubda", DRIVES, "defaults")
    blkrecov("array", "create", "la-b")
    for number in range(4):
        spare = ["--spare"] if number == 3 else []
        blkrecov("drive", "add", f"{DRIVES}/d{number}.img", "--name", f"d{number}", "--size", "60M", *spare)
    disk = make_lun("da-ta", "--layout", "raid1", "--size", "28M", "--drives", "d0,d1")
    mount_at_boot(disk, DATA, "defaults")
    mount_at_boot(make_lun("later", "--layout", "linear", "--size", "4M", "--drives", "d2"), NETWORKED, "nofail")
    blkrecov("lun", "create", "bare", "--layout", "linear", "--size", "1M", "--drives", "d2", "--no-export")
    (DATA / "file").write_text("written before the restart\n")
    blkrecov("snapshot", "create", "da-ta", "monday")
    run("udevadm", "settle")
    by_uuid = f"/dev/disk/by-uuid/{properties(disk)['ID_FS_UUID']}"
    report["links"] = {
        "array": sorted(path.name for path in Path("/dev/blkrecov/la-b").iterdir()),
        "LUN": [os.path.realpath(link) == os.path.realpath(disk) for link in ("/dev/blkrecov/la-b/da-ta", by_uuid)],
        "node": os.path.realpath("/dev/blkrecov/la-b/bare") == os.path.realpath("/dev/mapper/blkrecov-la--b-bare"),
    }
    report["private"] = {
        name: sorted(properties(f"/dev/mapper/{name}").get("DEVLINKS", "").split())
        for name in devices()
        if name not in ("blkrecov-la--b-da--ta", "blkrecov-la--b-later", "blkrecov-la--b-bare", "blkrecov-la--b-monday")
    }
    drive = asked("drive", "show", "d0")
    report["path"] = drive["path"]
    report["foreign"] = foreign()
    loop = Path(run("losetup", "--noheadings", "--output=NAME", "--associated", drive["path"]).strip())
    report["drive"] = {"uuid": drive["uuid"], "properties": properties(loop), "watched": watched(loop)}
    report["disk_watched"] = watched(disk)

    # Each place is asked for within the service's sandbox.
    configuration = Path("/etc/blkrecov/blkrecov.toml")
    configuration.parent.mkdir(exist_ok=True)
    report["metrics"] = []
    for family, place, address in (
        (socket.AF_UNIX, "/run/blkrecov/metrics.sock", "/run/blkrecov/metrics.sock"),
        (socket.AF_INET, "127.0.0.1:9835", ("127.0.0.1", 9835)),
    ):
        configuration.write_text(f'metrics = "{place}"\n')
        run("systemctl", "restart", "blkrecovd.service")
        report["metrics"].append(scraped(family, address))
    main = unit("blkrecovd.service", "MainPID")
    report["mounts"] = Path(f"/proc/{main}/ns/mnt").readlink() == Path("/proc/1/ns/mnt").readlink()
    report["security"] = run("systemd-analyze", "security", "blkrecovd.service").strip().splitlines()[-1]
    with follow() as events:
        blkrecov("drive", "fail", "d1")
        report["recovered"] = next(event for event in events if event["kind"].startswith("recovery_") and done(event))
    told = run("journalctl", "--output=json", "BLKRECOV_DRIVE=d1", "BLKRECOV_KIND=drive_failed")
    report["told"] = [json.loads(line) for line in told.splitlines()]
    report["explained"] = run("journalctl", "--catalog", "BLKRECOV_DRIVE=d1", "BLKRECOV_KIND=drive_failed")
    report["as_text"] = run("journalctl", "--boot", "--unit=blkrecovd.service", "_TRANSPORT=stdout", "--output=cat")
    report["status"] = [member["drive"] for member in asked("lun", "show", "da-ta")["members"]]
    blkrecov("snapshot", "create", "later", "tuesday")
    run("umount", NETWORKED)
    blkrecov("resync", "tuesday:later")
    report["complaints"] = complaints()

    # What must keep no other from coming up, or from going in good order: an array on another's LUN, one whose drives are away.
    blkrecov("array", "create", "inner")
    blkrecov("--array", "inner", "drive", "add", f"{DATA}/inner.img", "--size", "16M")
    blkrecov("--array", "inner", "lun", "create", "deep", "--layout", "linear", "--size", "1M")
    blkrecov("array", "create", "lost")
    blkrecov("--array", "lost", "drive", "add", f"{DRIVES}/lost.img", "--size", "16M")
    blkrecov("--array", "lost", "array", "stop")
    (DRIVES / "lost.img").unlink()
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "blkrecov-arrays.service")
    report["units"] = {name: unit(unit_of(name), "ActiveState") for name in ("la-b", "inner", "lost")}
    return report


def unit_of(array: str) -> str:
    known = json.loads(blkrecov("array", "list", "--json"))
    return next(f"blkrecov-array@{each['uuid']}.service" for each in known if each["name"] == array)


def foreign() -> dict[str, str]:
    """What udev says of a drive that is a disk of LIO's, and no LUN."""
    label = Label.new(
        size=Bytes(16 * MIB),
        drive_uuid=UUID("00112233-4455-6677-8899-aabbccddeeff"),
        array_uuid=uuid4(),
        drive_name="d0",
        array_name="else",
        created_s=0,
    )
    image = Path("/srv/foreign.img")
    run("truncate", "--size=16M", image)
    loop = run("losetup", "--find", "--show", image).strip()
    exporter = Exporter()
    disk = Path(exporter.export("foreign", loop, uuid4().hex).disk)
    # udev looks when it is closed.
    disk.write_bytes(label.encode())
    run("udevadm", "settle")
    found = properties(disk)
    exporter.unexport("foreign")
    run("losetup", "--detach", loop)
    return found


def scraped(family: int, address: str | tuple[str, int]) -> str:
    with socket.socket(family) as asking:
        asking.settimeout(DEADLINE_S)
        asking.connect(address)
        asking.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return asking.makefile("rb").read().decode()


@contextmanager
def follow() -> Iterator[Iterator[Json]]:
    """What has happened and what happens from here on, line by line."""
    command = ["/usr/bin/blkrecov", "events", "--follow", "-n", "100", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        end = threading.Timer(DEADLINE_S, process.terminate)
        end.start()
        try:
            yield map(json.loads, process.stdout)
        finally:
            end.cancel()
            process.terminate()


def done(event: Json) -> bool:
    return str(event["kind"]).rpartition("_")[2] in ("done", "failed", "impossible")


def complaints() -> list[str]:
    """What systemd and udev found wrong with what the package brought."""
    log = [json.loads(line) for line in run("journalctl", "--boot", "--output=json").splitlines()]
    told = [str(entry.get("MESSAGE", "")) for entry in log if "BLKRECOV_KIND" not in entry]
    words = ("blkrecov", "61-blkrecov", "org.blkrecov1")
    wrong = ("ordering cycle", "Unknown key", "invalid", "Failed to", "failed", "denied")
    return [line for line in told if any(word in line for word in words) and any(bad in line for bad in wrong)]


def second(wheel: str, package: str) -> Json:
    """After the restart: what is mounted, in which order it came. Then an upgrade, a purge, an environment of pip's in the place
    of the package, all while a LUN is written to.
    """
    # It needs what is in here.
    from tests.system import environment

    outer, inner = unit_of("la-b"), unit_of("inner")
    report: Json = {
        "mounted": [is_mounted(point) for point in (DRIVES, DATA, NETWORKED)],
        "file": (DATA / "file").read_text() if (DATA / "file").exists() else None,
        "states": states(),
        "resyncs": run("dmesg").count("resync of RAID array"),
        "failed": run("systemctl", "list-units", "--failed", "--plain", "--no-legend").splitlines(),
        "complaints": complaints(),
        "came": {
            name: int(unit(name, "ActiveEnterTimestampMonotonic")) / 1e6
            for name in ("srv-drives.mount", outer, "data.mount", inner, "blkrecov-arrays.service", "blkrecovd.service")
        },
        "units": {"outer": outer, "inner": inner},
        "began": {name: int(unit(name, "InactiveExitTimestampMonotonic")) / 1e6 for name in (outer, inner)},
        "generated": Path(f"/run/systemd/generator/{outer}.d/drives.conf").read_text(),
        "nested": {
            lun["name"]: lun["status"] for lun in json.loads(blkrecov("--array", "inner", "lun", "list", "--json"))
        },
        "told": run("journalctl", "--boot", "--unit=blkrecov-array@*", "--output=cat"),
    }
    blkrecov("--array", "inner", "array", "stop")
    (DATA / "inner.img").unlink()
    before = {name: unit(name, "ActiveEnterTimestampMonotonic") for name in UNITS}
    drives = sorted(path.name for path in DRIVES.glob("*.img"))
    up = devices()
    with Writer(DATA / "log") as writer:
        report["upgrade_s"] = install(package)
        report["upgraded"] = {
            "states": states(),
            "restarted": [unit(name, "ActiveEnterTimestampMonotonic") != before[name] for name in UNITS],
        }
        refused = environment.make(wheel)
        said = run("sh", "-c", "dpkg --purge blkrecov 2>&1")
        report["purged"] = {
            "said": [line for line in said.splitlines() if "stays up" in line],
            "state": [path.name for path in STATE.iterdir()] if STATE.exists() else [],
            "drives": sorted(path.name for path in DRIVES.glob("*.img")) == drives,
            "devices": devices() == up,
            "program": Path("/usr/bin/blkrecov").exists(),
        }
        report["environment"] = {"refused": refused, **environment.swap(package)}
        install(package)
    report["written"] = {"writes": writer.writes, "trouble": writer.trouble, "longest_s": writer.longest_s}
    report["reinstalled"] = {
        "known": [array["name"] for array in json.loads(blkrecov("array", "list", "--json"))],
        "LUNs": {lun["name"]: lun["status"] for lun in json.loads(blkrecov("lun", "list", "--json"))},
    }

    # Out of the kernel in good order: as soon as the LUN is free, not before.
    run("umount", NETWORKED)
    stopping = subprocess.Popen(["systemctl", "stop", "blkrecov-arrays.service"])
    with subprocess.Popen(
        ["journalctl", "--follow", "--unit=blkrecov-arrays.service", "--output=cat"], stdout=subprocess.PIPE, text=True
    ) as log:
        assert log.stdout is not None
        report["waited"] = next(line.strip() for line in log.stdout if "waited for" in line)
        log.terminate()
    report["still_up"] = devices() == up and stopping.poll() is None
    run("umount", DATA)
    report["stopped"] = {
        "status": stopping.wait(DEADLINE_S),
        "devices": devices(),
        "loops": run("losetup", "--list"),
        "service": states()[1],
    }
    run("systemctl", "start", "blkrecov-arrays.service", "data.mount")
    report["again"] = {"states": states(), "file": (DATA / "file").read_text()}
    return report


class Writer:
    """Writes a block after the other through to the medium, for as long as it is open. `longest_s`: from one write's end to the
    next one's.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.writes = 0
        self.longest_s = 0.0
        self.trouble: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _write(self) -> None:
        try:
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_SYNC)
            last = time.monotonic()
            while not self._ended.wait(0.02):  # The guest has one processor, and dpkg wants some of it.
                os.pwrite(descriptor, os.urandom(4096), self.writes % 256 * 4096)
                now = time.monotonic()
                last, self.longest_s = now, max(self.longest_s, now - last)
                self.writes += 1
            os.close(descriptor)
        except OSError as error:
            self.trouble = str(error)
