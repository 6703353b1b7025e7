"""Which LUNs we have suspended ourselves, for a process that dies in between: the next one resumes them, and no others.

Somebody else may suspend a LUN too (dmsetup suspend): for a copy by hand, or to see how a host takes a disk that does not
answer. That is theirs to end. The kernel does not tell who it was, so what we are about to suspend is written down first, in a
directory that is empty after a boot, as no device is suspended then. Layers below a LUN are nobody's but ours, and need no
record.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Self
from uuid import UUID


class Suspensions:
    """`record` is a file with a name on each line. Its writer has the array's lock; it may be read without."""

    def __init__(self, record: Path) -> None:
        self._record = record

    @classmethod
    def of(cls, directory: Path, array: UUID) -> Self:
        """Those of an array."""
        return cls(directory / f"{array.hex[:8]}.suspended")

    def names(self) -> frozenset[str]:
        """The device-mapper names of LUNs that may be suspended by us."""
        with suppress(FileNotFoundError):
            return frozenset(self._record.read_text().split())
        return frozenset()

    def begin(self, name: str) -> None:
        self._write(self.names() | {name})

    def end(self, name: str) -> None:
        self._write(self.names() - {name})

    def _write(self, names: frozenset[str]) -> None:
        if not names:
            self._record.unlink(missing_ok=True)
            return
        self._record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._record.with_suffix(f".{os.getpid()}")
        fresh.write_text("".join(f"{name}\n" for name in sorted(names)))
        fresh.replace(self._record)
