"""In the guest: org.blkrecov1 as a shell's user has it, by busctl."""

import json
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from blkrecov.bus.interfaces import NAME
from blkrecov.bus.objects import ROOT
from tests.system.guest import DEADLINE_S, run
from tests.system.machine import Json

T = TypeVar("T")

_LOOK_S: Final = 0.2


def busctl(line: str) -> Any:
    """What `busctl --json=short` prints for this line: a list of what a method gives, a property's value; None for nothing."""
    said = run("busctl", "--json=short", f"--timeout={DEADLINE_S}", *shlex.split(line))
    return json.loads(said)["data"] if said.strip() else None


def call(path: str, interface: str, words: str) -> Any:
    """What a method of ours gives: nothing, a value, or a list of several. `words` as busctl takes them, from the method on."""
    answer = busctl(f"call {NAME} {path} {interface} {words}")
    return answer[0] if answer and len(answer) == 1 else answer


def get(path: str, interface: str, name: str) -> Any:
    return busctl(f"get-property {NAME} {path} {interface} {name}")


def named(interface: str, name: str, within: str = ROOT) -> str:
    """The path of the drive, LUN or array of this name; `within` an array's."""
    found = busctl(f"call {NAME} {ROOT} org.freedesktop.DBus.ObjectManager GetManagedObjects")[0]
    paths: list[str] = [path for path in found if path.startswith(within) and interface in found[path]]
    return next(path for path in paths if found[path][interface]["Name"]["data"] == name)


def until(what: str, ask: Callable[[], T]) -> T:
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(_LOOK_S)
    return answer


@dataclass
class Heard:
    """The signals of org.blkrecov1, as busctl monitor writes them."""

    signals: list[Json] = field(default_factory=list)

    def members(self, path: str) -> list[str]:
        return [each["member"] for each in self.signals if each["path"] == path]

    def changes(self, path: str, name: str) -> list[Any]:
        """The values that a property has had, as PropertiesChanged told them."""
        told = [
            each["payload"]["data"][1]
            for each in list(self.signals)
            if each["path"] == path and each["member"] == "PropertiesChanged"
        ]
        return [values[name]["data"] for values in told if name in values]

    def completed(self, array: str) -> list[tuple[str, str]]:
        """(the task's path, its state) of each that has ended."""
        return [
            (each["path"], each["payload"]["data"][0])
            for each in list(self.signals)
            if each["member"] == "Completed" and each["path"].startswith(array)
        ]

    def removed(self) -> list[str]:
        """Paths of what has gone."""
        return [each["payload"]["data"][0] for each in list(self.signals) if each["member"] == "InterfacesRemoved"]


@contextmanager
def heard() -> Iterator[Heard]:
    """What is told from here on."""
    signals = Heard()
    command = ["busctl", "--json=short", "monitor", NAME]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        output = process.stdout
        assert "Monitoring" in output.readline()

        def listen() -> None:
            for line in output:
                message = json.loads(line)
                if message["type"] == "signal":
                    signals.signals.append(message)

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield signals
        finally:
            process.terminate()
            thread.join()
