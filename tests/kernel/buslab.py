"""A bus, a client on it, and a blkrecovd as systemd would run it: for tests of the daemon.

The bus is a dbus-daemon of the tests' own, with the system bus's policy and ours (conftest.py has the fixtures).
"""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from blkrecov.bus.interfaces import ARRAY, MANAGER, NAME, OBJECT_MANAGER, PROPERTIES
from blkrecov.bus.objects import ROOT
from blkrecov.units import MIB
from tests.kernel.lab import DEADLINE_S, Lab, run
from tests.kernel.lab import DRIVE as DRIVE_SIZE

HERE: Final = Path(__file__).resolve().parents[2]
LUN_SIZE: Final = 8 * MIB
CONFIGURATION: Final = """
<busconfig>
  <type>system</type><listen>unix:path={address}</listen><auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><deny own="*"/><deny send_type="method_call"/><allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/><allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/><allow receive_type="method_return"/>
    <allow receive_type="error"/><allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
  </policy>
  <include>{policy}</include>
</busconfig>
"""


class Refused(Exception):
    """An error that came back from the bus."""

    def __init__(self, name: str, body: tuple[Any, ...]) -> None:
        super().__init__(name, *body)
        self.name, self.body = name, body


@dataclass(frozen=True)
class Heard:
    """A signal, or the reply to a Wait, in the order in which they came."""

    path: str
    member: str
    body: list[Any]


@dataclass
class Client:
    """A connection with a thread of its own, which hears all of our signals."""

    loop: asyncio.AbstractEventLoop
    bus: MessageBus
    heard: list[Heard] = field(default_factory=list)

    @classmethod
    @contextmanager
    def connected(cls) -> Iterator["Client"]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="client")
        thread.start()

        async def connect() -> "Client":
            client = cls(loop, await MessageBus(bus_type=BusType.SYSTEM).connect())
            client.bus.add_message_handler(client._hear)
            await client._call("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "AddMatch", "s", f"sender='{NAME}'")
            return client

        try:
            client = asyncio.run_coroutine_threadsafe(connect(), loop).result(DEADLINE_S)
            yield client
            loop.call_soon_threadsafe(client.bus.disconnect)
            time.sleep(0.1)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def _hear(self, message: Message) -> None:
        if message.message_type is MessageType.SIGNAL and (message.path or "").startswith(ROOT):
            self.heard.append(Heard(message.path or "", message.member or "", message.body))

    async def _call(
        self, destination: str, path: str, interface: str, member: str, signature: str, *body: Any
    ) -> list[Any]:
        message = Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
        )
        reply = await self.bus.call(message)
        assert reply is not None
        if reply.message_type is MessageType.ERROR:
            raise Refused(reply.error_name or "", tuple(reply.body))
        return list(reply.body)

    def begin(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> Any:
        """A call whose answer is taken later, by result(seconds)."""
        work: Coroutine[Any, Any, list[Any]] = self._call(NAME, path, interface, member, signature, *body)
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> Any:
        """What a method answers: nothing, a value, or a list of several."""
        answer = self.begin(path, interface, member, signature, *body).result(DEADLINE_S)
        return answer[0] if len(answer) == 1 else answer

    def get(self, path: str, interface: str, name: str) -> Any:
        return self.call(path, PROPERTIES, "Get", "ss", interface, name).value

    def objects(self) -> dict[str, dict[str, dict[str, Any]]]:
        found = self.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
        return {
            path: {name: {key: item.value for key, item in values.items()} for name, values in interfaces.items()}
            for path, interfaces in found.items()
        }

    def named(self, interface: str, name: str) -> str:
        """The path of the drive, LUN or array of this name."""
        return next(
            path for path, known in self.objects().items() if interface in known and known[interface]["Name"] == name
        )

    def until(self, what: str, ask: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + DEADLINE_S
        while not (answer := ask()):
            assert time.monotonic() < deadline, f"{what} did not come"
            time.sleep(0.02)
        return answer

    def changes(self, path: str, name: str) -> list[Any]:
        """The values that a property has had, as PropertiesChanged told them."""
        told = [each.body[1] for each in self.heard if each.path == path and each.member == "PropertiesChanged"]
        return [values[name].value for values in told if name in values]


@contextmanager
def system_bus(directory: Path) -> Iterator[None]:
    """A system bus, and two users: one of the group that may read, and a stranger."""
    run("groupadd", "--system", "--force", "blkrecov")
    run("useradd", "--system", "--groups", "blkrecov", "reader")
    run("useradd", "--system", "stranger")
    for parent in (directory, *directory.parents):
        if parent.name.startswith(("bus", "pytest")):
            parent.chmod(0o755)  # pytest's own are closed to the two.
    socket_, configuration = directory / "socket", directory / "bus.conf"
    policy = HERE / "blkrecov/data/org.blkrecov1.conf"
    configuration.write_text(CONFIGURATION.format(address=socket_, policy=policy))
    with subprocess.Popen(["dbus-daemon", f"--config-file={configuration}", "--nofork"]) as daemon:
        while not socket_.exists():
            assert daemon.poll() is None
            time.sleep(0.02)
        os.environ["DBUS_SYSTEM_BUS_ADDRESS"] = f"unix:path={socket_}"
        try:
            yield
        finally:
            del os.environ["DBUS_SYSTEM_BUS_ADDRESS"]
            daemon.terminate()


class Daemon:
    """A blkrecovd that runs as systemd would run it."""

    def __init__(self, lab: Lab, **environment: str) -> None:
        path = lab.directory / "notify"
        path.unlink(missing_ok=True)
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(path))
        self._notified.settimeout(DEADLINE_S)
        self.words: list[str] = []
        self.log = lab.directory / "daemon.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "blkrecov.daemon"],
                cwd=HERE,
                env={**os.environ, **lab.environment, "NOTIFY_SOCKET": str(path), **environment},
                stderr=log,
            )
        self.told("READY=1")

    def told(self, words: str) -> None:
        """Wait until it has told systemd a line with these words, after those that were waited for before."""
        while not any(words in line for line in self.words):
            self.words += self._notified.recv(4096).decode().splitlines()
        self.words.clear()

    def switches(self) -> int:
        """How often any of its threads has gone to sleep so far."""
        return sum(self.threads().values())

    def threads(self) -> dict[int, int]:
        """How often each of its threads has gone to sleep so far, by number; that of the loop is the process's."""
        found = {}
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/status"):
            (number,) = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)$", path.read_text(), re.M)
            found[int(path.parent.name)] = int(number)
        return found

    def ticks(self) -> int:
        """The processor time that it has used, in hundredths of a second."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def memory(self) -> dict[str, int]:
        """What it uses in KiB: all of it, and what it shares with others as its part of that."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return {name: int(number) for name, number in re.findall(r"^(Rss|Pss):\s+(\d+) kB$", text, re.M)}

    def terminate(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        self._notified.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running(lab: Lab, **environment: str) -> Iterator[Daemon]:
    daemon = Daemon(lab, **environment)
    try:
        yield daemon
    except BaseException:
        print(daemon.log.read_text())
        raise
    finally:
        daemon.terminate()
        daemon.close()


def size(number: int) -> Variant:
    return Variant("t", number)


def add_drives(client: Client, lab: Lab, *names: str, spare: bool = False) -> None:
    array = client.named(ARRAY, "lab")
    for name in names:
        options = {"size": size(DRIVE_SIZE), "name": Variant("s", name), "spare": Variant("b", spare)}
        client.call(array, ARRAY, "AddDrive", "sa{sv}", str(lab.path(name)), options)
        lab.drives.append(name)


def made(client: Client, lab: Lab, drives: int = 3) -> tuple[str, str]:
    """An array with drives and a mirror on the first two, all made over the bus: (the array, the LUN)."""
    array = client.call(ROOT, MANAGER, "CreateArray", "sa{sv}", "lab", {})
    add_drives(client, lab, *(f"d{number}" for number in range(drives)))
    options = {"drives": Variant("as", ["d0", "d1"])}
    return array, client.call(array, ARRAY, "CreateLun", "ssta{sv}", "vol", "raid1", LUN_SIZE, options)


def slowly(array: str, client: Client, rate: int = 2 * MIB) -> None:
    client.call(array, ARRAY, "Configure", "a{sv}", {"rate-max": size(rate)})
