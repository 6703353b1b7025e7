"""The one door to device-mapper: /dev/mapper/control and its ioctls.

Knows: how to ask the kernel, how to wait out its short refusals, what its refusals mean. Refuses to know: what a table's words
say, which devices belong together, whether an operation is wise.

Always true:
- Every call has a buffer of its own and no call takes a lock, so a thread that is held in the kernel stops no other thread.
- A suspend waits for the I/O under way as long as some of it ends now and then, and no longer.
- A call that fails raises KernelRefused or one of its kinds; it holds the errno, and what device-mapper logged meanwhile.
- Devices and the words "private" and "visible": a visible device is for the host, a private one is a layer that udev's rules
  are told to leave alone. Every event that the kernel sends for us says which, or the rules would change their minds.
"""

import ctypes
import errno
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from blkrecov import blockdev
from blkrecov.dm.abi import (
    COMMANDS,
    HEADER,
    NONE,
    DeviceNumber,
    Flag,
    Reply,
    Version,
    decode_deps,
    decode_devices,
    decode_reply,
    decode_table,
    decode_versions,
    encode_message,
    encode_request,
    encode_table,
    udev_event,
)
from blkrecov.dm.kmsg import LogMark
from blkrecov.dm.stalled import PATIENCE_S, Stalled, hangs
from blkrecov.dm.table import Table
from blkrecov.errors import AccessDenied, BlkrecovError, Code, NotSupported, ProviderFailure, pass_on_exhaustion
from blkrecov.units import Sectors

CONTROL_NODE: Final = Path("/dev/mapper/control")
NODES: Final = Path("/dev/mapper")

_BUFFER: Final = 16 * 1024
_BUFFER_LIMIT: Final = 64 * 1024 * 1024
_BUSY_PATIENCE_S: Final = 5.0
# Targets whose status is empty (drivers/md/dm-linear.c, linear_status(), and so on).
_SILENT: Final = frozenset({"linear", "error", "snapshot-origin"})
_NODE_PATIENCE_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.01
_SIGNAL: Final = signal.SIGRTMAX - 1

# Modules whose name is not "dm-" and the target's.
_MODULES: Final = {"snapshot-origin": "dm-snapshot", "snapshot-merge": "dm-snapshot"}


class KernelRefused(ProviderFailure):
    """Device-mapper refused a call. `log` is what the kernel logged meanwhile, which is where it gives reasons."""

    def __init__(self, operation: str, device: str, number: int, log: tuple[str, ...] = ()) -> None:
        reason = f"{errno.errorcode.get(number, number)}, {os.strerror(number)}"
        said = f"; the kernel says: {'; '.join(log)}" if log else ""
        super().__init__(f"{operation} {device}".rstrip() + f": {reason}{said}")
        self.operation: Final = operation
        self.device: Final = device
        self.errno: Final = number
        self.log: Final = log


class KernelExhausted(KernelRefused):
    """The kernel has no memory for what was asked, or this process may have no more of it."""

    code = Code.E_OUTOFMEMORY
    default_remedy = "free memory, or raise the limit, and try again"


class NoSuchDevice(KernelRefused):
    """No device of that name."""

    default_remedy = "list the devices with: dmsetup ls"


class TargetMissing(NotSupported):
    """The kernel has no such target type, nor a module that it could load for it."""

    def __init__(self, kind: str, module: str, log: tuple[str, ...] = ()) -> None:
        said = f"; the kernel says: {'; '.join(log)}" if log else ""
        super().__init__(
            f"this kernel has no {kind!r} target{said}",
            remedy=f"modprobe {module}, or install the kernel modules that have it",
        )
        self.kind: Final = kind
        self.module: Final = module


class LeftSuspended(ProviderFailure):
    """A device could not be resumed: all I/O to it is held until somebody does. `errors` are in the order in which they came."""

    def __init__(self, device: str, *errors: BlkrecovError) -> None:
        super().__init__(
            f"{device} is left suspended: " + "; then ".join(error.message for error in errors),
            remedy=f"load a table that works and resume it: dmsetup resume {device}",
        )
        self.device: Final = device
        self.errors: Final = errors


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEntry:
    """A device as the kernel lists it. uuid is empty where it has none; event_nr grows with its events."""

    name: str
    uuid: str
    number: DeviceNumber
    event_nr: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """live and inactive: whether there is a table in that slot. read_only is the live table's."""

    name: str
    uuid: str
    number: DeviceNumber
    open_count: int
    event_nr: int
    suspended: bool
    live: bool
    inactive: bool
    read_only: bool


class Control:
    """An open control node. May be shared by threads; close it when none of them is in a call."""

    def __init__(self, path: Path = CONTROL_NODE) -> None:
        """Raises: NotSupported without device-mapper, AccessDenied without its permission."""
        self._fd = _open_control(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Readable when any device had an event since the last arm_poll(), or since the opening."""
        return self._fd

    # What there is.

    def version(self) -> Version:
        """The ioctl interface's version, such as (4, 47, 0)."""
        return self._call("VERSION").version

    def targets(self) -> dict[str, Version]:
        """The target types that are loaded; others may be there as modules."""
        return decode_versions(self._call("LIST_VERSIONS").data)

    def require(self, kind: str) -> None:
        """Have a target type there, loading its module as a table that names it would. Raises: TargetMissing."""
        if kind not in self.targets():
            self._bring_target(kind)

    def devices(self) -> tuple[DeviceEntry, ...]:
        """Every device of the machine, ours or not."""
        reply = self._call("LIST_DEVICES", flags=Flag.UUID)
        entries = []
        for listed in decode_devices(reply.data, reply.version):
            uuid = listed.uuid
            if uuid is None:
                info = self.find(listed.name)
                if info is None:  # Removed since it was listed.
                    continue
                uuid = info.uuid
            entries.append(DeviceEntry(name=listed.name, uuid=uuid, number=listed.number, event_nr=listed.event_nr))
        return tuple(entries)

    def info(self, name: str) -> DeviceInfo:
        """Raises: NoSuchDevice."""
        return _info(self._call("DEV_STATUS", name))

    def find(self, name: str) -> DeviceInfo | None:
        """The device, or None where there is none of that name."""
        try:
            return self.info(name)
        except NoSuchDevice:
            return None

    def table(self, name: str) -> Table:
        """The live table as the kernel prints it; without one, no lines."""
        return self._lines(name, Flag.STATUS_TABLE | Flag.NOFLUSH)

    def status(self, name: str, *, flush: bool = False) -> Table:
        """What the live table's targets say of themselves. With `flush` some targets write out first, and may block on that."""
        return self._lines(name, NONE if flush else Flag.NOFLUSH)

    def look(self, name: str) -> tuple[DeviceInfo, Table, Table]:
        """The device, its live table, and what its targets say; of one whose targets have nothing to say, no lines.

        By two calls, or by one: every answer tells of the device as well. Raises: NoSuchDevice.
        Kernel: drivers/md/dm-ioctl.c, table_status() calls __dev_status()
        """
        table = self._call("TABLE_STATUS", name, flags=Flag.STATUS_TABLE | Flag.NOFLUSH)
        lines = decode_table(table.data, table.target_count)
        if all(line.kind in _SILENT for line in lines):
            return _info(table), lines, ()
        said = self._call("TABLE_STATUS", name, flags=Flag.NOFLUSH)
        return _info(said), lines, decode_table(said.data, said.target_count)

    def deps(self, name: str) -> tuple[DeviceNumber, ...]:
        """The devices that the live table is built on."""
        return decode_deps(self._call("TABLE_DEPS", name).data)

    # Making and changing devices.

    def create(self, name: str, uuid: str) -> DeviceInfo:
        """A device without a table. The kernel makes its node with the first table, not now."""
        return _info(self._call("DEV_CREATE", name, uuid=uuid))

    def load(self, name: str, table: Table, *, read_only: bool = False) -> None:
        """Put a table into the inactive slot. The targets' constructors run now: dm-raid reads its superblocks here.

        Raises: TargetMissing for a target type that no module brings; KernelRefused for all else.
        """
        payload = encode_table(table)
        flags = Flag.READONLY if read_only else NONE
        try:
            self._call("TABLE_LOAD", name, flags=flags, target_count=len(table), payload=payload)
        except KernelRefused as refused:
            missing = self._missing_targets(table) if refused.errno == errno.EINVAL else ()
            if not missing:
                raise
            for kind in missing:
                self._bring_target(kind, refused)
            self._call("TABLE_LOAD", name, flags=flags, target_count=len(table), payload=payload)

    def clear(self, name: str) -> None:
        """Empty the inactive slot."""
        self._call("TABLE_CLEAR", name)

    def suspend(self, name: str, *, flush: bool = True, freeze: bool = True) -> None:
        """Hold all new I/O. Suspending a suspended device is no error.

        With `flush` it waits for the I/O under way; without, targets that can give their I/O back do so, and few can. `freeze`
        syncs and freezes a mounted file system first (the kernel does so only when it flushes).

        Raises: Stalled when nothing of that I/O ends any more; the device goes on as it was.
        Kernel: drivers/md/dm.c, __dm_suspend(): a signal ends the wait, and what was begun is taken back
        """
        flags = Flag.SUSPEND
        if not flush:
            flags |= Flag.NOFLUSH
        if not freeze:
            flags |= Flag.SKIP_LOCKFS
        with _Watch(self.info(name)) as watch:
            self._call("DEV_SUSPEND", name, flags=flags, watch=watch)

    def resume(self, name: str, *, visible: bool) -> None:
        """Make the inactive table, if there is one, the live one, and let I/O go. /dev/mapper follows later: ensure_node()."""
        self._call("DEV_SUSPEND", name, event_nr=udev_event(visible=visible))

    def replace(
        self,
        name: str,
        table: Table,
        *,
        visible: bool,
        flush: bool = True,
        freeze: bool = True,
        read_only: bool = False,
    ) -> None:
        """Suspend, load, resume: in this order, for a raid table reads at its load what the suspend made the old one write.

        Raises: what load() and resume() raise, with the old table running again; LeftSuspended when no table is running.
        """
        before = self.table(name)
        self.suspend(name, flush=flush, freeze=freeze)
        try:
            self.load(name, table, read_only=read_only)
        except BaseException as refused:
            self._resume_old(name, visible=visible, refused=refused)
            raise
        try:
            self.resume(name, visible=visible)
        except BlkrecovError as refused:
            # A resume can refuse the table, as a load does: only now does the kernel compare a linear target with the size of
            # what is below it (dm_swap_table() calls dm_calculate_queue_limits()). Then the old table is still the live one.
            if self.table(name) == before:
                self._resume_old(name, visible=visible, refused=refused)
                raise
            # Otherwise the new one is live, with a target that would not start (dm_resume()). Whether the old one may be used
            # again is for the caller to know: a raid may have written its superblocks.
            raise LeftSuspended(name, refused) from refused

    def remove(self, name: str, *, visible: bool = False, patience_s: float = _BUSY_PATIENCE_S) -> None:
        """Remove the device, waiting up to patience_s while it is open: udev and blkid open what they see, for a moment.

        Raises: KernelRefused with EBUSY when somebody still has it open; NoSuchDevice.
        """
        event = udev_event(visible=visible)
        deadline = time.monotonic() + patience_s
        while True:
            try:
                self._call("DEV_REMOVE", name, event_nr=event)
                break
            except KernelRefused as refused:
                if refused.errno != errno.EBUSY or time.monotonic() >= deadline:
                    raise
            time.sleep(_LOOK_AGAIN_S)
        _drop_dead_link(name)

    def rename(self, name: str, new: str, *, visible: bool) -> None:
        """A live device may be renamed; its number and UUID stay."""
        self._call("DEV_RENAME", name, event_nr=udev_event(visible=visible), payload=new.encode() + b"\0")
        _drop_dead_link(name)

    def message(self, name: str, sector: Sectors, text: str) -> str:
        """Send a target its message, and give its answer, which most do not have. sector picks the target.

        An answer that outgrows the buffer sends the message again: those that we get are a line at most.
        """
        reply = self._call("TARGET_MSG", name, payload=encode_message(sector, text))
        return reply.data.partition(b"\0")[0].decode() if reply.flags & Flag.DATA_OUT else ""

    def arm_poll(self) -> None:
        """Let fileno() be readable from the next event on. Kernel: drivers/md/dm-ioctl.c, dev_arm_poll()

        Raises: NotSupported before Linux 4.13.
        """
        command = COMMANDS["DEV_ARM_POLL"]
        try:
            self._call("DEV_ARM_POLL")
        except KernelRefused as refused:
            if refused.errno != errno.ENOTTY:
                raise
            needed = ".".join(map(str, command.since))
            raise NotSupported(
                f"this kernel's device-mapper cannot be polled; it takes {needed}", remedy="use Linux 4.13 or later"
            ) from refused

    def ensure_node(self, name: str, *, patience_s: float = _NODE_PATIENCE_S) -> Path:
        """The device's path, when that leads to this very device. Call it after the first resume() of a device that people use.

        udev makes the link, some milliseconds after the resume: while a udevd runs we wait for it. Where none runs, or where it
        takes too long, we make the link ourselves, and udev, should it come later, finds what it would have made. Tables
        need no path: they name devices by their number, which is there at once.
        """
        info = self.info(name)
        path = node(name)
        deadline = time.monotonic() + patience_s
        while not _leads_to(path, info.number):
            if _udevd_runs() and time.monotonic() < deadline:
                time.sleep(_LOOK_AGAIN_S)
                continue
            _make_node(path, info.number)
        return path

    # The door.

    def _call(
        self,
        operation: str,
        name: str = "",
        *,
        uuid: str = "",
        flags: Flag = NONE,
        event_nr: int = 0,
        target_count: int = 0,
        payload: bytes = b"",
        watch: "_Watch | None" = None,
    ) -> Reply:
        """One ioctl, with a larger buffer where the answer needs one, and again when a signal interrupted it."""
        command = COMMANDS[operation]
        size = max(_BUFFER, HEADER.size + len(payload))
        while True:
            raw = encode_request(
                command,
                size=size,
                name=name,
                uuid=uuid,
                flags=flags,
                event_nr=event_nr,
                target_count=target_count,
                payload=payload,
            )
            answer = (
                self._explained(operation, name, raw, watch)
                if command.explains
                else self._ioctl(operation, name, raw, watch=watch)
            )
            reply = decode_reply(answer)
            if not reply.flags & Flag.BUFFER_FULL:
                return reply
            size *= 4
            if size > _BUFFER_LIMIT:
                raise KernelRefused(operation, name, errno.ENOBUFS)

    def _explained(self, operation: str, name: str, raw: bytes, watch: "_Watch | None") -> bytes:
        with LogMark() as mark:
            return self._ioctl(operation, name, raw, said=mark.lines, watch=watch)

    def _ioctl(
        self,
        operation: str,
        name: str,
        raw: bytes,
        said: Callable[[], tuple[str, ...]] = lambda: (),
        watch: "_Watch | None" = None,
    ) -> bytes:
        buffer = ctypes.create_string_buffer(raw, len(raw))
        number = errno.EINTR
        # A bytecode between two tries is enough for Python to run its signal handlers, which may raise to end this.
        while number == errno.EINTR:
            # Not fcntl.ioctl(): it keeps the interpreter's lock while the kernel works on a buffer of more than 1024 bytes, and a
            # load that waits for a hung drive would stop every thread.
            number = 0 if _libc().ioctl(self._fd, COMMANDS[operation].request, buffer) == 0 else ctypes.get_errno()
            if number == errno.EINTR and watch is not None and watch.gave_up:
                raise Stalled(
                    f"{operation} {name}: no request to it has come back for {PATIENCE_S:g} s",
                    remedy="see to what it lies on: dmsetup info -c -o name,suspended; journalctl -k",
                )
        match number:
            case 0:
                return buffer.raw
            case errno.ENXIO if name and self._is_unknown(operation, name):
                raise NoSuchDevice(operation, name, number)
            case errno.EACCES | errno.EPERM if os.geteuid() != 0:
                raise AccessDenied(f"{operation} {name}".rstrip() + ": only root may speak to device-mapper")
            case errno.ENOMEM:
                raise KernelExhausted(operation, name, number, said())
            case _:
                raise KernelRefused(operation, name, number, said())

    def _is_unknown(self, operation: str, name: str) -> bool:
        """Whether ENXIO means the name. A target can answer ENXIO too, in its constructor, resume or message."""
        return operation not in {"TABLE_LOAD", "DEV_SUSPEND", "TARGET_MSG"} or self.find(name) is None

    def _lines(self, name: str, flags: Flag) -> Table:
        reply = self._call("TABLE_STATUS", name, flags=flags)
        return decode_table(reply.data, reply.target_count)

    def _resume_old(self, name: str, *, visible: bool, refused: BaseException) -> None:
        try:
            # A refused load leaves what an earlier one had put into the inactive slot, and a resume would make that live.
            self.clear(name)
            self.resume(name, visible=visible)
        except BlkrecovError as stuck:
            errors = (refused, stuck) if isinstance(refused, BlkrecovError) else (stuck,)
            raise LeftSuspended(name, *errors) from refused

    def _missing_targets(self, table: Table) -> tuple[str, ...]:
        there = self.targets()
        return tuple(sorted({line.kind for line in table} - there.keys()))

    def _bring_target(self, kind: str, refused: KernelRefused | None = None) -> None:
        """At a load the kernel asks for "dm-KIND" by itself, through /proc/sys/kernel/modprobe; that can be switched off."""
        module = _MODULES.get(kind, f"dm-{kind}")
        with suppress(FileNotFoundError, subprocess.TimeoutExpired):
            subprocess.run(["modprobe", "--quiet", module], check=False, timeout=30, stdin=subprocess.DEVNULL)
        if kind not in self.targets():
            raise TargetMissing(kind, module, refused.log if refused else ()) from refused


class _Watch:
    """Beside a call that waits for a device's requests: interrupts it when none of them ends any more."""

    def __init__(self, info: DeviceInfo) -> None:
        self._device = blockdev.SYSFS / str(info.number)
        self._caller = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"suspend {info.name}", daemon=True)
        self.gave_up = False

    def __enter__(self) -> Self:
        _arm()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        # The device's requests may be fewer for a moment than those that it is asked for: so it is looked at until the end.
        while not self._ended.wait(_LOOK_AGAIN_S):
            with suppress(OSError):  # What cannot be looked at now is looked at again.
                if hangs(self._device, self._ended):
                    self.gave_up = True
                    signal.pthread_kill(self._caller, _SIGNAL)


@cache
def _arm() -> None:
    """Have the signal interrupt what it meets, and nothing else: its handler is a function of the C library without effect.

    Python's own handlers can be set by one thread only, and run in that one.
    """
    libc = _libc()
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(_SIGNAL, ctypes.cast(libc.abs, ctypes.c_void_p))
    libc.siginterrupt(_SIGNAL, 1)


def node(name: str) -> Path:
    """Where the device is found, once udev has made the link."""
    return NODES / name


def _info(reply: Reply) -> DeviceInfo:
    return DeviceInfo(
        name=reply.name,
        uuid=reply.uuid,
        number=reply.number,
        open_count=reply.open_count,
        event_nr=reply.event_nr,
        suspended=bool(reply.flags & Flag.SUSPEND),
        live=bool(reply.flags & Flag.ACTIVE_PRESENT),
        inactive=bool(reply.flags & Flag.INACTIVE_PRESENT),
        read_only=bool(reply.flags & Flag.READONLY),
    )


@cache
def _libc() -> ctypes.CDLL:
    """The C library, whose functions run without the interpreter's lock."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
    libc.ioctl.restype = ctypes.c_int
    return libc


def _open_control(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError as error:
        raise AccessDenied(f"cannot open {path}: {error.strerror}") from error
    except OSError as error:
        pass_on_exhaustion(error)
        # /proc/misc tells a missing driver from a missing node, for example in a container with a /dev of its own.
        minor = _misc_minor()
        if minor is None:
            raise NotSupported(
                f"this kernel has no device-mapper: {path}: {error.strerror}", remedy="modprobe dm-mod"
            ) from error
        raise NotSupported(
            f"device-mapper is there, but {path} is not: {error.strerror}", remedy=f"mknod {path} c 10 {minor}"
        ) from error


def _misc_minor() -> int | None:
    """Device-mapper's minor number among the misc devices, whose lines are " 236 device-mapper"."""
    with suppress(OSError):
        for line in Path("/proc/misc").read_text().splitlines():
            match line.split():
                case [minor, "device-mapper"]:
                    return int(minor)
    return None


def _udevd_runs() -> bool:
    """udevd's control socket is the sign that libudev's callers look for as well."""
    return Path("/run/udev/control").exists()


def _leads_to(path: Path, number: DeviceNumber) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISBLK(found.st_mode) and found.st_rdev == os.makedev(*number)


def _make_node(path: Path, number: DeviceNumber) -> None:
    """A link to devtmpfs's node as udev makes it, or a node where /dev is no devtmpfs. One rename puts it in place."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    kernels = Path("/dev") / f"dm-{number.minor}"
    try:
        if _leads_to(kernels, number):
            fresh.symlink_to(f"../{kernels.name}")
        else:
            os.mknod(fresh, stat.S_IFBLK | 0o600, os.makedev(*number))
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise ProviderFailure(f"cannot make {path}: {error.strerror}") from error


def _drop_dead_link(name: str) -> None:
    """Where a udevd runs, links are its business; where none does, one that we made is left to nobody else."""
    path = node(name)
    if not _udevd_runs():
        path.unlink(missing_ok=True)
