"""The restore session: what comes before ResyncLuns, and the call itself (IVssBackupComponents, windows-semantics 5.3).

    begin()           InitializeForRestore
    add()             AddSnapshotToRecoverySet: a pair, by name or by VDS_LUN_INFORMATION
    propose()         what RecoverSet would do; nothing is done
    resync()          RecoverSet, which calls ResyncLuns
    status(), wait(), cancel()    IVssAsync

A session belongs to the process that opened it, and ends with it; the resynchronisation goes on without. Only codes that a
shadow copy provider may return leave here, and each VSS_E_PROVIDER_VETO has its event before it does.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from uuid import UUID

from blkrecov import resync, surroundings, tasks
from blkrecov.array import Array
from blkrecov.engine import fresh_ids
from blkrecov.errors import (
    AccessDenied,
    BadState,
    BlkrecovError,
    CancelTooLate,
    Code,
    Family,
    IdentityMismatch,
    InsufficientStorage,
    InvalidArgument,
    NotEnoughDrives,
    NotEnoughSpace,
    ObjectDeleted,
    ObjectNotFound,
    OutOfResources,
    ProviderVeto,
    RestoreCancelled,
    ShadowNotFound,
    TimedOut,
    VolumeNotSupported,
    resources,
)
from blkrecov.events import EventKind
from blkrecov.model import Lun, Phase, Task
from blkrecov.page83 import information, lun_information
from blkrecov.page83.identity import naa_of_serial, serial_of
from blkrecov.page83.information import LunInformation, NotEligible
from blkrecov.proposal import Proposal
from blkrecov.restoring import HOLD_PATIENCE_S
from blkrecov.resync import Options, Wish
from blkrecov.running import Progress


class RestoreSession:
    """One restore of an open array."""

    def __init__(self, array: Array, task: int | None = None) -> None:
        """`task` is that of an earlier resync(), whose status is asked for or which is cancelled."""
        self._array = array
        self._begun = False
        self._wishes: list[Wish] = []
        self._task = task

    def begin(self) -> None:
        """Raises: BadState in the initramfs, in rescue or emergency mode, and for a session that has begun."""
        if self._begun:
            raise BadState("the restore session has begun already", remedy="open another session for another restore")
        with self._as_provider():
            surroundings.refuse_unless_normal()
        self._begun = True

    def add(self, source: str | LunInformation, target: str | LunInformation | None = None) -> None:
        """A shadow copy, and the LUN that it is put on: its origin, if none is named; a new one, for a name that no LUN has.

        Raises: BadState before begin(); ShadowNotFound, InvalidArgument, VolumeNotSupported.
        """
        self._refuse_unbegun()
        with self._as_provider():
            found = self._found(source)
            self._wishes.append(self._wish(found, target))

    def resync_luns(self, sources: Sequence[LunInformation], targets: Sequence[LunInformation]) -> Task:
        """IVssHardwareSnapshotProviderEx::ResyncLuns: element i of the one goes onto element i of the other.

        Raises: InvalidArgument for arrays of different lengths, and for a LUN that is in them twice; what add() and resync() do.
        """
        if len(sources) != len(targets):
            raise InvalidArgument(
                f"{len(sources)} sources and {len(targets)} targets are no pairs",
                remedy="give as many of the one as of the other",
            )
        # What is wrong with the call, and with the machine, is told before what is wrong with a LUN.
        named = [each.device_id_descriptor for each in (*sources, *targets)]
        if len(set(named)) < len(named):
            raise InvalidArgument("one LUN is named twice", remedy="name each LUN once")
        self._refuse_unbegun()
        surroundings.refuse_unless_normal()
        for source, target in zip(sources, targets, strict=True):
            self.add(source, target)
        return self.resync()

    def propose(self, options: Options | None = None, *, revert_identity: bool = False) -> tuple[Proposal, Task]:
        """What would be done, after all that can be checked before the first write was.

        Raises: InvalidArgument, BadState, ShadowNotFound, VolumeNotSupported, InsufficientStorage, CannotRevertDiskId,
                ProviderVeto; OutOfResources.
        """
        self._refuse_unbegun()
        options = options or Options()
        with self._as_provider():
            return self._proposed(options, revert=revert_identity)

    def resync(self, options: Options | None = None, *, revert_identity: bool = False) -> Task:
        """Begin. Raises: what propose() does."""
        proposal, task = self.propose(options, revert_identity=revert_identity)
        return self.start(proposal, task, options)

    def start(self, proposal: Proposal, task: Task, options: Options | None = None) -> Task:
        """Begin what was proposed just now. Raises: ProviderVeto, OutOfResources."""
        options = options or Options()
        with self._as_provider(), ExitStack() as claims:
            # Nobody gets hold of a target between the look and the moment from which on it is not ready. When it is ready again
            # a claim would keep the kernel from looking for partitions.
            for wish in self._wishes:
                if wish.target is not None and not _is_forced(wish, options):
                    claims.enter_context(self._array.claimed(wish.target))
            task = self._array.start(proposal, task, holding=claims)
        self._task = task.id
        return task

    def status(self) -> Code:
        """IVssAsync::QueryStatus. Raises: BadState before resync()."""
        return tasks.vss_status(self._array.document.task(self._number()))

    def wait(self, *, on_progress: Callable[[Progress], None] | None = None, timeout_s: float | None = None) -> Code:
        """IVssAsync::Wait: S_OK when it has ended, and when the time is over; what came of it status() says. Raises: BadState."""
        with suppress(TimedOut):
            self._array.wait(self._number(), on_progress=on_progress, timeout_s=timeout_s)
        return Code.S_OK

    def cancel(self) -> Code:
        """IVssAsync::Cancel: S_OK for what is cancelled now, VSS_S_ASYNC_CANCELLED for what was before, VSS_S_ASYNC_FINISHED for
        what is done or about to be, the operation's own error where it has failed. Raises: BadState.
        """
        number = self._number()
        try:
            self._array.cancel(number)
        except RestoreCancelled:
            return Code.VSS_S_ASYNC_CANCELLED
        except CancelTooLate:
            task = self._array.document.task(number)
            if task.state.ended:
                return tasks.vss_status(task)
            return Code.VSS_S_ASYNC_CANCELLED if tasks.phase(task) is Phase.UNDO else Code.VSS_S_ASYNC_FINISHED
        return Code.S_OK

    def _number(self) -> int:
        if self._task is None:
            raise BadState("nothing is being restored in this session", remedy="begin with resync()")
        return self._task

    def _refuse_unbegun(self) -> None:
        if not self._begun:
            raise BadState("the restore session has not begun", remedy="call begin() first")

    # Who is meant.

    def _found(self, wanted: str | LunInformation) -> Lun:
        if isinstance(wanted, LunInformation):
            return self._array.document.lun_of(information.find(wanted, self._known()))
        return self._array.document.lun(wanted)

    def _known(self) -> dict[UUID, LunInformation]:
        """What of the array can be found by identity: the LUNs that are SCSI disks."""
        return {uuid: lun_information.of_disk(disk.disk) for uuid, disk in self._array.observed.exports.items()}

    def _wish(self, source: Lun, target: str | LunInformation | None) -> Wish:
        if target is None:
            if source.shadow is None:
                raise VolumeNotSupported(f"LUN {source.name!r} is no shadow copy, and has no origin")
            target = str(source.shadow.origin)
        if isinstance(target, LunInformation):
            lun = self._found(target)
            return Wish(source, lun, lun.name)
        try:
            lun = self._array.document.lun(target)
        except ObjectDeleted:
            if _is_uuid(target):
                raise  # The origin is gone.
            return Wish(source, None, target)
        except ObjectNotFound:
            return Wish(source, None, target)
        return Wish(source, lun, lun.name)

    # The checks, in the order of their codes.

    def _proposed(self, options: Options, *, revert: bool) -> tuple[Proposal, Task]:
        array, wishes = self._array, self._wishes
        resync.refuse_arguments(wishes)
        array.refuse_mistaken()
        surroundings.refuse_unless_normal()
        resync.refuse_unsuitable(array.document, wishes)
        for wish in wishes:
            for lun in (wish.source, wish.target):
                if lun is not None:
                    array.verify(lun)
        resync.refuse_another(array.document)
        facts = [
            array.facts(wish, revert=revert, patience_s=0.0 if _is_forced(wish, options) else HOLD_PATIENCE_S)
            for wish in wishes
        ]
        made = resync.propose(array.document, wishes, facts, options, fresh_ids(), array.blanking)
        resync.refuse_dangerous(array.document, array.observed, wishes, facts, options)
        return made

    @contextmanager
    def _as_provider(self) -> Iterator[None]:
        """Whatever went wrong in the words of a provider; a veto has an event first."""
        try:
            with resources():
                yield
        except BlkrecovError as error:
            answer = in_provider_words(error)
            if isinstance(answer, ProviderVeto):
                self._array.events.tell(
                    EventKind.RESYNC_VETOED,
                    f"a resync was refused: {answer.message}",
                    array=self._array.document.name,
                    code=answer.code.name,
                    remedy=answer.remedy,
                )
            if answer is error:
                raise
            raise answer from error


def in_provider_words(error: BlkrecovError) -> BlkrecovError:
    """An error as a shadow copy provider may return it: others VSS would make VSS_E_UNEXPECTED_PROVIDER_ERROR of."""
    if isinstance(error, NotEligible):
        return VolumeNotSupported(error.message, remedy=error.remedy)
    if error.code.family is Family.VSS or isinstance(error, InvalidArgument | AccessDenied | OutOfResources):
        return error
    kind: type[BlkrecovError] = ProviderVeto
    for theirs, ours in (
        ((ObjectNotFound, ObjectDeleted), ShadowNotFound),
        ((IdentityMismatch,), VolumeNotSupported),
        ((NotEnoughSpace, NotEnoughDrives), InsufficientStorage),
    ):
        if isinstance(error, theirs):
            kind = ours
    return kind(error.message, remedy=error.remedy)


def _is_forced(wish: Wish, options: Options) -> bool:
    return wish.target is not None and naa_of_serial(serial_of(wish.target.uuid)) in options.forced


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
