"""What every long operation of an array has: an account of the bytes it cost, how far it is, and events that tell of it.

Above this stand the operations themselves: restores (blkrecov.restoring), and what is done to members (blkrecov.array).
"""

from abc import abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import msgspec

from blkrecov import catalog, family, objects, tasks
from blkrecov.catalog import Discovered
from blkrecov.dmrp import notify, storage
from blkrecov.dmrp.storage import ObjectList
from blkrecov.engine import Engine
from blkrecov.events import EventKind, EventLog
from blkrecov.locks import Lock
from blkrecov.model import Document, Phase, Task, TaskKind
from blkrecov.objects import ObjectFile
from blkrecov.settings import Settings
from blkrecov.units import Bytes

_NOUNS: Final = {
    TaskKind.RECOVER: "recovery",
    TaskKind.SCRUB: "scrub",
    TaskKind.REPLACE: "replacement",
    TaskKind.SNAPSHOT: "snapshot",
    TaskKind.RESYNC: "resync",
    TaskKind.RECONNECT: "reconnect",
    TaskKind.REMOVE: "removal",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task is, at one moment. `done` and `total` are of the present phase."""

    task: Task
    phase: Phase | None
    fraction: float
    done: Bytes
    total: Bytes


class Running(Engine):
    """An open array that knows what its tasks are at."""

    def __init__(self, settings: Settings, found: Discovered, lock: Lock, owned: ExitStack) -> None:
        super().__init__(settings, found, lock, owned)
        self.events: Final = EventLog(self._settings.state)
        self._accounted_for = 0
        self._objects: Final = ObjectFile(settings.volatile / f"{self.document.array.hex[:8]}.objects")

    @abstractmethod
    def progress(self, number: int) -> Progress:
        """How far a task is, from the kernel's own counters. Reads no drive and writes nothing."""

    # The list of storage objects: it changes before an operation is answered, and is told of after that.

    def objects(self, task: Task | None = None) -> ObjectList:
        """MS-DMRP's list of storage objects as it is now. `task` has caused what is new in it."""
        mounts = objects.mounted(self.document, self.observed)
        number = storage.task_oid(self.document, task.id) if task is not None else 0
        return self._objects.refresh(storage.listed(self.document, self.observed, mounts), number)

    def tell_objects(self) -> None:
        """Tell what has changed in that list, all of it that nobody was told of yet."""
        self.objects()
        if untold := self._objects.untold():
            self.events.tell(
                EventKind.OBJECTS_CHANGED,
                notify.summary(untold),
                array=self.document.name,
                data=tuple(notify.notification_view(each) for each in untold),
            )
            self._objects.told()

    def _leave(self) -> None:
        self.tell_objects()

    def _begun(self, number: int) -> None:
        """Write down that the kernel was asked for a task's present phase. Asked twice is harmless, never asked is not."""
        task = msgspec.structs.replace(self.document.task(number), boot=catalog.boot_id())
        self.store(self._accounted(self.document, task))

    def _told(self, progress: Progress) -> Task:
        """A quarter that has passed is told, and written down: so the percentage does not fall when another process, or the
        next boot, goes on with the task.
        """
        task = progress.task
        if tasks.quarter(task) > self.document.task(task.id).percent:
            self.store(self._accounted(self.document, task))
            of = "drive" if task.kind in family.PARENTS else "LUN"
            self._tell(
                "progress", f"{task.kind.value} of {of} {task.objects[0]} is at {tasks.quarter(task)} %", task=task
            )
            self.objects(task)
        return self.document.task(task.id)

    def _was_here(self, task: Task) -> bool:
        return task.boot == catalog.boot_id()

    def _accounted(self, document: Document, task: Task) -> Document:
        """The document with a task that knows the bytes which this process has moved since it was last asked."""
        moved = self.counter.bytes_read + self.counter.bytes_written
        task = msgspec.structs.replace(task, bytes_process=task.bytes_process + moved - self._accounted_for)
        self._accounted_for = moved
        return document.with_task(task)

    def _tell(
        self,
        what: str,
        message: str,
        *,
        task: Task | None = None,
        lun: str | None = None,
        drive: str | None = None,
        code: str | None = None,
        remedy: str = "",
    ) -> None:
        """Tell an event. Of a task `what` is how it fares, and its kind is the rest of the event's name."""
        if task is not None:
            lun = next((item.name for item in self.document.luns if item.uuid == task.lun), lun)
            what = f"{_NOUNS[task.kind]}_{what}"
            code = task.code if task.state.ended else code
        self.events.tell(
            EventKind(what),
            message,
            array=self.document.name,
            lun=lun,
            drive=drive,
            task=task.id if task else None,
            percent=task.percent if task else None,
            code=code,
            remedy=remedy,
        )
