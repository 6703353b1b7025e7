"""The gate: what opens it, and who is named when it stays shut."""

from uuid import UUID

import pytest

from blkrecov.errors import IdentityMismatch
from blkrecov.page83.identity import (
    Source,
    Witness,
    naa_of_serial,
    refuse_duplicates,
    serial_of,
    target_wwn_of,
    udev_witness,
    verify,
)

NAA = "60014050123456789abcdef012345678"
OTHER = "6001405fedcba9876543210fedcba987"


def witness(source: Source, naa: str | None = NAA) -> Witness:
    return Witness(source, naa, f"the {source}")


@pytest.mark.parametrize(
    ("serial", "naa"),
    [
        ("01234567-89ab-cdef-0123-456789abcdef", "60014050123456789abcdef012345678"),
        ("0123456789ABCDEF0123456789ABCDEF", "60014050123456789abcdef012345678"),
        ("12", "60014051200000000000000000000000"),
        ("blkrecov-12", "6001405bec1200000000000000000000"),
        ("", "60014050000000000000000000000000"),
    ],
)
def test_naa_of_serial_is_what_lio_makes_of_it(serial: str, naa: str) -> None:
    """Digits found anywhere count, the first 25 of them; the first row is from a real kernel."""
    assert naa_of_serial(serial) == naa


def test_naa_of_serial_takes_another_company() -> None:
    """From a real kernel with wwn/company_id set to 0x123456."""
    assert naa_of_serial("deadbeef" * 4, company_id=0x123456) == "6123456deadbeefdeadbeefdeadbeefd"


def test_serial_of_a_lun_is_its_uuid_in_plain_digits() -> None:
    """Nothing but hexadecimal digits, so that the first 25 are the UUID's."""
    assert serial_of(UUID("01234567-89ab-cdef-0123-456789abcdef")) == "0123456789abcdef0123456789abcdef"


def test_target_wwn_follows_from_the_serial() -> None:
    """A half-made export is found again by it."""
    assert target_wwn_of("0123456789abcdef0123456789abcdef") == "naa.5001405012345678"


def test_verify_gives_the_identity_that_all_three_agree_on() -> None:
    """The only way to a VerifiedIdentity."""
    identity = verify("LUN a", [witness("metadata"), witness("sysfs"), witness("udev")])
    assert (identity.object_name, identity.naa, len(identity.witnesses)) == ("LUN a", NAA, 3)


def test_verify_names_every_witness_with_its_words() -> None:
    """Who is wrong is for the operator to find."""
    with pytest.raises(IdentityMismatch) as caught:
        verify("LUN a", [witness("metadata"), witness("sysfs", OTHER), witness("udev")])
    assert caught.value.message == (
        f"LUN a is not identified: metadata says {NAA} (the metadata); sysfs says {OTHER} (the sysfs); "
        f"udev says {NAA} (the udev)"
    )


def test_verify_refuses_a_silent_witness() -> None:
    """A missing page is no agreement."""
    with pytest.raises(IdentityMismatch, match=r"sysfs says nothing \(the sysfs\)"):
        verify("LUN a", [witness("metadata"), witness("sysfs", None), witness("udev")])


def test_verify_refuses_when_all_are_silent() -> None:
    """Three times nothing is one opinion, and no identity."""
    with pytest.raises(IdentityMismatch):
        verify("LUN a", [witness("metadata", None), witness("sysfs", None), witness("udev", None)])


def test_verify_refuses_a_witness_that_was_not_asked() -> None:
    """Two of three are not the gate that operations rely on."""
    with pytest.raises(IdentityMismatch, match=r"udev says nothing \(was not asked\)"):
        verify("LUN a", [witness("metadata"), witness("sysfs")])


def test_refuse_duplicates_names_all_parties() -> None:
    """A foreign disk is a party as good as a LUN."""
    with pytest.raises(IdentityMismatch, match=f"{NAA} is claimed by LUN a, /dev/sdq"):
        refuse_duplicates({"LUN a": NAA, "LUN b": OTHER, "/dev/sdq": NAA})


def test_refuse_duplicates_lets_different_identities_be() -> None:
    """The usual case."""
    refuse_duplicates({"LUN a": NAA, "LUN b": OTHER})


def test_udev_witness_reads_both_properties() -> None:
    """As scsi_id writes them for a disk of LIO."""
    said = udev_witness({"ID_WWN_WITH_EXTENSION": f"0x{NAA}", "ID_SERIAL": f"3{NAA}"}, "sda")
    assert said == Witness("udev", NAA, "sda: ID_WWN_WITH_EXTENSION, ID_SERIAL")


def test_udev_witness_takes_no_half_of_an_identity() -> None:
    """ID_WWN is company and nine digits only; ID_SERIAL of an ATA disk is model and serial number."""
    said = udev_witness({"ID_WWN": "0x6001405012345678", "ID_SERIAL": "3WAREDISK_1234"}, "sda")
    assert said.naa is None


def test_udev_witness_that_contradicts_itself_is_silent() -> None:
    """Rules of a third party may have set one of the two."""
    said = udev_witness({"ID_WWN_WITH_EXTENSION": f"0x{NAA}", "ID_SERIAL": f"3{OTHER}"}, "sda")
    assert said.naa is None
    assert said.detail == f"sda contradicts itself: ID_WWN_WITH_EXTENSION holds {NAA}, ID_SERIAL holds {OTHER}"
