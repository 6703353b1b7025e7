"""Who is who: the identity that a LUN must have, the witnesses of the one it has, and the gate between.

Page 83h says what a LUN *is*, wherever its data goes. An operation that moves data trusts no single word for it: the array's
metadata, the device's own page and udev's database must all say the same (`verify`), and nobody else may say it as well
(`refuse_duplicates`). Both refuse before anything is written, naming everyone who spoke.

A witness that is silent is no agreement: a missing page shuts the gate just as a wrong one does.

This file compares words. Who reads them from the kernel and from udev: sysfs.py and udev.py.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from blkrecov.errors import IdentityMismatch

LIO_COMPANY_ID: Final = 0x001405

Source = Literal["metadata", "sysfs", "udev"]
SOURCES: Final[tuple[Source, ...]] = ("metadata", "sysfs", "udev")

_HEX_DIGIT: Final = re.compile(r"[0-9a-fA-F]")
_NAA: Final = r"([0-9a-f]{32}|[0-9a-f]{16})"
_UDEV_WWN: Final = re.compile(f"0x{_NAA}")
_UDEV_SERIAL: Final = re.compile(f"3{_NAA}")  # scsi_id writes the designator type first; 3 is NAA.


def serial_of(lun_uuid: UUID) -> str:
    """The unit serial number of a LUN: its UUID as 32 hexadecimal digits.

    Plain digits and nothing else. A word in front would give its own hexadecimal letters to the NAA (the b, e and c of
    "blkrecov") and push as many of the UUID's digits out at the end.
    """
    return lun_uuid.hex


def naa_of_serial(serial: str, company_id: int = LIO_COMPANY_ID) -> str:
    """The NAA identifier, as 32 hexadecimal digits, that LIO makes of a unit serial number.

    Shape:   6, the company id (24 bits), the first 25 hexadecimal digits found in the serial, zeros to fill.
    Kernel:  drivers/target/target_core_spc.c, spc_gen_naa_6h_vendor_specific(). It skips what is no hexadecimal digit.
    """
    digits = "".join(_HEX_DIGIT.findall(serial))[:25].lower()
    return f"6{company_id:06x}{digits:0<25}"


def target_wwn_of(serial: str) -> str:
    """The name of the loopback target of a LUN: an NAA of format 5, LIO's company id, the serial's first nine digits.

    Those are the digits of ID_WWN. rtslib takes no format 6 here: it would turn "naa.6" into "naa.5" (Target.__init__()).
    """
    return f"naa.5001405{serial[:9]}"


@dataclass(frozen=True, slots=True)
class Witness:
    """What one source says: an identity, or None for silence. `detail` is where it says so, or why it says nothing."""

    source: Source
    naa: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class VerifiedIdentity:
    """An identity that every source agreed on. Only `verify` makes one."""

    object_name: str
    naa: str
    witnesses: tuple[Witness, ...]


def verify(object_name: str, witnesses: Sequence[Witness]) -> VerifiedIdentity:
    """The identity that all three sources agree on.

    Raises: IdentityMismatch, naming every witness with its words, where one is missing, silent or of another opinion.
    """
    asked = {witness.source for witness in witnesses}
    unasked = [Witness(source, None, "was not asked") for source in SOURCES if source not in asked]
    said = {witness.naa for witness in (*witnesses, *unasked)}
    if len(said) == 1 and (naa := said.pop()) is not None:
        return VerifiedIdentity(object_name, naa, tuple(witnesses))
    words = "; ".join(_words(witness) for witness in (*witnesses, *unasked))
    raise IdentityMismatch(f"{object_name} is not identified: {words}")


def _words(witness: Witness) -> str:
    return f"{witness.source} says {witness.naa or 'nothing'} ({witness.detail})"


def refuse_duplicates(naa_by_name: Mapping[str, str]) -> None:
    """Refuses two objects that answer to one identity. The caller says whom to compare.

    A foreign disk with several paths appears in Linux as several SCSI disks of one identity. That is its owner's business, so
    the other disks of the host are given here only where they claim an identity of ours.

    Raises: IdentityMismatch, naming all parties of every shared identity.
    """
    names_by_naa = defaultdict(list)
    for name, naa in naa_by_name.items():
        names_by_naa[naa].append(name)
    shared = [f"{naa} is claimed by {', '.join(names)}" for naa, names in names_by_naa.items() if len(names) > 1]
    if shared:
        raise IdentityMismatch(
            "; ".join(shared), remedy="remove all but one of them from this host; nothing was written"
        )


def udev_witness(properties: Mapping[str, str], detail: str) -> Witness:
    """What udev's database says about a SCSI disk.

    Shape:   ID_WWN_WITH_EXTENSION=0x<NAA> and ID_SERIAL=3<NAA>, written by scsi_id (60-persistent-storage.rules). ID_WWN is
             only the first half of a long NAA: company and nine digits, which two LUNs can share.
    """
    told = {
        key: match[1]
        for key, form in (("ID_WWN_WITH_EXTENSION", _UDEV_WWN), ("ID_SERIAL", _UDEV_SERIAL))
        if (match := form.fullmatch(properties.get(key, "")))
    }
    match sorted(set(told.values())):
        case []:
            return Witness("udev", None, f"{detail}: neither ID_WWN_WITH_EXTENSION nor ID_SERIAL holds an NAA")
        case [naa]:
            return Witness("udev", naa, f"{detail}: {', '.join(told)}")
    contradiction = ", ".join(f"{key} holds {naa}" for key, naa in told.items())
    return Witness("udev", None, f"{detail} contradicts itself: {contradiction}")
