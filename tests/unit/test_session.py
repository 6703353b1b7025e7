"""The codes that leave a restore session: those of IVssHardwareSnapshotProviderEx::ResyncLuns and of what VSS asks before it."""

import pytest

from blkrecov import errors
from blkrecov.errors import BlkrecovError, Code, InvalidArgument, ProviderVeto
from blkrecov.page83.information import NotEligible
from blkrecov.session import in_provider_words

CLASSES = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, BlkrecovError)]
# Other failures of a provider VSS makes VSS_E_UNEXPECTED_PROVIDER_ERROR of.
ALLOWED = {
    Code.E_INVALIDARG,
    Code.E_ACCESSDENIED,
    Code.E_OUTOFMEMORY,
    Code.VSS_E_BAD_STATE,
    Code.VSS_E_OBJECT_NOT_FOUND,
    Code.VSS_E_VOLUME_NOT_SUPPORTED,
    Code.VSS_E_INSUFFICIENT_STORAGE,
    Code.VSS_E_CANNOT_REVERT_DISKID,
    Code.VSS_E_PROVIDER_VETO,
    Code.VSS_S_ASYNC_CANCELLED,
}


@pytest.mark.parametrize("kind", [*CLASSES, NotEligible])
def test_only_what_a_provider_may_return_leaves(kind: type[BlkrecovError]) -> None:
    """Whatever went wrong; what happened and what to do about it are told all the same."""
    answer = in_provider_words(kind("it went wrong", remedy="do this"))
    assert answer.code in ALLOWED
    assert (answer.message, answer.remedy) == ("it went wrong", "do this")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ObjectNotFound, Code.VSS_E_OBJECT_NOT_FOUND),
        (errors.ObjectDeleted, Code.VSS_E_OBJECT_NOT_FOUND),
        (errors.IdentityMismatch, Code.VSS_E_VOLUME_NOT_SUPPORTED),
        (NotEligible, Code.VSS_E_VOLUME_NOT_SUPPORTED),
        (errors.NotEnoughSpace, Code.VSS_E_INSUFFICIENT_STORAGE),
        (errors.NotEnoughDrives, Code.VSS_E_INSUFFICIENT_STORAGE),
        (errors.OutOfResources, Code.E_OUTOFMEMORY),
        (errors.AnotherCallInProgress, Code.VSS_E_PROVIDER_VETO),
        (errors.DeviceInUse, Code.VSS_E_PROVIDER_VETO),
        (errors.ObjectExists, Code.VSS_E_PROVIDER_VETO),
        (errors.ProviderFailure, Code.VSS_E_PROVIDER_VETO),
        (errors.MetadataNotWritten, Code.VSS_E_PROVIDER_VETO),
    ],
)
def test_the_array_s_words_in_a_provider_s(kind: type[BlkrecovError], code: Code) -> None:
    """What has no code of its own there is a veto, which always has an event."""
    assert in_provider_words(kind("it went wrong")).code is code


@pytest.mark.parametrize("kind", [InvalidArgument, ProviderVeto, errors.InsufficientStorage])
def test_what_is_in_their_words_already_is_the_same_error(kind: type[BlkrecovError]) -> None:
    """With its own cause."""
    error = kind("it went wrong")
    assert in_provider_words(error) is error
