"""VPD page 83h: the device identification page, bytes to values and back.

What it knows: SPC's layout of the page and of the NAA identifiers in it. What it refuses to know: who answered the page, and
whether to believe it (identity.py). What always holds:

- Numbers that SPC reserves, or that a newer SPC has defined, stay the numbers they are. None is taken for a neighbour.
- A page that contradicts its own lengths is MalformedPage. There is no partial reading: half an identity is none.
- `parse_page(render_page(page)) == page`. The other way round loses only what SPC says means nothing: reserved bits, and the
  protocol identifier of a descriptor whose PIV bit is clear.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from blkrecov.errors import InvalidDisk

PAGE_CODE: Final = 0x83
_HEADER: Final = 4  # Of the page and of each descriptor alike.


class MalformedPage(InvalidDisk):
    """Bytes that are no device identification page, or an identifier that is not what its type says."""

    default_remedy = "look at the device with: sg_vpd --page=di --hex DEVICE"

    def __init__(self, why: str, page: bytes) -> None:
        super().__init__(f"malformed VPD page 83h: {why}")
        self.page = page


class CodeSet(IntEnum):
    BINARY = 1
    ASCII = 2
    UTF8 = 3


class Association(IntEnum):
    LOGICAL_UNIT = 0
    TARGET_PORT = 1
    TARGET_DEVICE = 2
    RESERVED = 3


class Kind(IntEnum):
    """The designator type. Bh to Fh are reserved."""

    VENDOR_SPECIFIC = 0x0
    T10_VENDOR_ID = 0x1
    EUI64 = 0x2
    NAA = 0x3
    RELATIVE_TARGET_PORT = 0x4
    TARGET_PORT_GROUP = 0x5
    LOGICAL_UNIT_GROUP = 0x6
    MD5_LOGICAL_UNIT = 0x7
    SCSI_NAME_STRING = 0x8
    PROTOCOL_SPECIFIC_PORT = 0x9  # SPC-4
    UUID = 0xA  # SPC-5


_CODE_SETS: Final[Mapping[int, CodeSet]] = {code_set.value: code_set for code_set in CodeSet}
_KINDS: Final[Mapping[int, Kind]] = {kind.value: kind for kind in Kind}

# The types that can tell two LUNs apart: the rule that shadow copy providers keep on Windows. It leaves out MD5, UUID and
# vendor specific designators.
_IDENTIFYING: Final = frozenset({Kind.T10_VENDOR_ID, Kind.EUI64, Kind.NAA, Kind.SCSI_NAME_STRING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Designator:
    """One designation descriptor. `protocol` is the protocol identifier where the PIV bit says that it is one."""

    code_set: CodeSet | int
    association: Association
    kind: Kind | int
    protocol: int | None = None
    identifier: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """`peripheral` is the page's first byte: qualifier in bits 7 to 5, device type in bits 4 to 0 (0 is a disk)."""

    peripheral: int
    designators: tuple[Designator, ...]


def parse_page(page: bytes) -> Page:
    """The values of a device identification page.

    Shape:   peripheral, 83h, two bytes of length, descriptors. Bytes after that length are the padding of an INQUIRY's
             allocation length, and are ignored.
    Raises:  MalformedPage, holding the bytes.
    Kernel:  drivers/scsi/scsi.c, scsi_get_vpd_buf(): what sysfs shows as vpd_pg83 is the device's answer, untouched.
    """
    if len(page) < _HEADER:
        raise MalformedPage(f"{len(page)} bytes are too few for a header", page)
    if page[1] != PAGE_CODE:
        raise MalformedPage(f"its page code is {page[1]:02X}h", page)
    end = _HEADER + int.from_bytes(page[2:4], "big")
    if end > len(page):
        raise MalformedPage(f"it says {end} bytes and has {len(page)}", page)
    return Page(page[0], tuple(_descriptors(page, end)))


def _descriptors(page: bytes, end: int) -> Iterator[Designator]:
    at = _HEADER
    while at < end:
        start = at + _HEADER
        if start > end:
            raise MalformedPage(f"{end - at} bytes at {at} are too few for a descriptor", page)
        stop = start + page[at + 3]
        if stop > end:
            raise MalformedPage(f"the descriptor at {at} reaches to {stop}, past the end at {end}", page)
        yield Designator(
            code_set=_CODE_SETS.get(page[at] & 0xF, page[at] & 0xF),
            association=Association(page[at + 1] >> 4 & 0b11),
            kind=_KINDS.get(page[at + 1] & 0xF, page[at + 1] & 0xF),
            protocol=page[at] >> 4 if page[at + 1] & 0x80 else None,
            identifier=page[start:stop],
        )
        at = stop


def render_page(page: Page) -> bytes:
    """The bytes of a device identification page."""
    body = b"".join(_render(designator) for designator in page.designators)
    return bytes((page.peripheral, PAGE_CODE)) + len(body).to_bytes(2, "big") + body


def _render(designator: Designator) -> bytes:
    has_protocol = designator.protocol is not None
    head = (
        (designator.protocol or 0) << 4 | designator.code_set,
        has_protocol << 7 | designator.association << 4 | designator.kind,
        0,
        len(designator.identifier),
    )
    return bytes(head) + designator.identifier


def eligible(designator: Designator) -> bool:
    """Whether it can identify a LUN: it belongs to the logical unit itself and is of type 1, 2, 3 or 8."""
    return designator.association == Association.LOGICAL_UNIT and designator.kind in _IDENTIFYING


# Fields of an NAA identifier after its first four bits, which hold the format: name and width in bits, high bits first.
NAA_LAYOUTS: Final[Mapping[int, tuple[tuple[str, int], ...]]] = {
    2: (("vendor_a", 12), ("oui", 24), ("vendor_b", 24)),  # IEEE extended
    3: (("local", 60),),  # Locally assigned
    5: (("oui", 24), ("vendor", 36)),  # IEEE registered
    6: (("oui", 24), ("vendor", 36), ("extension", 64)),  # IEEE registered extended
}


@dataclass(frozen=True, slots=True)
class Naa:
    """An NAA identifier of one of the formats above. `Naa.parse` makes it, so its length is its format's."""

    identifier: bytes

    @classmethod
    def parse(cls, identifier: bytes) -> "Naa":
        """Raises: MalformedPage for a format that SPC does not define, and for a length that is not the format's."""
        layout = NAA_LAYOUTS.get(identifier[0] >> 4) if identifier else None
        if layout is None:
            raise MalformedPage(f"NAA identifier {identifier.hex()!r} is of no known format", identifier)
        length = (4 + sum(width for _, width in layout)) // 8
        if len(identifier) != length:
            raise MalformedPage(
                f"NAA identifier {identifier.hex()!r} has {len(identifier)} bytes, not {length}", identifier
            )
        return cls(identifier)

    @property
    def format(self) -> int:
        return self.identifier[0] >> 4

    @property
    def text(self) -> str:
        """Lower case hexadecimal: 16 digits, or 32 for format 6."""
        return self.identifier.hex()

    @property
    def fields(self) -> dict[str, int]:
        rest = int.from_bytes(self.identifier, "big")
        fields = {}
        for name, width in reversed(NAA_LAYOUTS[self.format]):
            fields[name] = rest & (1 << width) - 1
            rest >>= width
        return dict(reversed(fields.items()))


def lun_naa(page: Page) -> Naa | None:
    """The NAA identifier of the logical unit, or None where the page has none.

    A device may give several. The longest is taken, as the kernel takes it for `wwid` (drivers/scsi/scsi_lib.c,
    scsi_vpd_lun_id()) and udev's scsi_id for ID_SERIAL, whose words ours are compared with.

    Raises: MalformedPage for an identifier that is no NAA.
    """
    found = [
        Naa.parse(designator.identifier)
        for designator in page.designators
        if designator.kind == Kind.NAA and eligible(designator)
    ]
    return max(found, key=lambda naa: len(naa.identifier), default=None)
