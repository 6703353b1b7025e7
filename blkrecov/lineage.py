"""Which of the configurations that drives carry is the array's, and whether the others are earlier versions of it. Pure.

The newest wins if it descends from the others. A document names the versions before it, as far as its history goes; of one that
is older, something else has to say that it is an earlier version:

    this machine        it has written or met a version that the newest names, or the newest itself
    the newest          it knows that the drive was away, and which version that had last
    the drives          of those that the older version knows and that are here, more carry the newest's line than the older

Without any of it, a document that calls itself a million versions newer may be anybody's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from blkrecov.model import HISTORY, Document


@dataclass(frozen=True, slots=True)
class Lineage:
    newest: Document
    others: frozenset[UUID]
    """The drives that carry another history."""
    unproven: frozenset[UUID]
    """Those of which nothing says whether they do."""


def judge(documents: Mapping[UUID, Document], known: int | None) -> Lineage:
    """Of the documents by drive, at least one. `known` is the version that this machine has written or met last."""
    newest = max(documents.values(), key=lambda document: document.sequence)
    others = frozenset(drive for drive, document in documents.items() if not newest.descends_from(document))
    unproven = frozenset(
        drive
        for drive, document in documents.items()
        if newest.has_forgotten(document) and not _was_away(newest, drive, document)
    )
    if not unproven or (known is not None and known >= newest.sequence - HISTORY):
        return Lineage(newest, others, frozenset())
    elder = max((documents[drive] for drive in unproven), key=lambda document: document.sequence)
    voters = {drive.uuid for drive in elder.drives} & documents.keys()
    outvoted = len(voters - unproven - others) > len(unproven)
    return Lineage(newest, others, frozenset() if outvoted else unproven)


def _was_away(newest: Document, drive: UUID, document: Document) -> bool:
    return any(
        record.uuid == drive and not record.online and record.carried == document.sequence for record in newest.drives
    )
