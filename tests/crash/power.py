"""A machine whose power can be cut: the bench's guest with disks that outlive it.

The disks are files that the guest's kernel writes to as it goes. To cut the power is to kill that kernel: what it had handed to
a disk is there, its memory is not, and what was under way is half done. A machine is started again on the same disks as often
as is asked for; a copy of it is another machine on copies of the disks, so that one cut can be looked at in two ways.

Nothing here sleeps. The guest says what it has come to by files in its output directory, and the host watches for them while it
waits for the guest's end, under a deadline.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

ROOT: Final = Path(__file__).resolve().parents[2]
REPORT: Final = "report.json"
DEADLINE_S: Final = 120.0
_TICK_S: Final = 0.01
T = TypeVar("T")
Json = dict[str, Any]


class GuestFailed(AssertionError):
    """The guest did not do what it was to do. Holds what it printed."""


class Guest:
    """A machine while it runs."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, transcript: Path) -> None:
        self._process = process
        self._out = out
        self._transcript = transcript

    def until(self, predicate: Callable[[], T | None], what: str, deadline_s: float = DEADLINE_S) -> T:
        """What the predicate gives, as soon as it gives something.

        Raises: GuestFailed when the guest ends before, or the time is up.
        """
        deadline = time.monotonic() + deadline_s
        while True:
            value = predicate()
            if value is not None and value is not False:
                return value
            try:
                self._process.wait(timeout=_TICK_S)
            except subprocess.TimeoutExpired:
                if time.monotonic() < deadline:
                    continue
                raise self._failure(f"no {what} within {deadline_s:g} s") from None
            raise self._failure(f"the guest ended before there was {what}")

    def until_marked(self, name: str, deadline_s: float = DEADLINE_S) -> None:
        marker = self._out / name
        self.until(marker.exists, f"marker {name}", deadline_s)

    def cut(self) -> None:
        """Cut the power."""
        assert self._process.poll() is None, self._failure("the guest had ended before its power was cut")
        self._kill()

    def finish(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait for the end of a guest that ends by itself."""
        try:
            status = self._process.wait(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            raise self._failure(f"the guest did not end within {deadline_s:g} s") from None
        if status:
            raise self._failure(f"the guest's command ended with status {status}")

    def stop(self) -> None:
        """Leave nothing running, whatever has happened."""
        if self._process.poll() is None:
            self._kill()

    def _kill(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=DEADLINE_S)

    def _failure(self, what: str) -> GuestFailed:
        said = self._transcript.read_text(errors="replace").splitlines()[-60:]
        return GuestFailed("\n".join([what, *said]))


@dataclass(frozen=True, slots=True)
class Machine:
    """Disks of so many MiB, and a directory that the guest may write to. `home` holds both."""

    home: Path
    disks: tuple[int, ...]

    @property
    def out(self) -> Path:
        return self.home / "out"

    @property
    def images(self) -> tuple[Path, ...]:
        return tuple(self.home / "state" / f"disk{number}.img" for number in range(len(self.disks)))

    @contextmanager
    def running(self, program: str, order: Json) -> Iterator[Guest]:
        """Boot, and run tests/crash/<program>.py in the guest with an order."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / REPORT).unlink(missing_ok=True)
        transcript = self.home / f"{program}.transcript"
        sizes = [f"{size}M" for size in self.disks]
        command = [str(ROOT / "scripts/vm"), "--mem", "1G", "--disk", *sizes]
        command += ["--state", str(self.home / "state"), "--out", str(self.out), "--timeout", "3600"]
        command += ["--", "python", "-m", f"tests.crash.{program}", json.dumps(order)]
        with open(transcript, "wb") as said:
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        guest = Guest(process, self.out, transcript)
        try:
            yield guest
        finally:
            guest.stop()

    def run(self, program: str, order: Json, deadline_s: float = DEADLINE_S) -> Json:
        """Boot, run to the end, and give what the guest reports."""
        with self.running(program, order) as guest:
            guest.finish(deadline_s)
        return self.report()

    def report(self) -> Json:
        """What the last guest had reported when it ended."""
        report: Json = json.loads((self.out / REPORT).read_text())
        return report

    def copied(self, home: Path) -> Self:
        """A machine with copies of the disks. Only for a machine that is off."""
        (home / "state").mkdir(parents=True)
        for image in self.images:
            subprocess.run(["cp", "--sparse=always", str(image), str(home / "state")], check=True)
        return type(self)(home, self.disks)

    def discard(self) -> None:
        shutil.rmtree(self.home)


def order_of(words: list[str]) -> Json:
    """What a guest's program was asked to do."""
    order: Json = json.loads(words[1])
    return order


def told(message: str) -> None:
    """A line of the guest's transcript."""
    print(message, file=sys.stderr, flush=True)
