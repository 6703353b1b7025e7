"""Labels and slots on the medium: reading them, writing them, and in which order.

One door. While a file is attached to a loop device, its metadata goes through the loop device and nothing else; before
that, through the file. The two have a page cache each, and neither learns of the other's writes: a label read through
the file may be older than what was written through the device, and a buffered write to the file may come out later,
over newer bytes. So DriveStore refuses a file that is attached, and names the device to use.

Through the device, I/O is direct (O_DIRECT): what dm sends to it does not pass the device's page cache either, so a
buffered read there is a read of the past. Files on file systems without direct I/O (tmpfs before Linux 6.6) are read
and written buffered; that is safe, because it happens only before they are attached.

Every write is followed by fdatasync(). Orders that matter, each for what a power cut between the steps leaves behind:

    format   old contents away, slots empty, then the label, then its copy: no drive, or a drive whose copy can be
             repaired. The copy comes after the label, since a copy alone is taken for a drive whose label was
             overwritten.
    wipe     the copy away, then the label, then the slots: a drive that can be removed once more, or no drive.

Closing a descriptor that could write makes udev look at the device again. So a store is kept open for as long as its
drive is in use, and closed before the loop device is detached, which would otherwise not happen.
"""

import errno
import mmap
import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from blkrecov.dm.stalled import refuse_stalled
from blkrecov.drives import loop, trust
from blkrecov.drives.label import (
    BLOCK,
    HEADER,
    BadSlot,
    DamagedLabel,
    Label,
    Layout,
    NoLabel,
    Slot,
    copy_at,
    decode_slot,
    encode_slot,
    newest,
    next_slot,
    plan_layout,
    slot_length,
)
from blkrecov.drives.loop import Inode
from blkrecov.errors import (
    AccessDenied,
    BlkrecovError,
    Code,
    DeviceInUse,
    InvalidArgument,
    InvalidDisk,
    NotEnoughSpace,
    NotSupported,
    ObjectExists,
    PathNotFound,
    pass_on_exhaustion,
)
from blkrecov.units import MIB, Bytes

_CHUNK: Final = MIB


class DriveIoError(BlkrecovError):
    """A read or write of a drive's metadata failed."""

    code = Code.VDS_E_IO_ERROR
    default_remedy = "see the kernel's log (journalctl -k); the medium or what it lies on may be failing"

    def __init__(self, operation: str, path: str, number: int) -> None:
        super().__init__(f"{operation} {path}: {os.strerror(number)} ({errno.errorcode.get(number, number)})")
        self.operation, self.path, self.errno = operation, path, number


@dataclass(slots=True)
class IoCounter:
    """Bytes that this process itself moved to and from drives. Tasks report them beside what the kernel moved."""

    bytes_read: int = 0
    bytes_written: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReading:
    """A drive's label, and in which state it was found."""

    label: Label
    from_copy: bool  # The label itself is lost; this is what its copy says.
    damage: str | None  # What is wrong with the label or the copy; repair_label() puts it right.
    cut: bool = False  # Nothing stands at its end: it was cut there and made as long again, and who knows where.


class DriveStore:
    """The metadata of one drive, through a file or a block device. A context manager; close() may be called twice."""

    def __init__(
        self, path: str, counter: IoCounter, *, writable: bool = True, follow: bool = True, anybody: bool = False
    ) -> None:
        """Open a drive; `follow=False` refuses a symbolic link. With `anybody` it is for the caller to look at `flaw`: why what a
        file says is not to be believed.

        Raises: PathNotFound; AccessDenied; InvalidArgument for anything but a regular file or block device; DeviceInUse
                for a file that is attached to a loop device; Untrusted; Stalled; DriveIoError.
        """
        refuse_stalled(path)
        self.path = path
        self._counter = counter
        # O_NONBLOCK keeps a FIFO from holding us up until somebody writes to it. Regular files and disks ignore it.
        flags = (
            os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDWR if writable else os.O_RDONLY) | (0 if follow else os.O_NOFOLLOW)
        )
        self._descriptor = -1
        with ExitStack() as undo:
            self._descriptor = _open(path, flags | os.O_DIRECT)
            undo.callback(self.close)
            status = os.fstat(self._descriptor)
            mode = status.st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise InvalidArgument(f"{path} is neither a regular file nor a block device")
            self.is_block: Final = stat.S_ISBLK(mode)
            self.flaw: Final = "" if self.is_block else trust.flaw_of(status)
            self.inode: Final = None if self.is_block else Inode(status.st_dev, status.st_ino)
            if self.flaw and not anybody:
                raise trust.Untrusted(path, self.flaw)
            if self.inode is not None:
                _refuse_attached(path, self.inode)
            self.size: Final = Bytes(os.lseek(self._descriptor, 0, os.SEEK_END))
            undo.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def read_label(self) -> LabelReading:
        """Read the label, or its copy where the label is lost.

        Raises: NoLabel when there is neither; DamagedLabel when there is something, and nothing valid; InvalidDisk when
                the drive is shorter than its label says; NotSupported for a later version's; DriveIoError.
        """
        if self.size < 2 * BLOCK:
            raise NoLabel(f"{self.path} is too small for a drive")
        first = self._try_label(0)
        if isinstance(first, Label):
            if self.size < first.layout.size:
                raise InvalidDisk(
                    f"{self.path} has {self.size} bytes, and was made with {first.layout.size}: its end is missing",
                    remedy="do not use it: what was at its end is lost; let the array rebuild onto another drive",
                )
            second = self._try_label(first.layout.copy_at)
            cut = isinstance(second, NoLabel)
            return LabelReading(label=first, from_copy=False, damage=_damage_of_copy(first, second), cut=cut)
        second = self._try_label(copy_at(self.size))
        if isinstance(second, Label) and second.layout.size == self.size:
            return LabelReading(label=second, from_copy=True, damage=f"the label is lost: {first.message}")
        if isinstance(first, NoLabel) and isinstance(second, NoLabel):
            raise NoLabel(f"{self.path} has no blkrecov label")
        why = second.message if isinstance(second, InvalidDisk) else "it is of a drive of another size"
        raise DamagedLabel(f"{self.path}: {first.message}; its copy does not help: {why}")

    def repair_label(self) -> LabelReading:
        """Make the label and its copy valid and equal again, from the one that is valid.

        Raises: as read_label() does.
        """
        reading = self.read_label()
        if reading.damage is not None:
            source, target = Bytes(0), reading.label.layout.copy_at
            if reading.from_copy:
                source, target = target, source
            # Byte for byte, not decoded and encoded: a later version may have put something into what we take for
            # padding.
            self._write(target, self._read(source, BLOCK))
            self._flush()
        return self.read_label()

    def read_slots(self, label: Label) -> tuple[Slot | BadSlot, Slot | BadSlot]:
        """Read both slots, no more of each than is in use.

        Raises: NotSupported for a later version's slot; DriveIoError.
        """
        return self._read_slot(label, 0), self._read_slot(label, 1)

    def write_slot(self, label: Label, sequence: int, payload: bytes) -> int:
        """Write the slot that is not the newest valid one, and return which that was. It is on the medium on return.

        Raises: ConfigurationLimit when it does not fit; NotSupported; DriveIoError, after which the newest valid slot
                is the one that it was before, or this one.
        """
        data = encode_slot(sequence, label.array_uuid, label.drive_uuid, payload, label.layout.slot_size)
        index = self._oldest_slot(label, sequence)
        self._write(label.layout.slot_at(index), data)
        self._flush()
        return index

    def _oldest_slot(self, label: Label, sequence: int) -> int:
        """Which slot is not the newest valid one. The version before this is looked for where a drive that has had all has it."""
        likely = sequence % 2
        found = self._read_slot(label, likely)
        if isinstance(found, Slot) and found.sequence == sequence - 1:
            return 1 - likely
        other = self._read_slot(label, 1 - likely)
        slots = (found, other) if likely == 0 else (other, found)
        latest = newest(slots)
        assert latest is None or latest.sequence < sequence, f"sequence {sequence} is no news"
        return next_slot(*slots)

    def format(self, label: Label) -> None:
        """Make a drive of what this store is open on. What was there, and every signature of it, goes.

        Raises: DriveIoError; what is there then is no drive, or a whole one whose copy of the label is missing.
        """
        layout = label.layout
        assert layout.size == self.size, f"a label for {layout.size} bytes on {self.size}"
        self._zero(0, layout.data_start)
        self._zero(layout.tail_start, layout.size - layout.tail_start)
        self._flush()
        self._write(0, label.encode())
        self._flush()
        self._write(layout.copy_at, label.encode())
        self._flush()

    def wipe(self, layout: Layout) -> None:
        """Take the label, its copy and the slots away. What is in the data area stays.

        Raises: DriveIoError.
        """
        for start, length in ((layout.copy_at, BLOCK), (0, BLOCK), (HEADER, 2 * layout.slot_size)):
            self._zero(start, length)
            self._flush()

    def _try_label(self, offset: int) -> Label | InvalidDisk:
        try:
            return Label.decode(self._read(offset, BLOCK))
        except InvalidDisk as error:
            return error
        except NotSupported as error:
            raise NotSupported(f"{self.path}: {error.message}", remedy=error.remedy) from error

    def _read_slot(self, label: Label, index: int) -> Slot | BadSlot:
        start = label.layout.slot_at(index)
        header = self._read(start, BLOCK)
        used = slot_length(header, label.layout.slot_size)
        if isinstance(used, BadSlot):
            return used
        data = header + (self._read(start + BLOCK, used - BLOCK) if used > BLOCK else b"")
        return decode_slot(data, label.array_uuid, label.drive_uuid, label.layout.slot_size)

    def _zero(self, start: int, length: int) -> None:
        """Make a range read as zeros. Only what does not is written, so that a sparse file stays sparse."""
        end = start + length
        # Bytes after the last whole block are out of reach of direct I/O, and nothing of ours is there.
        end -= end % BLOCK
        buffer = mmap.mmap(-1, _CHUNK)  # One for all pieces: memory that is new costs more than the comparison.
        for offset in range(start, end, _CHUNK):
            size = min(_CHUNK, end - offset)
            self._read_into(memoryview(buffer)[:size], offset)
            if buffer[:size].count(0) != size:
                self._write(offset, bytes(size))

    def _read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes. Offset and length are whole blocks, as direct I/O asks for."""
        buffer = mmap.mmap(-1, length)  # Whole pages, so aligned for direct I/O.
        self._read_into(memoryview(buffer), offset)
        return buffer[:]

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            try:
                got = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                pass_on_exhaustion(error)
                raise DriveIoError("read", self.path, error.errno or errno.EIO) from error
            if not got:  # The file became shorter since it was opened.
                raise DriveIoError("read", self.path, errno.ENODATA)
            done += got
            self._counter.bytes_read += got

    def _write(self, offset: int, data: bytes) -> None:
        assert offset % BLOCK == 0, f"byte {offset} starts no block"
        assert len(data) % BLOCK == 0, f"{len(data)} bytes are no whole blocks"
        buffer = mmap.mmap(-1, len(data))
        buffer[:] = data
        done = 0
        while done < len(data):
            try:
                put = os.pwritev(self._descriptor, [memoryview(buffer)[done:]], offset + done)
            except OSError as error:
                pass_on_exhaustion(error)
                raise DriveIoError("write", self.path, error.errno or errno.EIO) from error
            done += put
            self._counter.bytes_written += put

    def _flush(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            pass_on_exhaustion(error)
            raise DriveIoError("flush", self.path, error.errno or errno.EIO) from error


def format_drive(path: str, label: Label, counter: IoCounter, *, expected: Inode | None = None) -> Inode | None:
    """Make a drive of a file or block device. Whether it may be destroyed is for probe.refuse_if_unfit() to say,
    before, of what the path was then, if it says so. The file that it is; None for a block device.

    Raises: InvalidArgument when its size is not the label's; InvalidDisk where another file has taken the path; what DriveStore
            raises.
    """
    with DriveStore(path, counter) as store:
        if expected is not None and store.inode != expected:
            raise loop.exchanged(path)
        if store.size != label.layout.size:
            raise InvalidArgument(f"{path} has {store.size} bytes, and its label is for {label.layout.size}")
        store.format(label)
        return store.inode


def create_file(path: str, size: int) -> Inode:
    """Make a new sparse file for a drive, for its owner only. Undone by remove_file() with what this returns.

    Raises: InvalidArgument for a size that is too small, no multiple of 4096, or more than the file system takes;
            ObjectExists; PathNotFound without its directory; AccessDenied; NotEnoughSpace; DriveIoError.
    """
    plan_layout(size)
    if size % BLOCK:
        raise InvalidArgument(f"{size} bytes are no multiple of {BLOCK}", remedy=f"use {size - size % BLOCK}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise ObjectExists(
                f"{path} exists already", remedy="choose another path, or add it without --size"
            ) from error
        raise _refusal("create", path, error) from error
    with ExitStack() as undo:
        undo.callback(os.close, descriptor)
        created = loop.inode_of(descriptor)
        with ExitStack() as unmake:
            unmake.callback(remove_file, path, created)
            try:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
                _sync_directory(path)
            except OSError as error:
                raise _refusal("create", path, error) from error
            unmake.pop_all()
    return created


def remove_file(path: str, created: Inode) -> None:
    """Remove a file that create_file() made. One that has taken its name meanwhile is left alone."""
    try:
        status = Path(path).lstat()
        if Inode(status.st_dev, status.st_ino) == created:
            Path(path).unlink()
            _sync_directory(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refusal("remove", path, error) from error


def _sync_directory(path: str) -> None:
    """A name is on the medium when its directory is."""
    directory = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags)
    except OSError as error:
        if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
            raise _refusal("open", path, error) from error
    return _open(path, flags & ~os.O_DIRECT)


def _refuse_attached(path: str, inode: Inode) -> None:
    for device in loop.attached():
        if device.backing == inode:
            raise DeviceInUse(f"{path} is attached as {device.path}", remedy=f"use {device.path}, or detach it first")


def _damage_of_copy(label: Label, copy: Label | InvalidDisk) -> str | None:
    if isinstance(copy, InvalidDisk):
        return f"the copy of the label is lost: {copy.message}"
    return None if copy == label else "the copy of the label differs from it"


def _refusal(operation: str, path: str, error: OSError) -> BlkrecovError:
    pass_on_exhaustion(error)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return PathNotFound(f"{operation} {path}: {error.strerror}")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return AccessDenied(f"{operation} {path}: {error.strerror}")
        case errno.EISDIR | errno.ELOOP | errno.EFBIG | errno.ENXIO:
            return InvalidArgument(f"{operation} {path}: {error.strerror}")
        case errno.ENOSPC | errno.EDQUOT:
            return NotEnoughSpace(f"{operation} {path}: {error.strerror}", remedy="free space where the file is to be")
        case number:
            return DriveIoError(operation, path, number or errno.EIO)
