"""The device as a witness: SCSI disks as sysfs shows them.

What sysfs gives as page 83h is a copy that the kernel took when it scanned the device, renewed by `rescan`. A disk that came
up without the page has no `vpd_pg83` file at all: that is an answer (None), not an error.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blkrecov.errors import PathNotFound, ProviderFailure
from blkrecov.page83.designator import MalformedPage, Page, lun_naa, parse_page
from blkrecov.page83.identity import Witness
from blkrecov.units import Sectors

_BLOCK: Final = Path("/sys/class/block")
_SCSI_DISKS: Final = Path("/sys/class/scsi_disk")


@dataclass(frozen=True, slots=True)
class ScsiDisk:
    """A SCSI disk of the host. `wwid` is the kernel's own reading of the page ("naa.6001405…", "t10.…")."""

    disk: str
    hctl: str
    state: str
    size: Sectors
    wwid: str | None
    page: Page | MalformedPage | None

    @property
    def naa(self) -> str | None:
        match self.page:
            case Page() as page:
                try:
                    naa = lun_naa(page)
                except MalformedPage:
                    return None
                return naa.text if naa else None
            case _:
                return None


def scsi_disks() -> tuple[ScsiDisk, ...]:
    """All SCSI disks of the host, ours and others, in the order of their addresses. One that goes meanwhile is left out."""
    found = []
    for entry in sorted(_SCSI_DISKS.glob("*"), key=lambda entry: [int(word) for word in entry.name.split(":")]):
        try:
            disk = disk_at(entry.name)
            if disk is not None:
                found.append(scsi_disk(disk))
        except PathNotFound:
            continue
    return tuple(found)


def disk_at(hctl: str) -> str | None:
    """The node of the SCSI disk at host:channel:target:lun, or None until the sd driver has taken the device.

    Kernel: drivers/scsi/sd.c, sd_probe() runs after the SCSI device was added, and may run asynchronously.
    """
    for entry in (_SCSI_DISKS / hctl / "device/block").glob("*"):
        return f"/dev/{entry.name}"
    return None


def scsi_disk(disk: str) -> ScsiDisk:
    """Raises: PathNotFound where the host has no such SCSI disk."""
    device = _device(disk)
    try:
        page: Page | MalformedPage | None = read_page(disk)
    except MalformedPage as malformed:
        page = malformed
    return ScsiDisk(
        disk=disk,
        hctl=device.resolve().name,
        state=_text(device / "state") or "gone",
        size=size(disk),
        wwid=_text(device / "wwid"),
        page=page,
    )


def read_page(disk: str) -> Page | None:
    """Page 83h of a SCSI disk, or None where it has none.

    Raises: PathNotFound where there is no such disk, MalformedPage.
    """
    device = _device(disk)
    try:
        return parse_page((device / "vpd_pg83").read_bytes())
    except OSError as error:
        # No page: the file is hidden (ENOENT), or empty of data (EINVAL). drivers/scsi/scsi_sysfs.c,
        # scsi_sdev_bin_attr_is_visible() and the show function of the page.
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV, errno.ENXIO):
            raise ProviderFailure(f"reading page 83h of {disk}: {error.strerror}") from error
        return None


def witness(disk: str) -> Witness:
    """What the device itself says that it is."""
    file = f"{_BLOCK / Path(disk).name}/device/vpd_pg83"
    try:
        page = read_page(disk)
        naa = lun_naa(page) if page else None
    except (MalformedPage, PathNotFound) as error:
        return Witness("sysfs", None, f"{file}: {error}")
    if page is None:
        return Witness("sysfs", None, f"{file}: the device has no page 83h")
    return Witness("sysfs", naa.text if naa else None, file)


def size(disk: str) -> Sectors:
    """Size of any block device. Raises: PathNotFound."""
    text = _text(_BLOCK / Path(disk).name / "size")
    if text is None:
        raise PathNotFound(f"{disk} is no block device")
    return Sectors(int(text))


def partitions(disk: str) -> dict[str, tuple[Sectors, Sectors]]:
    """The partitions that the kernel has found on a disk: (first sector, length) by name."""
    found = {}
    for file in sorted((_BLOCK / Path(disk).name).glob("*/partition")):
        start, length = _text(file.parent / "start"), _text(file.parent / "size")
        if start is not None and length is not None:
            found[file.parent.name] = (Sectors(int(start)), Sectors(int(length)))
    return found


def partition_numbers(disk: str) -> dict[str, str]:
    """major:minor of a block device's partitions, by name. While its table is read anew they go, and come again."""
    numbers = {}
    for file in sorted((_BLOCK / Path(disk).name).glob("*/partition")):
        number = _text(file.parent / "dev")
        if number is not None:
            numbers[file.parent.name] = number
    return numbers


def disk_sequence(disk: str) -> str | None:
    """The number that no other disk since boot has had, whatever its name. Linux kernels before 5.15 give none."""
    return _text(_BLOCK / Path(disk).name / "diskseq")


def rescan(disk: str) -> Sectors:
    """Has the kernel ask the device for its size and pages again, and returns the size, once it knows.

    Kernel:  drivers/scsi/scsi_scan.c, scsi_rescan_device(): the write returns after sd has taken over the new size.
    Raises:  PathNotFound; ProviderFailure where the kernel refuses.
    """
    file = _device(disk) / "rescan"
    try:
        with open(file, "wb", buffering=0) as attribute:
            attribute.write(b"1")
    except OSError as error:
        raise ProviderFailure(f"rescan of {disk}: {error.strerror}") from error
    return size(disk)


def _device(disk: str) -> Path:
    device = _BLOCK / Path(disk).name / "device"
    if not (device / "scsi_disk").exists():
        raise PathNotFound(f"{disk} is no SCSI disk")
    return device


def _text(file: Path) -> str | None:
    """None for an attribute that is not there, or that the kernel cannot answer (a disk without wwid: EINVAL)."""
    try:
        return os.fsdecode(file.read_bytes()).strip()
    except OSError:
        return None
