"""Run the tests in lanes, and sum them up.

    check     format, lint, types: scripts/check
    unit      tests/unit, here, in seconds
    kernel    tests/kernel, each long file in a guest of its own with a disk of its own, short ones together
    crash     tests/crash, here; these boot guests themselves and cut their power
    system    tests/system, here; these build the packages, and boot guests with systemd

Three guests run at a time, of whatever lane; a lane's time is that of its files together.

A lane that ran no test has failed, and so has a guest that ended without results. In all lanes with guests a test that was
skipped, or was expected to fail, counts as failed: there the kernel is what it is meant to be.

The counts come from JUnit files that pytest writes, in the guests as well. The last line is for people and programs that know
pytest's; the exit status is 0 if everything passed, else 1.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LANES: Final = ("check", "unit", "kernel", "crash", "system")
# Guests wait as much as they work: two of them leave a third of two cores idle.
AT_ONCE: Final = 3
# Files that take minutes, the longest first, and those whose bus would be in others' way; what is not named here takes less.
SLOWEST: Final = (
    "test_ways.py",
    "test_matrix_parity.py",
    "test_matrix_mirror.py",
    "test_snapshots.py",
    "test_resync.py",
    "test_reconnect.py",
    "test_resync_codes.py",
    "test_daemon.py",
    "test_monitor.py",
    "test_client.py",
    "test_remove.py",
    "test_luns.py",
    "test_metrics.py",
    "test_stuck.py",
    "test_bus.py",
    "test_service.py",
    "test_resync_cut.py",
    "test_control_cut.py",
)
# How many of the others share a guest: to boot one takes as long as some of their tests.
TOGETHER: Final = 4
GUEST_OPTIONS: Final = ("--mem", "3G", "--disk", "6G", "--timeout", "900")


@dataclass(frozen=True, slots=True)
class Counts:
    """`trouble` holds what went wrong outside of any test, or is told beside the counts, a sentence each."""

    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: int = 0
    trouble: tuple[str, ...] = ()

    @property
    def tests(self) -> int:
        return self.passed + self.failed + self.errors + self.skipped

    @property
    def good(self) -> bool:
        return not (self.failed or self.errors)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.passed + other.passed,
            self.failed + other.failed,
            self.errors + other.errors,
            self.skipped + other.skipped,
            self.trouble + other.trouble,
        )

    def __str__(self) -> str:
        words = [
            (self.failed, "failed"),
            (self.passed, "passed"),
            (self.skipped, "skipped"),
            (self.errors, "error" if self.errors == 1 else "errors"),
        ]
        return ", ".join(f"{number} {word}" for number, word in words if number) or "no tests ran"


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane that has run. The check lane has no tests: it fails, or says nothing."""

    name: str
    counts: Counts
    seconds: float


def results(junit: Path, status: int, what: str, *, strict: bool) -> Counts:
    """What a run of pytest came to, from its JUnit file and its exit status. `strict`: nothing may be skipped."""
    try:
        suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return Counts(errors=1, trouble=(f"{what} ended with status {status} and left no results",))
    number = {
        word: sum(int(suite.get(word, 0)) for suite in suites) for word in ("tests", "failures", "errors", "skipped")
    }
    failed, errors, skipped = number["failures"], number["errors"], number["skipped"]
    passed = max(number["tests"] - failed - errors - skipped, 0)
    trouble = []
    if strict and skipped:
        for suite in suites:
            for case in suite.iter("testcase"):
                if case.find("skipped") is not None:
                    trouble.append(f"{case.get('classname')}.{case.get('name')} was skipped")
        failed, skipped = failed + skipped, 0
    counts = Counts(passed, failed, errors, skipped, tuple(trouble))
    if not counts.tests:
        return Counts(errors=1, trouble=(f"{what} ran no test",))
    if status and counts.good:
        return counts + Counts(errors=1, trouble=(f"{what} ended with status {status}",))
    return counts


@dataclass(frozen=True, slots=True)
class Job:
    """A part of a lane that runs by itself: it gives what it came to, and its output."""

    lane: str
    name: str
    run: Callable[[], tuple[Counts, str]]


def _said(lane: str, counts: Counts) -> str:
    return "passed" if lane == "check" and counts.good else str(counts)


def _together(name: str, parts: list[Lane]) -> Lane:
    counts = sum((part.counts for part in parts), Counts())
    if not parts:
        counts = Counts(errors=1, trouble=(f"tests/{name} has no test files",))
    return Lane(name, counts, sum(part.seconds for part in parts))


class Runner:
    """Starts processes, and ends them when it is told to end itself."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._ending = False

    def run(self, command: Iterable[str | Path], *, quiet: bool = False) -> tuple[int, str]:
        """(exit status, output); the output is empty unless `quiet`, which keeps it from the terminal."""
        with self._lock:
            if self._ending:
                return 1, ""
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if quiet else None,
                stderr=subprocess.STDOUT if quiet else None,
                text=True,
                errors="replace",
            )
            self._running.add(process)
        try:
            output, _ = process.communicate()
            return process.returncode, output or ""
        finally:
            with self._lock:
                self._running.discard(process)

    def end(self) -> None:
        """Terminate all that runs. scripts/vm cuts its guest's power then."""
        self._ending = True
        for process in list(self._running):
            process.terminate()

    def lanes(self, names: Sequence[str]) -> list[Lane]:
        """Run the jobs of lanes, three at a time; print the output of each whole, when it has ended.

        They go on together, so that no core waits for a lane's last file.
        """

        def told(job: Job) -> Lane:
            began = time.monotonic()
            counts, output = job.run()
            took = time.monotonic() - began
            with self._lock:
                print(f"----- {job.name}: {_said(job.lane, counts)} in {took:.1f}s\n{output.rstrip()}", flush=True)
            return Lane(job.lane, counts, took)

        # The longest job first, and short files last: the kernel lane has the most of them.
        order = ("system", "check", "unit", "crash", "kernel")
        jobs = [job for name in sorted(names, key=order.index) for job in self._jobs(name)]
        with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
            done = list(pool.map(told, jobs))
        return [_together(name, [lane for lane in done if lane.name == name]) for name in names]

    def _jobs(self, lane: str) -> list["Job"]:
        """The longest files first, so that none is left alone at the end."""
        if lane in ("check", "unit"):
            return [Job(lane, lane, self._check if lane == "check" else self._unit)]
        if lane == "kernel":
            # What pytest makes of the files is kept beside them: done here once, for a guest takes seconds and forgets it.
            collect = [sys.executable, "-m", "pytest", "tests/kernel", "-q", "--collect-only", "-p", "no:cacheprovider"]
            self.run(collect, quiet=True)
        if lane == "system":
            # One job: its files share a machine, and to set that up takes as long as most of them.
            return [Job(lane, "tests/system", partial(self._around_guests, ROOT / "tests/system"))]
        files = sorted(
            ROOT.glob(f"tests/{lane}/test_*.py"),
            key=lambda file: SLOWEST.index(file.name) if file.name in SLOWEST else len(SLOWEST),
        )
        if lane != "kernel":
            return [Job(lane, str(file.relative_to(ROOT)), partial(self._around_guests, file)) for file in files]
        long = [file for file in files if file.name in SLOWEST]
        short = files[len(long) :]
        shared = [short[number :: -(-len(short) // TOGETHER)] for number in range(-(-len(short) // TOGETHER))]
        return [
            Job(lane, " ".join(str(file.relative_to(ROOT)) for file in group), partial(self._guest, group))
            for group in [*([file] for file in long), *shared]
        ]

    def _check(self) -> tuple[Counts, str]:
        status, output = self.run([ROOT / "scripts/check"], quiet=True)
        return (Counts(failed=1, trouble=("scripts/check failed",)) if status else Counts()), output

    def _unit(self) -> tuple[Counts, str]:
        junit = self._scratch / "unit.xml"
        command = [sys.executable, "-m", "pytest", "tests/unit", "-q", f"--junit-xml={junit}"]
        status, output = self.run(command, quiet=True)
        return results(junit, status, "pytest tests/unit", strict=False), output

    def _around_guests(self, file: Path) -> tuple[Counts, str]:
        """Run one file of tests, or a directory of them, which boots guests itself."""
        test = str(file.relative_to(ROOT))
        junit = self._scratch / f"{file.stem}.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            test,
            "-q",
            "-p",
            "no:cacheprovider",
            "--durations=4",
            "--durations-min=8",
            f"--junit-xml={junit}",
        ]
        status, output = self.run(command, quiet=True)
        return results(junit, status, test, strict=True), output

    def _guest(self, files: Sequence[Path]) -> tuple[Counts, str]:
        """Boot a guest for some files of tests."""
        tests = [str(file.relative_to(ROOT)) for file in files]
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix=files[0].stem) as directory:
            state, out = Path(directory) / "state", Path(directory) / "out"
            # The working tree is read-only in the guest, in effect: no cache of an earlier run's failures.
            pytest = shlex.join(
                ["python", "-m", "pytest", *tests, "-q", "-p", "no:cacheprovider", "--durations=4", "--durations-min=8"]
            )
            inside = f'exec {pytest} --junit-xml="$BLKRECOV_VM_OUT/junit.xml"'
            vm: list[str | Path] = [
                ROOT / "scripts/vm",
                *GUEST_OPTIONS,
                "--state",
                state,
                "--out",
                out,
                "--",
                "sh",
                "-c",
                inside,
            ]
            status, output = self.run(vm, quiet=True)
            return results(out / "junit.xml", status, " ".join(tests), strict=True), output


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/test",
        description="Run the tests.",
        epilog="check: format, lint, types. unit: no kernel needed, seconds. kernel, crash, system: on guests.",
    )
    parser.add_argument("lane", nargs="?", choices=[*LANES, "all"], default="all")
    return parser.parse_args()


def report(lanes: list[Lane], seconds: float) -> bool:
    """Print a line for each lane and the closing one; whether all is well."""
    print()
    for lane in lanes:
        print(f"{lane.name:<8}{_said(lane.name, lane.counts)} in {lane.seconds:.2f}s")
        for sentence in lane.counts.trouble:
            print(f"        {sentence}")
    total = sum((lane.counts for lane in lanes), Counts())
    only_check = total.good and [lane.name for lane in lanes] == ["check"]
    print(f"===== {'check passed' if only_check else total} in {seconds:.2f}s =====", flush=True)
    return total.good


def main() -> int:
    wanted = parse_arguments().lane
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="blkrecov-test-") as scratch:
        runner = Runner(Path(scratch))

        def stop(_signal: int, _frame: FrameType | None) -> None:
            runner.end()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        lanes = runner.lanes(LANES if wanted == "all" else (wanted,))
    return 0 if report(lanes, time.monotonic() - began) else 1


if __name__ == "__main__":
    sys.exit(main())
