"""A provider's words: which code leaves a restore session for what went wrong inside (windows-semantics 5.7)."""

import pytest

from blkrecov import errors
from blkrecov.errors import BlkrecovError, Code
from blkrecov.page83.information import NotEligible
from blkrecov.session import in_provider_words

# What ResyncLuns may return, of all codes that there are.
ALLOWED = {
    Code.E_OUTOFMEMORY,
    Code.E_INVALIDARG,
    Code.E_ACCESSDENIED,
    Code.VSS_E_BAD_STATE,
    Code.VSS_E_OBJECT_NOT_FOUND,
    Code.VSS_E_INSUFFICIENT_STORAGE,
    Code.VSS_E_VOLUME_NOT_SUPPORTED,
    Code.VSS_E_PROVIDER_VETO,
    Code.VSS_E_CANNOT_REVERT_DISKID,
}
# A cancelled restore is told by IVssAsync, never by ResyncLuns.
RAISED = [
    kind
    for kind in (*vars(errors).values(), NotEligible)
    if isinstance(kind, type) and issubclass(kind, BlkrecovError) and kind is not errors.RestoreCancelled
]


@pytest.mark.parametrize("kind", RAISED, ids=lambda kind: kind.__name__)
def test_only_codes_that_a_provider_may_return_leave(kind: type[BlkrecovError]) -> None:
    """Any other one would reach the requester as VSS_E_UNEXPECTED_PROVIDER_ERROR. The words stay what they were."""
    answer = in_provider_words(kind("it went wrong", remedy="mend it"))
    assert answer.code in ALLOWED
    assert (answer.message, answer.remedy) == ("it went wrong", "mend it")


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.InvalidArgument, Code.E_INVALIDARG),
        (NotEligible, Code.VSS_E_VOLUME_NOT_SUPPORTED),
        (errors.OutOfResources, Code.E_OUTOFMEMORY),
        (errors.AccessDenied, Code.E_ACCESSDENIED),
        (errors.BadState, Code.VSS_E_BAD_STATE),
        (errors.ObjectNotFound, Code.VSS_E_OBJECT_NOT_FOUND),
        (errors.ObjectDeleted, Code.VSS_E_OBJECT_NOT_FOUND),
        (errors.IdentityMismatch, Code.VSS_E_VOLUME_NOT_SUPPORTED),
        (errors.NotEnoughSpace, Code.VSS_E_INSUFFICIENT_STORAGE),
        (errors.NotEnoughDrives, Code.VSS_E_INSUFFICIENT_STORAGE),
        (errors.CannotRevertDiskId, Code.VSS_E_CANNOT_REVERT_DISKID),
        (errors.CacheCorrupt, Code.VSS_E_PROVIDER_VETO),
        (errors.DeviceInUse, Code.VSS_E_PROVIDER_VETO),
        (errors.AnotherCallInProgress, Code.VSS_E_PROVIDER_VETO),
        (errors.ObjectExists, Code.VSS_E_PROVIDER_VETO),
        (errors.ProviderFailure, Code.VSS_E_PROVIDER_VETO),
    ],
)
def test_what_each_becomes(kind: type[BlkrecovError], code: Code) -> None:
    """What the caller gave, what the array has, and what nobody foresaw: the last is a veto, which has an event."""
    assert in_provider_words(kind("it went wrong")).code is code
