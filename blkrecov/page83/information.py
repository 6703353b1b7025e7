"""What is said of a LUN to find it again: VDS_LUN_INFORMATION as a value and as JSON, and the search for the LUN it speaks of.

What it knows: the fields of vdslun.h, under their names without prefixes, and which identifiers tell two LUNs apart. What it
refuses to know: which LUNs there are, and what their disks say (lun_information.py asks a disk). What always holds:

- A LUN is found by its page 83h alone. Names, serial number, disk signature and interconnects may change, and identify nothing.
- It is found or refused, never guessed: two LUNs that answer are none, and one that answers and contradicts itself is none.
- Numbers that no enumeration has stay the numbers they are, there and back.
- VDS_STORAGE_IDENTIFIER has no association. So only what page 83h says of the logical unit itself becomes one: a port's NAA would
  pass for the LUN's.

The numbers of code sets and types are SPC's own, so `CodeSet` and `Kind` are designator.py's.
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar
from uuid import UUID

import msgspec

from blkrecov.errors import IdentityMismatch, InvalidArgument, ShadowNotFound
from blkrecov.page83 import designator
from blkrecov.page83.designator import Association, Designator, Page

T = TypeVar("T")

NO_SIGNATURE: Final = UUID(int=0)
"""A disk that has no signature yet, or whose signature could not be read."""

_SERIAL_CODE: Final = 0x80
_HEADER: Final = 4

_U8: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]
_U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]


class NotEligible(InvalidArgument):
    """Information that can identify no LUN, whatever LUNs there are."""

    default_remedy = "give the information of a LUN whose page 83h has an identifier of its own of type 1, 2, 3 or 8"


class BusType(IntEnum):
    """VDS_STORAGE_BUS_TYPE. 14 is also its Max, from before there was a 15."""

    UNKNOWN = 0
    SCSI = 1
    ATAPI = 2
    ATA = 3
    IEEE_1394 = 4
    SSA = 5
    FIBRE = 6
    USB = 7
    RAID = 8
    ISCSI = 9
    SAS = 10
    SATA = 11
    SD = 12
    MMC = 13
    VIRTUAL = 14
    FILE_BACKED_VIRTUAL = 15
    SPACES = 16
    NVME = 17
    SCM = 18
    UFS = 19
    MAX_RESERVED = 0x7F


class InterconnectAddressType(IntEnum):
    """VDS_INTERCONNECT_ADDRESS_TYPE"""

    UNKNOWN = 0
    FCFS = 1
    FCPH = 2
    FCPH3 = 3
    MAC = 4
    SCSI = 5


class Hex(bytes):
    """Bytes that are hexadecimal text in JSON."""


class StorageIdentifier(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """VDS_STORAGE_IDENTIFIER, always the logical unit's own. `code_set` is a CodeSet and `type` a Kind, where they are known."""

    code_set: _U32
    type: _U32
    identifier: Hex

    def __str__(self) -> str:
        return f"{self.identifier.hex()} (type {self.type}, code set {self.code_set})"


class StorageDeviceIdDescriptor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """VDS_STORAGE_DEVICE_ID_DESCRIPTOR. What its versions are is not specified, so none is refused."""

    version: _U32 = 1
    identifiers: tuple[StorageIdentifier, ...]


class Interconnect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """VDS_INTERCONNECT. `address_type` is an InterconnectAddressType, where it is known."""

    address_type: _U32
    port: Hex
    address: Hex


class LunInformation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """VDS_LUN_INFORMATION. `bus_type` is a BusType, where it is known; a text that the disk does not give is None.

    `disk_signature` is a GPT's disk GUID, or an MBR's signature as the first 32 bits with zeros behind.
    """

    version: Literal[1] = 1
    device_type: _U8
    device_type_modifier: _U8
    command_queueing: bool
    bus_type: _U32
    vendor_id: str | None
    product_id: str | None
    product_revision: str | None
    serial_number: str | None
    disk_signature: UUID
    device_id_descriptor: StorageDeviceIdDescriptor
    interconnects: tuple[Interconnect, ...]


def to_json(information: LunInformation) -> bytes:
    return msgspec.json.encode(information, enc_hook=_hex_text)


class Pairs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ResyncLuns' two arrays: element i of the one goes onto element i of the other."""

    sources: tuple[LunInformation, ...]
    targets: tuple[LunInformation, ...]


def from_json(text: bytes | str) -> LunInformation:
    """Raises: InvalidArgument, which says where, for what is no JSON, or no LUN information of version 1."""
    return _decoded(text, LunInformation)


def pairs_from_json(text: bytes | str) -> Pairs:
    """Shape: {"sources": [...], "targets": [...]}. Raises: as from_json(); also for arrays of different lengths."""
    pairs = _decoded(text, Pairs)
    if len(pairs.sources) != len(pairs.targets):
        raise InvalidArgument(
            f"{len(pairs.sources)} sources and {len(pairs.targets)} targets are no pairs",
            remedy="give as many of the one as of the other",
        )
    return pairs


def _decoded(text: bytes | str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind, dec_hook=_from_hex_text)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidArgument(
            f"this is no LUN information: {error}", remedy="give the JSON as it was written when it was saved"
        ) from error


def _hex_text(value: Any) -> str:
    assert isinstance(value, Hex), f"{type(value)} has no form in JSON"
    return value.hex()


def _from_hex_text(type_: type[Hex], value: Any) -> Hex:
    return type_.fromhex(value)


def device_id_descriptor(page: Page | None) -> StorageDeviceIdDescriptor:
    """What page 83h says of the logical unit itself, in the page's order. A disk without the page has no identifiers."""
    return StorageDeviceIdDescriptor(
        identifiers=tuple(
            StorageIdentifier(code_set=said.code_set, type=said.kind, identifier=Hex(said.identifier))
            for said in (page.designators if page else ())
            if said.association is Association.LOGICAL_UNIT
        )
    )


def serial_number(page: bytes) -> str | None:
    """The unit serial number of a disk, or None where the page holds none. No LUN is found by it, so a bad page is no error.

    Shape:   peripheral, 80h, two bytes of length, ASCII. LIO counts a zero byte at the end
             (drivers/target/target_core_spc.c, spc_emulate_evpd_80()); others fill up with spaces.
    """
    if len(page) < _HEADER or page[1] != _SERIAL_CODE:
        return None
    return ascii_text(page[_HEADER : _HEADER + int.from_bytes(page[2:4], "big")])


def ascii_text(field: bytes) -> str | None:
    """A text of INQUIRY data, without what fills it up; None for an empty one. Bytes that are not ASCII show as U+FFFD."""
    return field.decode("ascii", "replace").strip(" \t\n\0") or None


def eligible(identifier: StorageIdentifier) -> bool:
    """Whether it can identify a LUN: it is of type 1, 2, 3 or 8, and not empty."""
    return bool(identifier.identifier) and designator.eligible(
        Designator(
            code_set=identifier.code_set,
            association=Association.LOGICAL_UNIT,
            kind=identifier.type,
            identifier=identifier.identifier,
        )
    )


def find(wanted: LunInformation, candidates: Mapping[UUID, LunInformation]) -> UUID:
    """The one candidate that shares an eligible identifier with the LUN that is wanted.

    Raises: NotEligible where the wanted LUN has no such identifier; ShadowNotFound where no candidate shares one;
            IdentityMismatch, naming the candidates, where several do, or where the one that does has an identifier that differs
            from the wanted one of the same type and code set. What only one of the two gives is silence, no contradiction.
    """
    sought = _eligible(wanted)
    if not sought:
        said = _list(wanted.device_id_descriptor.identifiers) or "none"
        raise NotEligible(f"the LUN cannot be found by its identifiers, which are: {said}")
    answering = [lun for lun, candidate in candidates.items() if sought & _eligible(candidate)]
    if not answering:
        raise ShadowNotFound(
            f"no LUN answers to {_list(sought)}",
            remedy="bring up the array that the LUN belongs to; the LUNs that are there: blkrecov lun list",
        )
    if len(answering) > 1:
        raise IdentityMismatch(
            f"LUNs {', '.join(map(str, answering))} all answer to {_list(sought)}",
            remedy="remove all but one of them from this host; nothing was written",
        )
    (lun,) = answering
    _refuse_contradiction(lun, sought, _eligible(candidates[lun]))
    return lun


def _refuse_contradiction(lun: UUID, sought: frozenset[StorageIdentifier], found: frozenset[StorageIdentifier]) -> None:
    for missing in sought - found:
        for other in found - sought:
            if (missing.code_set, missing.type) == (other.code_set, other.type):
                raise IdentityMismatch(
                    f"LUN {lun} answers to {_list(sought & found)}, but says {other} where {missing} is wanted"
                )


def _eligible(information: LunInformation) -> frozenset[StorageIdentifier]:
    return frozenset(filter(eligible, information.device_id_descriptor.identifiers))


def _list(identifiers: Iterable[StorageIdentifier]) -> str:
    return ", ".join(sorted(map(str, identifiers)))
