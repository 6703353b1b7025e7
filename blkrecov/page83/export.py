"""LUNs as SCSI disks: LIO's iblock backstore on the LUN's node, seen through a loopback target of its own.

    /sys/kernel/config/target/core/iblock_<n>/blkrecov-<name>       holds the device open, exclusively; has the unit serial
    /sys/kernel/config/target/loopback/naa.5001405<9>/tpgt_1/lun/lun_0 -> the backstore
    /dev/sdX at <address of tpgt_1>:0                               page 83h with the NAA that LIO makes of the serial

What always holds:

- One target per LUN. A target is a SCSI host, and error handling stops a whole host: a LUN that hangs stops no other.
- The target's name follows from the serial, and the backstore's from the LUN's name. So what a crash left half made is found
  again without a record, and the next export of the LUN clears it away.
- Only backstores whose name begins with "blkrecov-", and targets that lead to them, are ever changed. Nothing is written to
  /etc/target: the array's own metadata says what is to be exported.
- An export that returns has been checked: the disk answers the page-83 identity computed from the serial, and nobody else
  does. One that raises has left nothing behind, or says what.

Targets and LUNs go through rtslib. ALUA's one word does not, for whoever sets it would wait longer for rtslib's import than for
the kernel; nor does making a backstore: rtslib's constructor writes LIO's `dbroot`, and so fails
where there is no /etc/target (rtslib_fb/root.py, RTSRoot._set_dbroot()), and it numbers backstores by a cache that other
processes make stale (rtslib_fb/tcm.py, bs_cache). So the few writes of a backstore are made here.

Removing a LUN waits for the commands in flight (drivers/target/loopback/tcm_loop.c, tcm_loop_port_unlink() calls
scsi_remove_device()). With the device below suspended it would wait for its resume: resume first.
"""

import errno
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from blkrecov.errors import (
    IdentityMismatch,
    InvalidArgument,
    NotSupported,
    ObjectExists,
    ObjectNotFound,
    PathNotFound,
    ProviderFailure,
)
from blkrecov.holders import claimed, holders, in_use
from blkrecov.page83 import sysfs, udev
from blkrecov.page83.identity import naa_of_serial, refuse_duplicates, target_wwn_of
from blkrecov.units import Sectors

PREFIX: Final = "blkrecov-"
VENDOR: Final = "blkrecov"

_CONFIGFS: Final = Path("/sys/kernel/config")
_CORE: Final = _CONFIGFS / "target/core"
_LOOPBACK: Final = _CONFIGFS / "target/loopback"
_MODULES: Final = ("target_core_mod", "target_core_iblock", "tcm_loop")

_ACCESS_STATE: Final = "alua/default_tg_pt_gp/alua_access_state"
_TPG: Final = 1  # tcm_loop's hosts know the SCSI targets 0 and 1 (max_id is 2), and the tag of the group is the target.
_LUN: Final = 0
# The latter of what was removed since it was opened (fs/configfs/file.c, fill_read_buffer()).
_GONE: Final = frozenset({errno.ENOENT, errno.ENODEV})
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9+_.-]{0,99}")
_SERIAL: Final = re.compile(r"[0-9a-f]{32}")
_NUMBERS: Final = re.compile(r"Major: (\d+) +Minor: (\d+)")


class AccessState(IntEnum):
    """ALUA states of a target port group (SPC; drivers/target/target_core_alua.h)."""

    ACTIVE = 0
    UNAVAILABLE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A LUN that the host sees as a SCSI disk. `backstore` is the directory in configfs, `device` the number below it."""

    name: str
    serial: str
    naa: str
    disk: str
    hctl: str
    device: int
    backstore: Path
    target_wwn: str
    ready: bool = True
    """At the moment when it was looked at."""


@dataclass(frozen=True, slots=True)
class Remains:
    """What is neither an export nor gone. `device` is the number below it; None: it has none."""

    name: str
    device: int | None


class Exporter:
    """Makes, finds and removes exports. It remembers nothing: configfs and sysfs are asked each time.

    One process at a time for each array: an export that another process is making looks like the remains of a crash.
    """

    def __init__(self, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s

    def export(
        self, name: str, device_node: str, serial: str, *, read_only: bool = False, ready: bool = True
    ) -> Export:
        """The LUN as a SCSI disk. If it is one already, with this name, serial and device, that one.

        A disk that is not `ready` has an identity and no size: it answers NOT READY until set_ready() and a rescan().

        Raises: InvalidArgument for a name or serial that LIO could not carry; PathNotFound; NotSupported, naming a module that
                is missing; DeviceInUse where the device is claimed; ObjectExists where the name is another LUN's export;
                IdentityMismatch where another disk has this identity, or where the new disk answers with a wrong one; TimedOut
                where the disk or udev's entry did not come; ProviderFailure.
        """
        if not _NAME.fullmatch(name):
            raise InvalidArgument(f"{name!r} cannot name an export", remedy="use letters, digits and any of + _ . -")
        if not _SERIAL.fullmatch(serial):
            raise InvalidArgument(f"serial {serial!r} is not 32 lower case hexadecimal digits")
        device = _device_number(device_node)
        self._prepare()

        others = []
        for known in self.exports():
            if (known.name, known.serial, known.device) == (name, serial, device):
                _check_identity(known)  # A crash may have come between its making and its check.
                return known
            if known.serial != serial and known.name == name:
                raise ObjectExists(f"the name {name} is exported already, as {known.disk} with serial {known.serial}")
            others.append(known)
        self._refuse_taken(name, serial, others)
        self._clear_remains(name, serial)
        return self._make(name, device_node, device, serial, read_only=read_only, ready=ready)

    def unexport(self, name_or_serial: str) -> None:
        """Takes the SCSI disk, its target and its backstore away; also what a crash left of them. The device itself stays.

        Returns when udev has handled the removal, so that its links are gone too.

        Raises: DeviceInUse, naming the holders, before anything has been taken down; ObjectNotFound; ProviderFailure; TimedOut.
        """
        for known in self.exports():
            if name_or_serial in (known.name, known.serial):
                self._remove(known)
                return
        for backstore in _our_backstores():
            if name_or_serial in (_name_of(backstore), _serial_of(backstore)):
                _clear(backstore)
                return
        raise ObjectNotFound(f"{name_or_serial} is not exported")

    def find(self, serial: str) -> Export | None:
        return next((known for known in self.exports() if known.serial == serial), None)

    def exports(self) -> tuple[Export, ...]:
        """All exports of ours that have a disk, in the order of their names. Half-made ones are not among them."""
        return self.survey()[0]

    def remains(self) -> tuple[str, ...]:
        """Names of what is neither an export nor gone: a process died while it made or removed one. unexport() takes them."""
        return tuple(left.name for left in self.survey()[1])

    def survey(self) -> tuple[tuple[Export, ...], tuple[Remains, ...]]:
        """exports() and what there is of others, in one look."""
        found, half_made = [], []
        for backstore in _our_backstores():
            export = _export_of(backstore)
            if export is None:
                half_made.append(Remains(_name_of(backstore), _device_below(backstore)))
            else:
                found.append(export)
        in_order = sorted(half_made, key=lambda left: left.name)
        return tuple(sorted(found, key=lambda known: known.name)), tuple(in_order)

    def rescan(self, export: Export) -> Sectors:
        """Has the disk take over the size that the device has grown to, and returns it.

        LIO's iblock answers with the live size but tells nobody that it changed, so the disk has to ask. It is not asked while
        it is not ready: READ CAPACITY would fail, and sd would take that for a size of nothing.

        Raises: ProviderFailure; PathNotFound where the disk has gone.
        """
        if not self.is_ready(export):
            raise ProviderFailure(f"{export.disk} is not ready, so it cannot be asked for its size")
        return sysfs.rescan(export.disk)

    def set_ready(self, export: Export, ready: bool) -> None:
        """Lets the disk answer, or has it refuse every read and write at once with NOT READY, and without a retry.

        Kernel:  drivers/target/target_core_alua.c, core_alua_state_unavailable(): sense 02/04/0C. The SCSI device stays
                 "running", and answers again after the way back.
        """
        state = AccessState.ACTIVE if ready else AccessState.UNAVAILABLE
        with _lio(f"set {export.name} {state.name.lower()}"):
            _write(export.backstore / _ACCESS_STATE, str(int(state)))

    def is_ready(self, export: Export) -> bool:
        with _lio(f"tell the state of {export.name}"):
            return _is_ready(export.backstore)

    def _prepare(self) -> None:
        """Modules, configfs and the fabric's directory, as far as they are missing.

        rtslib would mount configfs too, but its command has a directory literally named "{config_dir}"
        (rtslib_fb/utils.py, mount_configfs()).
        """
        for module in _MODULES:
            if not Path("/sys/module", module).exists():
                # A module built into the kernel may have no directory there; modprobe knows it and succeeds.
                _require(["modprobe", module], f"the kernel module {module} is not available")
        if not os.path.ismount(_CONFIGFS):
            _require(["mount", "-t", "configfs", "configfs", str(_CONFIGFS)], "configfs cannot be mounted")
        with _lio("offer the loopback fabric"):
            _LOOPBACK.mkdir(exist_ok=True)

    def _refuse_taken(self, name: str, serial: str, others: list[Export]) -> None:
        naa = naa_of_serial(serial)
        claims = {f"LUN {name}": naa}
        for disk in sysfs.scsi_disks():
            if disk.naa == naa:
                owner = next((f" (LUN {known.name})" for known in others if known.disk == disk.disk), "")
                claims[f"{disk.disk}{owner}"] = naa
        refuse_duplicates(claims)

    def _clear_remains(self, name: str, serial: str) -> None:
        """Removes what a crash left of an earlier export of this LUN. Neither name nor serial has a disk now."""
        for backstore in _our_backstores():
            if name == _name_of(backstore) or serial == _serial_of(backstore):
                _clear(backstore)

    def _make(self, name: str, device_node: str, device: int, serial: str, *, read_only: bool, ready: bool) -> Export:
        target_wwn = target_wwn_of(serial)
        with udev.watch() as queue, ExitStack() as undo:
            backstore = _make_backstore_directory(PREFIX + name)
            undo.callback(_remove_backstore, backstore)
            _configure(backstore, device_node, name, serial, read_only=read_only)
            if not ready:
                with _lio(f"set {name} not ready"):
                    _write(backstore / _ACCESS_STATE, str(int(AccessState.UNAVAILABLE)))
            with _lio(f"make the target {target_wwn}"):
                target = _rtslib().Target(_rtslib().FabricModule("loopback"), target_wwn, "create")
            undo.callback(_remove_target, target_wwn)
            with _lio(f"link {name} into {target_wwn}"):
                # The group gets its nexus, without which it has no SCSI host to add the LUN to, in rtslib's constructor.
                group = _rtslib().TPG(target, _TPG, "create")
                _rtslib().LUN(group, _LUN, _storage_object(backstore), alias=PREFIX + name)

            hctl = f"{_read(_group(target_wwn) / 'address')}:{_LUN}"
            disk = queue.until(lambda _: _known_to_udev(hctl), self._timeout_s, f"the SCSI disk of {name} at {hctl}")
            made = Export(
                name=name,
                serial=serial,
                naa=naa_of_serial(serial),
                disk=disk,
                hctl=hctl,
                device=device,
                backstore=backstore,
                target_wwn=target_wwn,
            )
            _check_identity(made)
            undo.pop_all()
        return made

    def _remove(self, export: Export) -> None:
        held = holders(export.disk)
        if held:
            raise in_use(export.disk, held)
        gone = Path(export.disk).name
        with udev.watch() as queue:
            # Claimed until the link is cut, so that nobody mounts it in between.
            with claimed(export.disk):
                _remove_target(export.target_wwn)
            _remove_backstore(export.backstore)
            queue.until(
                lambda event: True if event == udev.Event("remove", gone) else None,
                self._timeout_s,
                f"the removal of {export.disk}",
            )


def _rtslib() -> Any:
    """rtslib, loaded when it is needed: it takes as long to import as all of ours, and most commands only look."""
    import rtslib_fb

    return rtslib_fb


@contextmanager
def _lio(what: str) -> Iterator[None]:
    """LIO's refusals in our words. It gives an errno and nothing else; its reasons are in the kernel's log."""
    try:
        yield
    except (OSError, _rtslib().RTSLibError) as error:
        raise ProviderFailure(f"LIO refused to {what}: {error}") from error


def _require(command: list[str], otherwise: str) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NotSupported(f"{otherwise}: there is no {command[0]} command") from error
    if done.returncode:
        raise NotSupported(f"{otherwise}: {done.stderr.strip()}")


def _device_number(device_node: str) -> int:
    try:
        status = Path(device_node).stat()
    except FileNotFoundError as error:
        raise PathNotFound(f"{device_node} does not exist") from error
    if not stat.S_ISBLK(status.st_mode):
        raise PathNotFound(f"{device_node} is no block device")
    return status.st_rdev


def _read(file: Path) -> str:
    return file.read_text().strip()


def _write(file: Path, text: str) -> None:
    """One write, unbuffered: a buffered one would meet the attribute's refusal only at close."""
    with open(file, "wb", buffering=0) as attribute:
        attribute.write(text.encode())


def _our_backstores() -> tuple[Path, ...]:
    return tuple(_CORE.glob(f"iblock_*/{PREFIX}*"))


def _name_of(backstore: Path) -> str:
    return backstore.name.removeprefix(PREFIX)


def _serial_of(backstore: Path) -> str:
    """Shape: "T10 VPD Unit Serial Number: <serial>"; empty where none was written, or where all of it has just gone."""
    try:
        return _read(backstore / "wwn/vpd_unit_serial").partition(":")[2].strip()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return ""


def _group(target_wwn: str) -> Path:
    return _LOOPBACK / target_wwn / f"tpgt_{_TPG}"


def _leads_to(target_wwn: str, backstore: Path) -> bool:
    links = (_group(target_wwn) / f"lun/lun_{_LUN}").glob(f"{PREFIX}*")
    return any(link.is_symlink() and link.resolve() == backstore for link in links)


def _export_of(backstore: Path) -> Export | None:
    """The export that stands on a backstore; None where something of it is missing."""
    try:
        serial = _serial_of(backstore)
        device = _device_below(backstore)
        target_wwn = target_wwn_of(serial)
        if device is None or not _leads_to(target_wwn, backstore):
            return None
        hctl = f"{_read(_group(target_wwn) / 'address')}:{_LUN}"
        ready = _is_ready(backstore)
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return None  # Removed since the listing.
    disk = sysfs.disk_at(hctl)
    if disk is None:
        return None
    return Export(
        name=_name_of(backstore),
        serial=serial,
        naa=naa_of_serial(serial),
        disk=disk,
        hctl=hctl,
        device=device,
        backstore=backstore,
        target_wwn=target_wwn,
        ready=ready,
    )


def _device_below(backstore: Path) -> int | None:
    try:
        numbers = _NUMBERS.search(_read(backstore / "info"))
    except FileNotFoundError:
        return None  # Removed since the listing.
    return os.makedev(int(numbers[1]), int(numbers[2])) if numbers is not None else None


def _check_identity(export: Export) -> None:
    witness = sysfs.witness(export.disk)
    if witness.naa != export.naa:
        raise IdentityMismatch(
            f"{export.disk} was to be {export.naa} as LUN {export.name}, but {witness.detail} says {witness.naa or 'nothing'}"
        )


def _storage_object(backstore: Path) -> Any:
    # With its index given, rtslib does not look into its cache.
    return _rtslib().BlockStorageObject(backstore.name, index=int(backstore.parent.name.removeprefix("iblock_")))


def _is_ready(backstore: Path) -> bool:
    return int(_read(backstore / _ACCESS_STATE)) == AccessState.ACTIVE


def _make_backstore_directory(name: str) -> Path:
    """A backstore in an adapter of its own, as rtslib and targetcli keep them: no two numbers alike, whatever the plugin."""
    number = 0
    with _lio(f"make the backstore {name}"):
        while True:
            taken = {entry.name.rpartition("_")[2] for entry in _CORE.glob("*_*")}
            number = next(free for free in range(number, number + len(taken) + 1) if str(free) not in taken)
            adapter = _CORE / f"iblock_{number}"
            try:
                adapter.mkdir()
            except FileExistsError:
                number += 1  # Another process was faster.
                continue
            with ExitStack() as undo:
                undo.callback(adapter.rmdir)
                (adapter / name).mkdir()
                undo.pop_all()
            return adapter / name


def _configure(backstore: Path, device_node: str, name: str, serial: str, *, read_only: bool) -> None:
    """Binds the device and writes the identity. The kernel refuses an identity's change once a LUN is linked.

    Without the word `readonly` iblock opens for writing: a read-only device is refused, and one that becomes read-only later is
    written to all the same. With it the disk says that it is write-protected.

    Kernel: drivers/target/target_core_configfs.c, target_wwn_*_store(); target_core_iblock.c, iblock_configure_device().
    """
    try:
        _write(backstore / "control", f"udev_path={device_node}" + (",readonly=1" if read_only else ""))
        _write(backstore / "enable", "1")
        _write(backstore / "udev_path", device_node)
    except OSError as error:
        if error.errno == errno.EBUSY:  # iblock opens the device exclusively.
            raise in_use(device_node, holders(device_node)) from error
        raise ProviderFailure(f"LIO refused {device_node} as a backstore: {error.strerror}") from error
    with _lio(f"give {name} its identity"):
        _write(backstore / "wwn/vpd_unit_serial", serial)
        # Older kernels have no such attributes: their disk says "LIO-ORG". That is a name, no identity.
        for attribute, text in (("vendor_id", VENDOR), ("product_id", name[:16])):
            if (backstore / "wwn" / attribute).exists():
                _write(backstore / "wwn" / attribute, text)
        if can_discard(device_node):
            _write(backstore / "attrib/emulate_tpu", "1")


def can_discard(device_node: str) -> bool:
    """Whether what is below a block device takes discards."""
    limit = Path("/sys/class/block", Path(device_node).resolve().name, "queue/discard_max_bytes")
    return limit.exists() and int(_read(limit)) > 0


def _known_to_udev(hctl: str) -> str | None:
    """The disk at this address, once udev has filled in what it knows."""
    disk = sysfs.disk_at(hctl)
    try:
        return disk if disk and udev.properties(disk) else None
    except PathNotFound:
        return None


def _clear(backstore: Path) -> None:
    """Removes what there is of an export, whatever step it had reached. A target that leads elsewhere is not ours."""
    target_wwn = target_wwn_of(_serial_of(backstore))
    links = [entry for entry in (_LOOPBACK / target_wwn).glob("tpgt_*/lun/lun_*/*") if entry.is_symlink()]
    if all(link.resolve() == backstore for link in links):
        _remove_target(target_wwn)
    _remove_backstore(backstore)


def _remove_target(target_wwn: str) -> None:
    """The SCSI disk's removal, and the host's: LUN, group (and its nexus) and target, from the disk's side down."""
    if (_LOOPBACK / target_wwn).exists():
        with _lio(f"remove the target {target_wwn}"):
            _rtslib().Target(_rtslib().FabricModule("loopback"), target_wwn, "lookup").delete()


def _remove_backstore(backstore: Path) -> None:
    with _lio(f"remove the backstore {backstore.name}"):
        backstore.rmdir()
        backstore.parent.rmdir()
