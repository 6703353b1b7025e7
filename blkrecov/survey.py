"""Takes an overview of an open array, as often as anybody likes to look. Changes nothing, and asks no drive.

What it reads is device-mapper's status and sysfs, so it may be called with the array's lock let go. What another process has
changed in the document meanwhile is Array.reload()'s business.
"""

import dataclasses
import time
from pathlib import Path
from uuid import UUID

from blkrecov import observer, rows
from blkrecov.array import Array
from blkrecov.dm import counters, names
from blkrecov.dm.control import Control
from blkrecov.observed import Observed
from blkrecov.overview import Overview


def survey(array: Array, control: Control) -> Overview:
    """What there is to see of an array now."""
    observed = dataclasses.replace(array.observed, devices=observer.devices(control, array.document, array.suspensions))
    return counted(dataclasses.replace(rows.overview(array), observed=observed))


def counted(overview: Overview) -> Overview:
    """With what the kernel has counted until now. Reads sysfs and nothing else, so it waits for nobody."""
    roles = [(drive.uuid, "drive") for drive in overview.document.drives] + [
        (lun.uuid, "lun") for lun in overview.document.luns
    ]
    devices = {uuid: overview.observed.devices.get(names.dm_uuid(uuid, role)) for uuid, role in roles}
    return dataclasses.replace(
        overview,
        at_s=time.monotonic(),
        traffic={uuid: counters.count(live.number) for uuid, live in devices.items() if live is not None},
        errors=_errors(overview.observed),
    )


def _errors(observed: Observed) -> dict[UUID, int]:
    """What the SCSI layer has counted. Kernel: drivers/scsi/scsi_sysfs.c, ioerr_cnt; it prints hexadecimal.

    Commands of its own are among them: a disk that nobody has used yet has one, from when it was looked for.
    """
    found = {}
    for uuid, exported in observed.exports.items():
        try:
            found[uuid] = int(Path(f"/sys/block/{Path(exported.disk).name}/device/ioerr_cnt").read_text(), 16)
        except OSError:  # The disk has gone since it was looked for.
            continue
    return found
