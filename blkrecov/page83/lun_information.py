"""What a SCSI disk of the host says of itself, as LUN information.

All of it is what the kernel kept of the device's answers when it scanned the device; `sysfs.rescan` renews the pages. The disk's
signature is in its data, which nobody reads here.
"""

from pathlib import Path
from typing import Final
from uuid import UUID

from blkrecov.errors import PathNotFound, pass_on_exhaustion
from blkrecov.page83 import sysfs
from blkrecov.page83.information import (
    NO_SIGNATURE,
    BusType,
    LunInformation,
    ascii_text,
    device_id_descriptor,
    serial_number,
)

_BLOCK: Final = Path("/sys/class/block")


def of_disk(disk: str, disk_signature: UUID = NO_SIGNATURE) -> LunInformation:
    """The information of the LUN that is this disk.

    It names no interconnects: what the bytes of a port and an address are is not specified, and a SCSI address of this host is
    another one after the next boot.

    Raises: PathNotFound where the host has no such SCSI disk; MalformedPage; ProviderFailure where the kernel refuses the page.
    Kernel: drivers/scsi/scsi_sysfs.c. queue_type is "none" unless the INQUIRY data has CmdQue (scsi_scan.c, scsi_add_lun()).
    """
    page = sysfs.read_page(disk)
    return LunInformation(
        device_type=int(_attribute(disk, "type")),
        device_type_modifier=0,
        command_queueing=_attribute(disk, "queue_type").strip() != b"none",
        bus_type=BusType.FILE_BACKED_VIRTUAL,
        vendor_id=ascii_text(_attribute(disk, "vendor")),
        product_id=ascii_text(_attribute(disk, "model")),
        product_revision=ascii_text(_attribute(disk, "rev")),
        serial_number=_serial_number(disk),
        disk_signature=disk_signature,
        device_id_descriptor=device_id_descriptor(page),
        interconnects=(),
    )


def _serial_number(disk: str) -> str | None:
    """None where the device has no page 80h: the kernel then shows no file."""
    try:
        return serial_number(_attribute(disk, "vpd_pg80"))
    except PathNotFound:
        return None


def _attribute(disk: str, name: str) -> bytes:
    try:
        return (_BLOCK / Path(disk).name / "device" / name).read_bytes()
    except OSError as error:
        pass_on_exhaustion(error)
        raise PathNotFound(f"{disk} has no {name}: {error.strerror}") from error
