"""LUN information: what goes in of page 83h, there and back as JSON, and which LUN it speaks of."""

import json
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blkrecov.errors import Code, IdentityMismatch, InvalidArgument, ShadowNotFound
from blkrecov.page83.designator import Association, CodeSet, Designator, Kind, Page, parse_page
from blkrecov.page83.information import (
    NO_SIGNATURE,
    BusType,
    Hex,
    Interconnect,
    InterconnectAddressType,
    LunInformation,
    NotEligible,
    StorageDeviceIdDescriptor,
    StorageIdentifier,
    ascii_text,
    device_id_descriptor,
    eligible,
    find,
    from_json,
    serial_number,
    to_json,
)

GOLDEN = Path(__file__).parents[2] / "golden/page83-lio-loopback.txt"
ONE, TWO = UUID(int=1), UUID(int=2)
NAA = "60014050123456789abcdef012345678"
OTHER_NAA = "6001405fedcba9876543210fedcba987"


def identifier(text: str, kind: int = Kind.NAA, code_set: int = CodeSet.BINARY) -> StorageIdentifier:
    return StorageIdentifier(code_set=code_set, type=kind, identifier=Hex.fromhex(text))


def vendor_id(text: str) -> StorageIdentifier:
    return identifier(text.encode().hex(), Kind.T10_VENDOR_ID, CodeSet.ASCII)


def lun(*identifiers: StorageIdentifier) -> LunInformation:
    return LunInformation(
        device_type=0,
        device_type_modifier=0,
        command_queueing=True,
        bus_type=BusType.FILE_BACKED_VIRTUAL,
        vendor_id="blkrecov",
        product_id="data",
        product_revision="4.0",
        serial_number=None,
        disk_signature=NO_SIGNATURE,
        device_id_descriptor=StorageDeviceIdDescriptor(identifiers=identifiers),
        interconnects=(),
    )


def hexes() -> st.SearchStrategy[Hex]:
    return st.builds(Hex, st.binary(max_size=40))


def informations() -> st.SearchStrategy[LunInformation]:
    numbers = st.integers(0, 2**32 - 1)
    texts = st.none() | st.text()
    identifiers = st.builds(StorageIdentifier, code_set=numbers, type=numbers, identifier=hexes())
    interconnects = st.builds(Interconnect, address_type=numbers, port=hexes(), address=hexes())
    return st.builds(
        LunInformation,
        device_type=st.integers(0, 255),
        device_type_modifier=st.integers(0, 255),
        command_queueing=st.booleans(),
        bus_type=numbers,
        vendor_id=texts,
        product_id=texts,
        product_revision=texts,
        serial_number=texts,
        disk_signature=st.uuids(),
        device_id_descriptor=st.builds(
            StorageDeviceIdDescriptor, version=numbers, identifiers=st.lists(identifiers).map(tuple)
        ),
        interconnects=st.lists(interconnects).map(tuple),
    )


# What goes in.


def test_only_the_logical_unit_s_designators_go_in() -> None:
    """LIO's page has seven; those of the port and the target would be the LUN's, for nothing here says otherwise."""
    lines = GOLDEN.read_text().splitlines()
    page = parse_page(bytes.fromhex("".join(line for line in lines if not line.startswith("#"))))
    assert device_id_descriptor(page) == StorageDeviceIdDescriptor(
        version=1,
        identifiers=(
            identifier(NAA),
            vendor_id("blkrecovmylun:0123456789abcdef0123456789abcdef\0"),
            identifier("00000000", Kind.LOGICAL_UNIT_GROUP),
        ),
    )


def test_a_designator_of_an_unknown_type_goes_in_as_it_is() -> None:
    """A newer SPC may have defined it; a client passes it on."""
    said = Designator(code_set=9, association=Association.LOGICAL_UNIT, kind=0xD, identifier=b"\x01")
    assert device_id_descriptor(Page(0, (said,))).identifiers == (identifier("01", kind=0xD, code_set=9),)


def test_a_disk_without_the_page_has_no_identifiers() -> None:
    """No page is an answer."""
    assert device_id_descriptor(None).identifiers == ()


@pytest.mark.parametrize(
    ("page", "serial"),
    [
        ("0080 0005 3132333400", "1234"),  # LIO counts the zero at the end.
        ("0080 0006 202031322020", "12"),
        ("0080 0002 3132 ffff", "12"),
        ("0080 0003 31ff32", "1\ufffd2"),
        ("0080 0004 20202020", None),
        ("0083 0002 3132", None),
        ("0080", None),
        ("", None),
    ],
)
def test_serial_number_is_what_page_80h_holds(page: str, serial: str | None) -> None:
    """No LUN is found by it, so what is wrong with the page is no error."""
    assert serial_number(bytes.fromhex(page)) == serial


def test_text_of_inquiry_data_is_without_what_fills_it_up() -> None:
    """SPC fills with spaces, sysfs adds a line's end."""
    assert (ascii_text(b"LIO-ORG \n"), ascii_text(b" two words  "), ascii_text(b"        \n")) == (
        "LIO-ORG",
        "two words",
        None,
    )


# JSON.


def test_json_has_the_specification_s_fields() -> None:
    """Bytes are hexadecimal text, enumerations numbers, the signature a GUID; counts follow from what is there."""
    information = msgspec.structs.replace(
        lun(identifier(NAA)),
        disk_signature=UUID("12345678-0000-0000-0000-000000000000"),
        interconnects=(
            Interconnect(address_type=InterconnectAddressType.SCSI, port=Hex(b"\x00\x01"), address=Hex(b"\xff")),
        ),
    )
    assert json.loads(to_json(information)) == {
        "version": 1,
        "device_type": 0,
        "device_type_modifier": 0,
        "command_queueing": True,
        "bus_type": 15,
        "vendor_id": "blkrecov",
        "product_id": "data",
        "product_revision": "4.0",
        "serial_number": None,
        "disk_signature": "12345678-0000-0000-0000-000000000000",
        "device_id_descriptor": {"version": 1, "identifiers": [{"code_set": 1, "type": 3, "identifier": NAA}]},
        "interconnects": [{"address_type": 5, "port": "0001", "address": "ff"}],
    }


@given(informations())
def test_every_information_survives_json(information: LunInformation) -> None:
    """Numbers of no enumeration among them: they come back as they were."""
    assert from_json(to_json(information)) == information


def test_an_unknown_number_is_no_neighbour() -> None:
    """15 was unknown to those who knew 14 as the last."""
    assert from_json(to_json(msgspec.structs.replace(lun(), bus_type=4711))).bus_type == 4711


@pytest.mark.parametrize(
    ("was", "becomes", "where"),
    [
        (f'"{NAA}"', '"60zz"', r"\$\.device_id_descriptor\.identifiers\[0\]\.identifier"),
        (f'"{NAA}"', "[1]", r"\$\.device_id_descriptor\.identifiers\[0\]\.identifier"),
        ('"type":3', '"type":-3', r"\$\.device_id_descriptor\.identifiers\[0\]\.type"),
        ('"type":3', '"typ":3', r"unknown field `typ`.*\$\.device_id_descriptor\.identifiers\[0\]"),
        ('"device_type":0', '"device_type":256', r"\$\.device_type"),
        ('"bus_type":15,', "", "missing required field `bus_type`"),
        ('"version":1,"device_type"', '"version":2,"device_type"', r"\$\.version"),
        ('"vendor_id":', '"vendor_id"', r"byte \d+"),
        ("00000000-0000-0000-0000-000000000000", "none", r"\$\.disk_signature"),
        ("blkrecov", "\ud800", "surrogates"),
    ],
)
def test_wrong_json_is_told_with_its_place(was: str, becomes: str, where: str) -> None:
    """The information comes from people's files."""
    right = to_json(lun(identifier(NAA))).decode()
    assert right.count(was) == 1
    with pytest.raises(InvalidArgument, match=f"this is no LUN information: .*{where}"):
        from_json(right.replace(was, becomes))


@given(st.binary())
def test_any_bytes_are_refused(text: bytes) -> None:
    """Nothing short of the whole is taken for information."""
    with pytest.raises(InvalidArgument):
        from_json(text)


# Which LUN.


def test_only_types_1_2_3_and_8_identify_a_lun() -> None:
    """Vendor specific (0), MD5 (7) and UUID (Ah) identifiers do not count."""
    assert [kind for kind in range(17) if eligible(identifier("01", kind))] == [1, 2, 3, 8]


def test_an_empty_identifier_identifies_nothing() -> None:
    """Two broken disks would be one by it."""
    assert not eligible(identifier(""))


def test_find_gives_the_lun_that_shares_an_identifier() -> None:
    """One is enough, and nothing but identifiers is compared."""
    found = msgspec.structs.replace(lun(identifier(NAA), vendor_id("blkrecovx")), serial_number="1", vendor_id=None)
    assert find(lun(identifier(NAA)), {ONE: lun(identifier(OTHER_NAA)), TWO: found}) == TWO


@pytest.mark.parametrize("same", [identifier(NAA, Kind.UUID), identifier(NAA, Kind.MD5_LOGICAL_UNIT)])
def test_find_takes_no_identifier_that_is_not_eligible(same: StorageIdentifier) -> None:
    """Both have it, and it may be any two disks'."""
    with pytest.raises(ShadowNotFound, match=f"no LUN answers to {OTHER_NAA} .type 3, code set 1."):
        find(lun(identifier(OTHER_NAA), same), {ONE: lun(identifier(NAA), same)})


@pytest.mark.parametrize("other", [identifier(NAA, Kind.EUI64), identifier(NAA, code_set=CodeSet.ASCII)])
def test_the_same_bytes_of_another_type_or_code_set_are_another_identifier(other: StorageIdentifier) -> None:
    """Each type numbers for itself."""
    with pytest.raises(ShadowNotFound):
        find(lun(identifier(NAA)), {ONE: lun(other)})


@pytest.mark.parametrize("identifiers", [(), (identifier(NAA, Kind.UUID),), (identifier(""),)])
def test_find_refuses_information_that_identifies_nothing(identifiers: tuple[StorageIdentifier, ...]) -> None:
    """Told even where there is a LUN just like it: no other array would answer differently."""
    with pytest.raises(NotEligible, match="cannot be found by its identifiers, which are: ") as caught:
        find(lun(*identifiers), {ONE: lun(*identifiers)})
    assert caught.value.code is Code.E_INVALIDARG


def test_find_among_none_finds_none() -> None:
    """An empty array is not an error of the information."""
    with pytest.raises(ShadowNotFound):
        find(lun(identifier(NAA)), {})


def test_find_names_two_luns_that_answer() -> None:
    """By one identifier or by one each; it is not for us to choose."""
    wanted = lun(identifier(NAA), vendor_id("blkrecovx"))
    with pytest.raises(IdentityMismatch, match=f"LUNs {ONE}, {TWO} all answer to"):
        find(wanted, {ONE: lun(identifier(NAA)), TWO: lun(vendor_id("blkrecovx"))})


def test_find_refuses_a_lun_that_contradicts_another_identifier() -> None:
    """The NAA is the one that is wanted, the vendor's word is not."""
    wanted = lun(identifier(NAA), vendor_id("blkrecovx"))
    with pytest.raises(IdentityMismatch, match=rf"LUN {ONE} answers to {NAA} .*, but says .* where .* is wanted"):
        find(wanted, {ONE: lun(identifier(NAA), vendor_id("blkrecovy"))})


def test_find_refuses_a_second_identifier_of_the_same_type_that_differs() -> None:
    """The long NAA is shared; the short ones are of two disks."""
    wanted = lun(identifier(NAA), identifier("5001405012345678"))
    found = lun(identifier(NAA), identifier("5001405fedcba987"))
    with pytest.raises(IdentityMismatch, match=r"says 5001405fedcba987 .* where 5001405012345678 .* is wanted"):
        find(wanted, {ONE: found})


@pytest.mark.parametrize("more", [identifier("5001405012345678"), vendor_id("blkrecovx")])
def test_an_identifier_that_only_one_of_the_two_gives_is_no_contradiction(more: StorageIdentifier) -> None:
    """A newer kernel may say more of the same disk."""
    assert find(lun(identifier(NAA)), {ONE: lun(identifier(NAA), more)}) == ONE
    assert find(lun(identifier(NAA), more), {ONE: lun(identifier(NAA))}) == ONE


def test_identifiers_of_different_type_or_code_set_contradict_nothing() -> None:
    """Each of the two says something more, but not of the same kind."""
    wanted = lun(identifier(NAA), vendor_id("blkrecovx"))
    for more in (
        identifier("01", Kind.T10_VENDOR_ID, CodeSet.UTF8),
        identifier("01", Kind.SCSI_NAME_STRING, CodeSet.ASCII),
    ):
        assert find(wanted, {ONE: lun(identifier(NAA), more)}) == ONE


def test_the_order_of_identifiers_means_nothing() -> None:
    """A kernel may list them in another one."""
    both = (identifier(NAA), vendor_id("blkrecovx"))
    assert find(lun(*both), {ONE: lun(*reversed(both))}) == ONE
