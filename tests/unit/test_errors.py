"""The exception tree and its codes."""

import pytest

from blkrecov import errors
from blkrecov.errors import BlkrecovError, Code, Family

CLASSES = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, BlkrecovError)]


@pytest.mark.parametrize(
    ("code", "family", "text"),
    [
        (Code.S_OK, Family.COMMON, "0x00000000"),
        (Code.E_INVALIDARG, Family.COMMON, "0x80070057"),
        (Code.VDS_E_NOT_SUPPORTED, Family.VDS, "0x80042400"),
        (Code.VDS_E_ANOTHER_CALL_IN_PROGRESS, Family.VDS, "0x80042404"),
        (Code.VDS_E_OBJECT_NOT_FOUND, Family.VDS, "0x80042405"),
        (Code.VDS_E_OPERATION_PENDING, Family.VDS, "0x80042409"),
        (Code.VDS_E_OBJECT_DELETED, Family.VDS, "0x8004240B"),
        (Code.VDS_E_CANCEL_TOO_LATE, Family.VDS, "0x8004240C"),
        (Code.VDS_E_OPERATION_CANCELED, Family.VDS, "0x8004240D"),
        (Code.VDS_E_INVALID_OPERATION, Family.VDS, "0x80042415"),
        (Code.VDS_E_PROVIDER_CACHE_CORRUPT, Family.VDS, "0x8004241F"),
        (Code.VDS_E_OBJECT_STATUS_FAILED, Family.VDS, "0x80042431"),
        (Code.VDS_E_PROVIDER_FAILURE, Family.VDS, "0x80042442"),
        (Code.VSS_E_BAD_STATE, Family.VSS, "0x80042301"),
        (Code.VSS_E_PROVIDER_VETO, Family.VSS, "0x80042306"),
        (Code.VSS_E_OBJECT_NOT_FOUND, Family.VSS, "0x80042308"),
        (Code.VSS_S_ASYNC_PENDING, Family.VSS, "0x00042309"),
        (Code.VSS_S_ASYNC_FINISHED, Family.VSS, "0x0004230A"),
        (Code.VSS_S_ASYNC_CANCELLED, Family.VSS, "0x0004230B"),
        (Code.VSS_E_VOLUME_NOT_SUPPORTED, Family.VSS, "0x8004230C"),
        (Code.VSS_E_INSUFFICIENT_STORAGE, Family.VSS, "0x8004231F"),
        (Code.VSS_E_CANNOT_REVERT_DISKID, Family.VSS, "0x800423FE"),
    ],
)
def test_a_code_is_its_specification_s_number(code: Code, family: Family, text: str) -> None:
    """Programs on the other side of D-Bus compare these numbers with their own headers'."""
    assert (code.family, code.hresult_text) == (family, text)


@pytest.mark.parametrize("code", Code)
def test_a_code_has_its_own_number(code: Code) -> None:
    """unique() compares whole pairs; within a family a number has one name."""
    same = [other for other in Code if other.hresult == code.hresult and other.family is code.family]
    assert same == [code]


@pytest.mark.parametrize("code", Code)
def test_a_code_s_name_and_its_severity_bit_agree(code: Code) -> None:
    """Callers test the bit alone. IVssAsync's three states are successes, the cancelled one too (vss.h)."""
    assert bool(code.hresult & 0x80000000) == ("E_" in code.name)
    assert ("E_" in code.name) != (code is Code.S_OK or code.name.startswith("VSS_S_"))


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_s_code_is_a_failure(kind: type[BlkrecovError]) -> None:
    """But for a restore that was cancelled, which its specification calls a success."""
    assert bool(kind.code.hresult & 0x80000000) == (kind is not errors.RestoreCancelled)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_says_what_to_do(kind: type[BlkrecovError]) -> None:
    """The remedy is shown on stderr after the message; an empty one would be a bare label."""
    error = kind("it went wrong")
    assert (str(error), error.message) == ("it went wrong", "it went wrong")
    assert error.remedy == kind.default_remedy
    assert error.remedy


def test_a_remedy_of_its_own_goes_before_the_class_s() -> None:
    """Who raises knows more than the class does."""
    assert errors.ObjectNotFound("no LUN 'v'", remedy="create it").remedy == "create it"


def test_only_the_root_of_the_tree_is_unexpected() -> None:
    """A class without a code of its own would tell programs nothing."""
    assert [kind for kind in CLASSES if kind.code is Code.E_UNEXPECTED] == [BlkrecovError]
    assert [kind for kind in CLASSES if kind.code is Code.S_OK] == []
