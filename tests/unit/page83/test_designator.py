"""Page 83h bytes: what a real kernel gives, what a broken device may give, and every page there and back."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.errors import Code
from blkrecov.page83.designator import (
    Association,
    CodeSet,
    Designator,
    Kind,
    MalformedPage,
    Naa,
    Page,
    eligible,
    lun_naa,
    parse_page,
    render_page,
)

GOLDEN = Path(__file__).parents[2] / "golden/page83-lio-loopback.txt"
NAA = bytes.fromhex("60014050123456789abcdef012345678")


def golden_page() -> bytes:
    lines = GOLDEN.read_text().splitlines()
    return bytes.fromhex("".join(line for line in lines if not line.startswith("#")))


def of_lun(kind: Kind | int, identifier: bytes = NAA) -> Designator:
    return Designator(
        code_set=CodeSet.BINARY, association=Association.LOGICAL_UNIT, kind=kind, protocol=None, identifier=identifier
    )


def designators() -> st.SearchStrategy[Designator]:
    return st.builds(
        Designator,
        code_set=st.integers(0, 15),
        association=st.sampled_from(Association),
        kind=st.integers(0, 15),
        protocol=st.none() | st.integers(0, 15),
        identifier=st.binary(max_size=255),
    )


def test_parse_reads_the_page_that_lio_gives() -> None:
    """Seven designators in LIO's order (kernel 6.1); the identity is the first, the rest is about the path to it."""
    designators = parse_page(golden_page()).designators
    assert [(d.kind, d.association, d.code_set, d.protocol) for d in designators] == [
        (Kind.NAA, Association.LOGICAL_UNIT, CodeSet.BINARY, None),
        (Kind.T10_VENDOR_ID, Association.LOGICAL_UNIT, CodeSet.ASCII, None),
        (Kind.RELATIVE_TARGET_PORT, Association.TARGET_PORT, CodeSet.BINARY, 6),
        (Kind.TARGET_PORT_GROUP, Association.TARGET_PORT, CodeSet.BINARY, 6),
        (Kind.LOGICAL_UNIT_GROUP, Association.LOGICAL_UNIT, CodeSet.BINARY, None),
        (Kind.SCSI_NAME_STRING, Association.TARGET_PORT, CodeSet.UTF8, 6),
        (Kind.SCSI_NAME_STRING, Association.TARGET_DEVICE, CodeSet.UTF8, 6),
    ]
    assert designators[1].identifier == b"blkrecovmylun:0123456789abcdef0123456789abcdef\0"


def test_lun_naa_is_the_first_designator_of_lios_page() -> None:
    """sg_vpd and udev show the same 32 digits."""
    naa = lun_naa(parse_page(golden_page()))
    assert naa is not None
    assert naa.text == "60014050123456789abcdef012345678"


def test_render_gives_lios_page_back() -> None:
    """LIO sets no reserved bit, so nothing is lost."""
    assert render_page(parse_page(golden_page())) == golden_page()


@given(st.integers(0, 255), st.lists(designators(), max_size=20))
def test_every_page_survives_rendering_and_parsing(peripheral: int, some: list[Designator]) -> None:
    """Reserved numbers are values like others: kept, and equal to what they were."""
    page = Page(peripheral, tuple(some))
    assert parse_page(render_page(page)) == page


@given(st.binary(max_size=64))
def test_any_bytes_are_a_page_or_malformed(page: bytes) -> None:
    """A device's answer never ends us."""
    with suppress(MalformedPage):
        assert isinstance(parse_page(page), Page)


def test_reserved_numbers_are_kept() -> None:
    """Clients must tolerate types and code sets that they do not know."""
    (designator,) = parse_page(bytes.fromhex("00 83 00 05 0f 3d 00 01 aa")).designators
    assert (designator.code_set, designator.association, designator.kind) == (15, Association.RESERVED, 13)


def test_protocol_means_nothing_without_piv() -> None:
    """SPC: the protocol identifier is one only where the PIV bit is set."""
    (designator,) = parse_page(bytes.fromhex("00 83 00 04 61 03 00 00")).designators
    assert designator.protocol is None


@pytest.mark.parametrize(
    ("page", "why"),
    [
        ("00 83 00", "too few for a header"),
        ("00 80 00 00", "page code is 80h"),
        ("00 83 00 05 01 03 00 00", "says 9 bytes and has 8"),
        ("00 83 00 03 01 03 00", "too few for a descriptor"),
        ("00 83 00 05 01 03 00 02 aa", "past the end at 9"),
    ],
)
def test_a_page_that_contradicts_itself_is_malformed(page: str, why: str) -> None:
    """Half an identity is none."""
    with pytest.raises(MalformedPage, match=why) as caught:
        parse_page(bytes.fromhex(page))
    assert caught.value.code is Code.VDS_E_INVALID_DISK


def test_bytes_after_the_page_are_ignored() -> None:
    """INQUIRY fills up to the allocation length."""
    assert parse_page(bytes.fromhex("00 83 00 00 ff ff")) == Page(0, ())


def test_only_types_1_2_3_and_8_identify_a_lun() -> None:
    """The rule for shadow copy LUNs; MD5 (7) and UUID (Ah) are left out by it."""
    assert [kind for kind in range(16) if eligible(of_lun(kind))] == [1, 2, 3, 8]


def test_a_port_designator_never_identifies_a_lun() -> None:
    """The port's NAA is the same for all LUNs behind it."""
    port = Designator(code_set=CodeSet.BINARY, association=Association.TARGET_PORT, kind=Kind.NAA, identifier=NAA)
    assert not eligible(port)


@pytest.mark.parametrize(
    ("identifier", "fields"),
    [
        ("2123456789abcdef", {"vendor_a": 0x123, "oui": 0x456789, "vendor_b": 0xABCDEF}),
        ("3123456789abcdef", {"local": 0x123456789ABCDEF}),
        ("5001405123456789", {"oui": 0x001405, "vendor": 0x123456789}),
        (
            "60014050123456789abcdef012345678",
            {"oui": 0x001405, "vendor": 0x012345678, "extension": 0x9ABCDEF012345678},
        ),
    ],
)
def test_naa_has_the_fields_of_its_format(identifier: str, fields: dict[str, int]) -> None:
    """SPC's layouts, high bits first."""
    naa = Naa.parse(bytes.fromhex(identifier))
    assert (naa.format, naa.text, naa.fields) == (int(identifier[0]), identifier, fields)


@pytest.mark.parametrize(
    "identifier", ["", "1123456789abcdef", "a123456789abcdef", "6001405012345678", "50014051234567"]
)
def test_naa_of_unknown_format_or_wrong_length_is_malformed(identifier: str) -> None:
    """A format 6 identifier of eight bytes would be the first half of an identity."""
    with pytest.raises(MalformedPage):
        Naa.parse(bytes.fromhex(identifier))


def test_lun_naa_prefers_the_longest() -> None:
    """An array may give an eight byte NAA first; kernel and udev name the disk by the long one."""
    page = Page(0, (of_lun(Kind.NAA, bytes.fromhex("5001405123456789")), of_lun(Kind.NAA)))
    naa = lun_naa(page)
    assert naa is not None
    assert naa.identifier == NAA


def test_lun_naa_of_a_page_without_one_is_none() -> None:
    """A disk with nothing but a T10 vendor identification has no NAA."""
    assert lun_naa(Page(0, (of_lun(Kind.T10_VENDOR_ID, b"VENDOR  x"),))) is None
