"""Result codes and the exception tree.

A code belongs to a family, because VDS and VSS give one number two meanings (0x80042404 is "another call in progress" to the
one and "missing dynamic disk" to the other). So a code is never a bare integer here.

An error is a class, a code and facts: callers match the class, programs read the code's name, people read the message (what
happened and why) and the remedy (what to do about it).
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, unique
from typing import ClassVar, Final


@unique
class Family(Enum):
    """Whose numbers: Win32's own HRESULTs, the Virtual Disk Service's, the Volume Shadow Copy Service's."""

    COMMON = "common"
    VDS = "vds"
    VSS = "vss"


@unique
class Code(Enum):
    """Result codes as (family, HRESULT). Sources: the operations' specifications; MS-VDS 2.2.3; MS-ERREF; vsserror.h."""

    S_OK = (Family.COMMON, 0x00000000)
    E_UNEXPECTED = (Family.COMMON, 0x8000FFFF)
    E_ACCESSDENIED = (Family.COMMON, 0x80070005)
    E_OUTOFMEMORY = (Family.COMMON, 0x8007000E)
    E_INVALIDARG = (Family.COMMON, 0x80070057)

    VDS_E_NOT_SUPPORTED = (Family.VDS, 0x80042400)
    VDS_E_INITIALIZE_NOT_CALLED = (Family.VDS, 0x80042402)
    VDS_E_ANOTHER_CALL_IN_PROGRESS = (Family.VDS, 0x80042404)
    VDS_E_OBJECT_NOT_FOUND = (Family.VDS, 0x80042405)
    VDS_E_OPERATION_PENDING = (Family.VDS, 0x80042409)
    VDS_E_OPERATION_DENIED = (Family.VDS, 0x8004240A)
    VDS_E_OBJECT_DELETED = (Family.VDS, 0x8004240B)
    VDS_E_CANCEL_TOO_LATE = (Family.VDS, 0x8004240C)
    VDS_E_OPERATION_CANCELED = (Family.VDS, 0x8004240D)
    VDS_E_NOT_ENOUGH_SPACE = (Family.VDS, 0x8004240F)
    VDS_E_NOT_ENOUGH_DRIVE = (Family.VDS, 0x80042410)
    VDS_E_DEVICE_IN_USE = (Family.VDS, 0x80042413)
    VDS_E_DISK_NOT_EMPTY = (Family.VDS, 0x80042414)
    VDS_E_INVALID_OPERATION = (Family.VDS, 0x80042415)
    VDS_E_PATH_NOT_FOUND = (Family.VDS, 0x80042416)
    VDS_E_OBJECT_EXISTS = (Family.VDS, 0x8004241D)
    VDS_E_PROVIDER_CACHE_CORRUPT = (Family.VDS, 0x8004241F)
    VDS_E_IO_ERROR = (Family.VDS, 0x8004242B)
    VDS_E_OBJECT_STATUS_FAILED = (Family.VDS, 0x80042431)
    VDS_E_PROVIDER_FAILURE = (Family.VDS, 0x80042442)
    VDS_E_DISK_NOT_ONLINE = (Family.VDS, 0x8004244B)
    VDS_E_TIMEOUT = (Family.VDS, 0x8004245F)
    VDS_E_INVALID_DISK = (Family.VDS, 0x80042519)
    VDS_E_CONFIG_LIMIT = (Family.VDS, 0x80042538)
    VDS_E_DISK_CONFIGURATION_CORRUPTED = (Family.VDS, 0x80042539)
    VDS_E_DISK_CONFIGURATION_UPDATE_FAILED = (Family.VDS, 0x8004253B)

    VSS_E_BAD_STATE = (Family.VSS, 0x80042301)
    VSS_E_UNEXPECTED = (Family.VSS, 0x80042302)
    VSS_E_PROVIDER_VETO = (Family.VSS, 0x80042306)
    VSS_E_OBJECT_NOT_FOUND = (Family.VSS, 0x80042308)
    VSS_S_ASYNC_PENDING = (Family.VSS, 0x00042309)
    VSS_S_ASYNC_FINISHED = (Family.VSS, 0x0004230A)
    VSS_S_ASYNC_CANCELLED = (Family.VSS, 0x0004230B)
    VSS_E_VOLUME_NOT_SUPPORTED = (Family.VSS, 0x8004230C)
    VSS_E_INSUFFICIENT_STORAGE = (Family.VSS, 0x8004231F)
    VSS_E_CANNOT_REVERT_DISKID = (Family.VSS, 0x800423FE)

    @property
    def family(self) -> Family:
        return self.value[0]

    @property
    def hresult(self) -> int:
        """The unsigned 32-bit number."""
        return self.value[1]

    @property
    def hresult_text(self) -> str:
        return f"0x{self.hresult:08X}"


class BlkrecovError(Exception):
    """What the world did to us. `message` tells what and why, `remedy` what to do; both are sentences for people."""

    code: ClassVar[Code] = Code.E_UNEXPECTED
    default_remedy: ClassVar[str] = "see the kernel's log (journalctl -k) and try again"

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message: Final = message
        self.remedy: Final = remedy or self.default_remedy


class InvalidArgument(BlkrecovError):
    """A name, a size or an option that can never work."""

    code = Code.E_INVALIDARG
    default_remedy = "correct the argument"


class AccessDenied(BlkrecovError):
    """Not root."""

    code = Code.E_ACCESSDENIED
    default_remedy = "run it as root, for example with sudo"


class NotSupported(BlkrecovError):
    """Something that this kernel or this version cannot do: a missing module, an unknown on-disk version."""

    code = Code.VDS_E_NOT_SUPPORTED
    default_remedy = "install what is missing"


class ObjectNotFound(BlkrecovError):
    """An object that never existed."""

    code = Code.VDS_E_OBJECT_NOT_FOUND
    default_remedy = "list what exists with: blkrecov lun list, blkrecov drive list"


class ObjectDeleted(BlkrecovError):
    """An object that existed once."""

    code = Code.VDS_E_OBJECT_DELETED
    default_remedy = "it is gone for good; list what exists with: blkrecov lun list"


class ObjectExists(BlkrecovError):
    """A name that is taken."""

    code = Code.VDS_E_OBJECT_EXISTS
    default_remedy = "choose another name"


class ObjectFailed(BlkrecovError):
    """A LUN that has lost more members than its layout can."""

    code = Code.VDS_E_OBJECT_STATUS_FAILED
    default_remedy = "bring its drives back; until then its data cannot be reached"


class InvalidOperation(BlkrecovError):
    """An operation that this kind of object does not have."""

    code = Code.VDS_E_INVALID_OPERATION
    default_remedy = "see blkrecov --help for what can be done with it"


class AnotherCallInProgress(BlkrecovError):
    """The object is busy with an earlier operation."""

    code = Code.VDS_E_ANOTHER_CALL_IN_PROGRESS
    default_remedy = "wait for it to end: blkrecov task list"


class Cancelled(BlkrecovError):
    """The operation was cancelled."""

    code = Code.VDS_E_OPERATION_CANCELED
    default_remedy = "start it again when it is wanted"


class CancelTooLate(BlkrecovError):
    """The operation has ended, or can no longer be stopped."""

    code = Code.VDS_E_CANCEL_TOO_LATE
    default_remedy = "nothing is to be done: it has ended"


class TimedOut(BlkrecovError):
    """A bounded wait ended before what it waited for; that goes on."""

    code = Code.VDS_E_TIMEOUT
    default_remedy = "look again later"


class NotEnoughSpace(BlkrecovError):
    """The drives have too little free space."""

    code = Code.VDS_E_NOT_ENOUGH_SPACE
    default_remedy = "add a drive with: blkrecov drive add PATH --size SIZE"


class NotEnoughDrives(BlkrecovError):
    """Too few drives, whatever their space."""

    code = Code.VDS_E_NOT_ENOUGH_DRIVE
    default_remedy = "add a drive with: blkrecov drive add PATH --size SIZE"


class DeviceInUse(BlkrecovError):
    """Something else holds the file or device."""

    code = Code.VDS_E_DEVICE_IN_USE
    default_remedy = "end what holds it, then try again"


class DiskNotEmpty(BlkrecovError):
    """A file or device that holds something already."""

    code = Code.VDS_E_DISK_NOT_EMPTY
    default_remedy = "choose another path, or add --force if what it holds may be destroyed"


class PathNotFound(BlkrecovError):
    """A file, directory or device that does not exist."""

    code = Code.VDS_E_PATH_NOT_FOUND
    default_remedy = "check the path"


class InvalidDisk(BlkrecovError):
    """A file or device that is no drive of this array: another array's, damaged, changed in size."""

    code = Code.VDS_E_INVALID_DISK
    default_remedy = "give the path of the right drive"


class DriveNotOnline(BlkrecovError):
    """The drive has failed or is away."""

    code = Code.VDS_E_DISK_NOT_ONLINE
    default_remedy = "see blkrecov drive list"


class IdentityMismatch(BlkrecovError):
    """The page-83 gate is shut: the witnesses of an identity do not agree, or two objects claim one identity."""

    code = Code.VDS_E_OPERATION_DENIED
    default_remedy = "see blkrecov page83 check for who says what; nothing was written"


class MetadataCorrupt(BlkrecovError):
    """No copy of the array's configuration can be read."""

    code = Code.VDS_E_DISK_CONFIGURATION_CORRUPTED
    default_remedy = "attach the array's other drives, which carry copies"


class MetadataNotWritten(BlkrecovError):
    """The array's configuration could not be stored."""

    code = Code.VDS_E_DISK_CONFIGURATION_UPDATE_FAILED
    default_remedy = "see blkrecov drive list for failed drives"


class ConfigurationLimit(BlkrecovError):
    """The configuration would not fit the drives' metadata slots."""

    code = Code.VDS_E_CONFIG_LIMIT
    default_remedy = "delete LUNs, or make a second array"


class ProviderFailure(BlkrecovError):
    """Something below us refused, in its own words: the kernel, LIO, udev."""

    code = Code.VDS_E_PROVIDER_FAILURE


class OutOfResources(BlkrecovError):
    """Memory, or what the kernel has a limited number of."""

    code = Code.E_OUTOFMEMORY
    default_remedy = "free memory, or raise the limit, and try again"


class CacheCorrupt(BlkrecovError):
    """What was known of the array is not what is there: somebody else has changed it."""

    code = Code.VDS_E_PROVIDER_CACHE_CORRUPT
    default_remedy = "run: blkrecov reenumerate, then: blkrecov refresh"


class NotInitialized(BlkrecovError):
    """An array that is not open."""

    code = Code.VDS_E_INITIALIZE_NOT_CALLED
    default_remedy = "open the array first"


class BadState(BlkrecovError):
    """A restore at the wrong time: without a session, beside another one, or in a machine that is not up."""

    code = Code.VSS_E_BAD_STATE
    default_remedy = "open a restore session first"


class ShadowNotFound(BlkrecovError):
    """No LUN answers to what was given, or no shadow copy does."""

    code = Code.VSS_E_OBJECT_NOT_FOUND
    default_remedy = "list what exists with: blkrecov snapshot list, blkrecov lun list"


class VolumeNotSupported(BlkrecovError):
    """A LUN that cannot be a restore's source or target, whatever is done about it now."""

    code = Code.VSS_E_VOLUME_NOT_SUPPORTED
    default_remedy = "choose another LUN"


class InsufficientStorage(BlkrecovError):
    """Too little room in the array for what a shadow copy or a restore needs."""

    code = Code.VSS_E_INSUFFICIENT_STORAGE
    default_remedy = "add a drive with: blkrecov drive add PATH --size SIZE"


class CannotRevertDiskId(BlkrecovError):
    """A disk signature that cannot be given to a target, because another disk has it."""

    code = Code.VSS_E_CANNOT_REVERT_DISKID
    default_remedy = "restore without --revert-identity, or take the other disk away"


class ProviderVeto(BlkrecovError):
    """A restore that cannot be done now. There is always an event that says why, and what to do."""

    code = Code.VSS_E_PROVIDER_VETO
    default_remedy = "see: blkrecov events"


class RestoreCancelled(BlkrecovError):
    """A restore that was cancelled. A success, by its code."""

    code = Code.VSS_S_ASYNC_CANCELLED
    default_remedy = "its targets are not ready until they have been restored"


# What runs out is memory, or a table that the kernel or the process has.
EXHAUSTED: Final = frozenset({errno.ENOMEM, errno.ENFILE, errno.EMFILE})


def pass_on_exhaustion(error: OSError) -> None:
    """Raise an error again that says nothing of the object which was asked: whoever asked had run out of something. Taken for an
    answer, a drive that could not be opened for that would be a drive that is away.
    """
    if error.errno in EXHAUSTED:
        raise error


@contextmanager
def resources() -> Iterator[None]:
    """Exhaustion, wherever it shows, in our words."""
    try:
        yield
    except MemoryError as error:
        raise OutOfResources("there is not enough memory") from error
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise OutOfResources(str(error)) from error
        raise
