"""What a path stands on, down to the hardware: through partitions, device-mapper and md, the files of loop devices, and the LUNs
of this machine, of which sysfs says that they are disks that stand on nothing.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from blkrecov import blockdev, mountinfo
from blkrecov.drives import loop


def devices(path: str, exported: Mapping[str, int]) -> Iterator[Path]:
    """The block device that a path is, or that the file system lies on which it is in or is to be made in; and all below. As
    directories in sysfs, from the top down. `exported` has the device number behind each disk that is a LUN of this machine.

    What cannot be followed ends there: network file systems, and those on several devices below their first.
    """
    files = {device.number: device.backing_file for device in loop.attached()}

    def further(device: Path) -> Iterator[int]:
        word = device.name.removeprefix("loop")
        if word.isdecimal() and (file := files.get(int(word))):
            yield _number(file)
        if behind := exported.get(f"/dev/{device.name}"):
            yield behind

    return blockdev.below(_number(path), further)


def _number(path: str) -> int:
    """The device number of a block device, or of that below a file; 0 where there is none."""
    path = os.path.realpath(path)
    for place in (Path(path), *Path(path).parents):
        with suppress(OSError):
            status = place.stat()
            if stat.S_ISBLK(status.st_mode):
                return status.st_rdev
            return status.st_dev if os.major(status.st_dev) else _source(path)
    return 0


def _source(path: str) -> int:
    """Of a file system that has a number of its own, as btrfs: what its mount names."""
    found = 0
    deepest = -1
    for mount in mountinfo.read():
        point = Path(mount.point)
        if Path(path).is_relative_to(point) and len(point.parts) >= deepest:
            deepest, found = len(point.parts), 0
            with suppress(OSError):
                found = Path(mount.source).stat().st_rdev
    return found
