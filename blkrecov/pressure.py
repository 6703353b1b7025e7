"""Who else uses the drives of LUNs that are being synchronised, from the kernel's own counters. Reads, and changes nothing.

A drive's port sees all that anybody moves on the drive; the legs of the LUNs that are synchronised see what those move, for
themselves and for their hosts. The difference is other LUNs' I/O. What hosts move on the LUNs themselves is added: it is counted
at the top, once, whatever a write costs below.
"""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Final
from uuid import UUID

from blkrecov.dm import counters, names
from blkrecov.governor import Sample
from blkrecov.model import Document
from blkrecov.observed import Observed
from blkrecov.units import in_bytes

PSI: Final = Path("/proc/pressure/io")


def sample(document: Document, observed: Observed, luns: Collection[UUID], psi: Path = PSI) -> Sample:
    """What is counted now. `luns` are all those that md synchronises, or their I/O would pass for somebody else's.

    A copy underneath a leg (dm-mirror's) is not md's, and counts as somebody else's: md's limits do not hold for it.

    The counters cannot be read at one moment, and a fast synchronisation moves a megabyte while they are: so legs are read before
    the ports and after them, and what they moved meanwhile is in doubt.
    """
    synchronised = [lun for lun in document.luns if lun.uuid in luns]
    data = [names.dm_uuid(member.uuid, "rimage") for lun in synchronised for member in lun.members]
    meta = [names.dm_uuid(member.uuid, "rmeta") for lun in synchronised for member in lun.members]
    drives = {drive for lun in synchronised for drive in lun.drives}
    ports = [names.dm_uuid(drive, "drive") for drive in drives]
    tops = [names.dm_uuid(lun.uuid, "lun") for lun in synchronised]
    before = sum(_moved(observed, data + meta).values())
    all_in_all = _moved(observed, ports + tops)
    at_s = time.monotonic()
    moved = _moved(observed, data)
    after = sum(moved.values()) + sum(_moved(observed, meta).values())
    return Sample(
        at_s=at_s,
        foreign=sum(all_in_all.values()) - after,
        doubt=after - before,
        moved=moved,
        devices=frozenset(all_in_all),
        pressure=io_pressure(psi),
    )


def io_pressure(psi: Path = PSI) -> float | None:
    """PSI's percentage of the last ten seconds in which some task waited for I/O; None where the kernel does not tell.

    Shape:   some avg10=1.16 avg60=2.74 avg300=1.42 total=88007618
    Kernel:  Documentation/accounting/psi.rst. Kernels without CONFIG_PSI, or booted with psi=0, have no such file.
    """
    try:
        words = psi.read_text().split()
    except OSError:
        return None
    return float(words[1].removeprefix("avg10="))


def _moved(observed: Observed, uuids: Collection[str]) -> dict[str, int]:
    """Bytes through each of these devices that is there, by its number."""
    numbers = [observed.devices[uuid].number for uuid in uuids if uuid in observed.devices]
    return {number: in_bytes(counters.sectors_moved(number)) for number in numbers}
