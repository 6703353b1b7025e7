"""blkrecovd on a real kernel and a real bus: what its clients see, what goes on without it, and who may ask it for what.

The bus is a dbus-daemon of the tests' own, with the system bus's policy and ours.
"""

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from dbus_fast import BusType, Message, MessageType, Variant
from dbus_fast.aio import MessageBus

from blkrecov.bus.interfaces import (
    ARRAY,
    DRIVE,
    INTERFACES,
    LUN,
    MANAGER,
    NAME,
    OBJECT_MANAGER,
    PROPERTIES,
    SESSION,
    TASK,
)
from blkrecov.bus.objects import ROOT
from blkrecov.dm.control import Control
from blkrecov.units import MIB
from tests.kernel.lab import DEADLINE_S, Lab, Slow, blkrecov, checksum, fill, run, tables
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


@pytest.fixture(scope="module", autouse=True)
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    run("groupadd", "--system", "--force", "blkrecov")
    run("useradd", "--system", "--groups", "blkrecov", "reader")
    run("useradd", "--system", "stranger")
    directory = tmp_path_factory.mktemp("bus")
    for parent in (directory, *directory.parents):
        parent.chmod(0o755) if parent.name.startswith(("bus", "pytest")) else None
    socket_, configuration = directory / "socket", directory / "bus.conf"
    policy = HERE / "packaging/org.blkrecov1.conf"
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


@pytest.fixture
def client(bus: None) -> Iterator[Client]:
    with Client.connected() as client:
        yield client


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
        texts = [path.read_text() for path in Path(f"/proc/{self.process.pid}/task").glob("*/status")]
        return sum(
            int(number) for text in texts for number in re.findall(r"^voluntary_ctxt_switches:\s+(\d+)$", text, re.M)
        )

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


def test_the_demo_over_the_bus(lab: Lab, client: Client) -> None:
    """Array, drives, LUN, a drive fails, recovery with signals, shadow copy, restore; and each object tells what it is."""
    with running(lab):
        array, vol = made(client, lab)
        disk = client.get(vol, LUN, "Device")
        assert disk.startswith("/dev/sd")

        client.call(client.named(DRIVE, "d1"), DRIVE, "Fail", "a{sv}", {})
        assert client.get(vol, LUN, "Health") == "failed_redundancy"
        assert not client.get(array, ARRAY, "Healthy")
        slowly(array, client)
        task = client.call(vol, LUN, "Recover", "a{sv}", {"spare": Variant("o", client.named(DRIVE, "d2"))})
        assert (client.get(task, TASK, "State"), client.get(vol, LUN, "Task")) == ("in_progress", task)
        with pytest.raises(Refused) as refused:
            client.call(task, TASK, "Wait", "a{sv}", {"timeout": Variant("d", 0.1)})
        assert refused.value.name == "org.blkrecov1.Error.VDS_E_TIMEOUT"
        answer = client.call(task, TASK, "Wait", "a{sv}", {})
        assert answer[:3] == ["completed", "S_OK", 0]
        client.until("Completed", lambda: [each for each in client.heard if each.member == "Completed"])
        percents = client.changes(task, "Percent")
        print(f"daemon: percentages of a recovery of 4 s: {percents}")
        assert percents == sorted(percents)
        assert (percents[-1], len(percents) > 5) == (100, True)
        told = [each.member for each in client.heard if each.path == task]
        assert (told[-2:], client.changes(task, "State")) == (["PropertiesChanged", "Completed"], ["completed"])
        assert client.get(vol, LUN, "Health") == "healthy"

        run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", disk)
        point = lab.directory / "point"
        point.mkdir()
        run("mount", disk, str(point))
        client.until("the mount", lambda: client.get(vol, LUN, "Mounts") == [(str(point), "ext4")])
        run("umount", str(point))
        client.until("its end", lambda: client.get(vol, LUN, "Mounts") == [])
        before = checksum(disk)

        copy, begun = client.call(vol, LUN, "CreateShadowCopy", "sa{sv}", "before", {})
        assert (begun, client.get(array, ARRAY, "ShadowCopies")) == ("/", [copy])
        fill(disk, MIB, seed=2, offset=4 * MIB)
        session = client.call(array, ARRAY, "InitializeForRestore", "a{sv}", {})
        client.call(session, SESSION, "Add", "ssa{sv}", copy, "", {})
        assert client.call(session, SESSION, "Plan", "a{sv}", {})
        assert checksum(disk) != before
        restore = client.call(session, SESSION, "Resync", "a{sv}", {"verify": Variant("b", True)})
        assert client.call(restore, TASK, "Wait", "a{sv}", {})[:2] == ["completed", "S_OK"]
        assert checksum(disk) == before
        assert client.call(session, SESSION, "Status", "a{sv}", {})[0] == "VSS_S_ASYNC_FINISHED"

        each_object_tells_what_it_is(client)
        errors_have_names(client, array, vol)

        client.call(session, SESSION, "End", "a{sv}", {})
        client.call(copy, "org.blkrecov1.ShadowCopy", "Delete", "a{sv}", {})
        assert [each.body[0] for each in client.heard if each.member == "InterfacesRemoved"] == [session, copy]
        client.call(array, ARRAY, "Stop", "a{sv}", {})
        assert (client.get(array, ARRAY, "Running"), tables()) == (False, "No devices found")
        client.call(array, ARRAY, "Refresh", "a{sv}", {})
        assert client.get(array, ARRAY, "Running")
        assert checksum(client.get(vol, LUN, "Device")) == before


def each_object_tells_what_it_is(client: Client) -> None:
    """What an object has, what it says that it has, and what GetManagedObjects says are the same; busctl can read it."""
    objects = client.objects()
    kinds = {name for known in objects.values() for name in known}
    assert kinds == set(INTERFACES) - {MANAGER}
    for path, known in objects.items():
        xml = client.call(path, "org.freedesktop.DBus.Introspectable", "Introspect")
        for name, values in known.items():
            assert f'<interface name="{name}">' in xml
            for key, value in values.items():
                assert client.get(path, name, key) == value
            assert set(values) == {item.name for item in INTERFACES[name].properties}
    for kind in kinds:
        path = next(path for path, known in objects.items() if kind in known)
        shown = run("busctl", "--system", "introspect", NAME, path, kind)
        members = [item.name for item in INTERFACES[kind].properties] + [item.name for item in INTERFACES[kind].methods]
        for name in members:
            assert re.search(rf"^\.{name} ", shown, re.MULTILINE)
    shown = run("busctl", "--system", "--list", "tree", NAME)
    assert set(objects) <= set(shown.split())


def errors_have_names(client: Client, array: str, vol: str) -> None:
    arguments: list[tuple[str, str, str, str, tuple[Any, ...], str]] = [
        (array, ARRAY, "CreateLun", "ssta{sv}", ("vol", "raid1", MIB, {}), "org.blkrecov1.Error.VDS_E_OBJECT_EXISTS"),
        (array, ARRAY, "CreateLun", "ssta{sv}", ("x", "raid7", MIB, {}), "org.blkrecov1.Error.E_INVALIDARG"),
        (
            array,
            ARRAY,
            "CreateLun",
            "ssta{sv}",
            ("x", "raid1", 2**50, {}),
            "org.blkrecov1.Error.VDS_E_NOT_ENOUGH_SPACE",
        ),
        (array, ARRAY, "AddDrive", "sa{sv}", ("d9", {}), "org.blkrecov1.Error.E_INVALIDARG"),
        (array, ARRAY, "AddDrive", "sa{sv}", ("/x", {"sise": size(1)}), "org.blkrecov1.Error.E_INVALIDARG"),
        (array, ARRAY, "AddDrive", "sa{sv}", ("/x", {"size": Variant("s", "1G")}), "org.blkrecov1.Error.E_INVALIDARG"),
        (vol, LUN, "Extend", "ta{sv}", (MIB, {}), "org.blkrecov1.Error.E_INVALIDARG"),
        (f"{array}/task/1", TASK, "Cancel", "a{sv}", ({},), "org.blkrecov1.Error.VDS_E_CANCEL_TOO_LATE"),
        (f"{array}/task/99", TASK, "Cancel", "a{sv}", ({},), "org.freedesktop.DBus.Error.UnknownObject"),
        (vol, LUN, "Sing", "", (), "org.freedesktop.DBus.Error.UnknownMethod"),
        (vol, LUN, "Recover", "", (), "org.freedesktop.DBus.Error.InvalidArgs"),
        (vol, ARRAY, "Stop", "a{sv}", ({},), "org.freedesktop.DBus.Error.UnknownInterface"),
        (vol, PROPERTIES, "Get", "ss", (LUN, "Colour"), "org.freedesktop.DBus.Error.UnknownProperty"),
        (vol, PROPERTIES, "Set", "ssv", (LUN, "Size", size(1)), "org.freedesktop.DBus.Error.PropertyReadOnly"),
    ]
    for path, interface, member, signature, body, name in arguments:
        with pytest.raises(Refused) as refused:
            client.call(path, interface, member, signature, *body)
        assert refused.value.name == name
        if name.startswith(NAME):
            words, number, remedy = refused.value.body
            assert words.endswith(f"\n{remedy}")
            assert number >> 31, f"{number:#x} is no failure's"


def test_a_stuck_worker_holds_up_no_answer(slow: Slow, lab: Lab, client: Client) -> None:
    """A drive stands on a disk that does not answer, and the kernel holds whoever asks it. All that is known is answered at once
    all the same, and a call that has to wait says for what.
    """
    with running(lab, WATCHDOG_USEC="1000000") as daemon:
        array, vol = made(client, lab)
        path = str(slow.directory / "far")
        far = client.call(
            array, ARRAY, "AddDrive", "sa{sv}", path, {"size": size(DRIVE_SIZE), "name": Variant("s", "far")}
        )
        lab.drives.append("far")
        run("dmsetup", "suspend", "--noflush", "--nolockfs", "lab-slow")
        try:
            options = {"drives": Variant("as", ["far"])}
            stuck = client.begin(array, ARRAY, "CreateLun", "ssta{sv}", "away", "linear", MIB, options)
            time.sleep(1)
            began = time.monotonic()
            assert (client.get(vol, LUN, "Status"), client.get(far, DRIVE, "Status")) == ("online", "online")
            assert len(client.objects()) == 6
            took_s = time.monotonic() - began
            with pytest.raises(Refused) as refused:
                client.call(vol, LUN, "Extend", "ta{sv}", LUN_SIZE + MIB, {})
            daemon.told("; array lab is b")
        finally:
            run("dmsetup", "resume", "lab-slow")
        print(f"daemon: three questions beside a worker that the kernel holds took {1000 * took_s:.0f} ms")
        assert refused.value.name == "org.blkrecov1.Error.VDS_E_TIMEOUT"
        assert re.search("is (busy with CreateLun|being looked after)", refused.value.body[0])
        with suppress(Refused):  # It was not begun if the array was just being looked after.
            stuck.result(DEADLINE_S)
        assert client.get(vol, LUN, "Size") == LUN_SIZE

        run("dmsetup", "suspend", "--nolockfs", "blkrecov-lab-vol")
        client.call(far, DRIVE, "SetHotSpare", "ba{sv}", True, {})
        assert client.call(array, ARRAY, "CreateLun", "ssta{sv}", "more", "linear", MIB, {})
        assert not Control().info("blkrecov-lab-vol").suspended


def test_a_daemon_that_is_killed_is_followed_by_one_that_goes_on(lab: Lab, client: Client) -> None:
    """Its objects have the same paths; the task goes on where it was, and ends."""
    with running(lab) as first:
        array, vol = made(client, lab)
        disk = client.get(vol, LUN, "Device")
        digest = fill(disk, LUN_SIZE, seed=3)
        client.call(client.named(DRIVE, "d0"), DRIVE, "Fail", "a{sv}", {})
        slowly(array, client)
        task = client.call(vol, LUN, "Recover", "a{sv}", {})
        client.until("a third", lambda: client.get(task, TASK, "Percent") >= 33)
        waiting = client.begin(task, TASK, "Wait", "a{sv}", {})
        assert client.get(task, TASK, "State") == "in_progress"  # Asked after that, so it waits by now.
        first.kill()
        with pytest.raises(Refused) as refused:
            waiting.result(DEADLINE_S)
        assert refused.value.name == "org.freedesktop.DBus.Error.NoReply"
        assert checksum(disk) == digest
    with running(lab):
        assert client.get(task, TASK, "Percent") >= 25
        assert client.call(task, TASK, "Wait", "a{sv}", {})[:2] == ["completed", "S_OK"]
        assert (client.get(vol, LUN, "Health"), client.get(vol, LUN, "Device")) == ("healthy", disk)
        assert checksum(disk) == digest


def well_again(client: Client, array: str) -> None:
    """All drives are back, and all LUNs whole."""
    for path, known in client.objects().items():
        if DRIVE in known and known[DRIVE]["Status"] != "online":
            client.call(path, DRIVE, "Reconnect", "a{sv}", {})
    client.until("health", lambda: client.get(array, ARRAY, "Healthy"))


@pytest.mark.long
def test_a_daemon_may_be_killed_at_any_moment(lab: Lab, client: Client) -> None:
    """Whatever it was at: the next one has an array in order, with all of a LUN or nothing, and every task ends."""
    seed = random.randrange(2**32)
    print(f"daemon: killed at the moments of seed {seed}")
    moments = random.Random(seed)
    with running(lab):
        array, vol = made(client, lab)
        digest = fill(client.get(vol, LUN, "Device"), LUN_SIZE, seed=5)
    for number in range(8):
        with running(lab) as daemon:
            well_again(client, array)
            wanted = [
                client.begin(array, ARRAY, "CreateLun", "ssta{sv}", f"n{number}", "linear", MIB, {}),
                client.begin(client.named(DRIVE, moments.choice(("d0", "d1"))), DRIVE, "Fail", "a{sv}", {}),
                client.begin(vol, LUN, "Recover", "a{sv}", {}),
            ]
            time.sleep(moments.uniform(0, 4))
            daemon.kill()
            for each in wanted:
                with suppress(Refused):
                    each.result(DEADLINE_S)
    with running(lab):
        well_again(client, array)
        for path, known in client.objects().items():
            if TASK in known:
                client.call(path, TASK, "Wait", "a{sv}", {})
            if LUN in known:
                assert (client.get(path, LUN, "Status"), client.get(path, LUN, "Verified")) == ("online", True)
        assert checksum(client.get(vol, LUN, "Device")) == digest


def test_a_command_beside_the_daemon_is_told_of(lab: Lab, client: Client) -> None:
    """Commands change the same array under the same lock: what they do comes as signals, an array that is stopped and one that is
    new too. Nobody brings the stopped one up again.
    """
    with running(lab):
        array, vol = made(client, lab)
        assert blkrecov(lab, "drive", "spare", "d2").status == 0
        d2 = client.named(DRIVE, "d2")
        client.until("the hot spare", lambda: client.changes(d2, "HotSpare") == [True])
        assert client.get(d2, DRIVE, "HotSpare")
        assert blkrecov(lab, "drive", "fail", "d0").status == 0
        client.until("a task", lambda: client.get(array, ARRAY, "Tasks"))
        client.until("its end", lambda: client.get(f"{array}/task/1", TASK, "State") == "completed")
        assert client.get(vol, LUN, "Health") == "healthy"

        slowly(array, client, MIB)
        scrub = client.call(vol, LUN, "Scrub", "a{sv}", {})
        assert blkrecov(lab, "array", "stop").status == 0
        client.until("the stop", lambda: not client.get(array, ARRAY, "Running"))
        assert tables() == "No devices found"
        assert client.get(scrub, TASK, "State") == "in_progress"
        client.call(array, ARRAY, "Configure", "a{sv}", {"rate-max": size(0)})
        assert client.get(array, ARRAY, "Running")
        assert client.call(scrub, TASK, "Wait", "a{sv}", {})[:2] == ["completed", "S_OK"]

        assert blkrecov(lab, "array", "create", "second").status == 0
        client.until("the second array", lambda: len(client.get(ROOT, MANAGER, "Arrays")) == 2)


def test_what_a_client_does_with_tasks_and_plans(lab: Lab, client: Client) -> None:
    """A plan does nothing; a task is held up, let go on, sped up and stopped."""
    with running(lab):
        array, vol = made(client, lab)
        wanted = [Variant("s", "more"), Variant("s", "raid1"), size(MIB)]
        steps = client.call(array, ARRAY, "Plan", "sava{sv}", "CreateLun", wanted, {})
        assert any("blkrecov-lab-more" in line for line in steps)
        assert client.get(array, ARRAY, "Luns") == [vol]
        with pytest.raises(Refused) as refused:
            client.call(array, ARRAY, "Plan", "sava{sv}", "CreateLun", wanted[:2], {})
        assert refused.value.name == "org.blkrecov1.Error.E_INVALIDARG"

        slowly(array, client, MIB)
        task = client.call(vol, LUN, "Scrub", "a{sv}", {"repair": Variant("b", True)})
        client.call(task, TASK, "Pause", "a{sv}", {})
        assert client.get(task, TASK, "Paused")
        client.call(task, TASK, "Resume", "a{sv}", {})
        client.call(task, TASK, "SetRates", "a{sv}", {"rate-max": size(2 * MIB)})
        assert (client.get(task, TASK, "Paused"), client.get(task, TASK, "RateMax")) == (False, 2 * MIB)
        waiting = client.begin(task, TASK, "Wait", "a{sv}", {})
        client.call(task, TASK, "Cancel", "a{sv}", {})
        assert waiting.result(DEADLINE_S)[:2] == ["cancelled", "VDS_E_OPERATION_CANCELED"]
        assert (client.get(task, TASK, "Percent"), client.get(vol, LUN, "Health")) == (0, "healthy")

        verified, witnesses = client.call(vol, LUN, "Verify", "a{sv}", {})
        naa = client.get(vol, LUN, "Naa")
        assert (verified, [list(row[:2]) for row in witnesses]) == (
            True,
            [[each, naa] for each in ("metadata", "sysfs", "udev")],
        )
        kinds = {row["kind"] for row in json.loads(client.call(array, ARRAY, "GetObjects", "a{sv}", {}))}
        assert {"disk", "region", "volume"} <= kinds
        (event,) = json.loads(client.call(array, ARRAY, "GetEvents", "a{sv}", {"last": Variant("u", 1)}))
        assert event["array"] == "lab"
        client.call(client.named(DRIVE, "d2"), DRIVE, "Remove", "a{sv}", {})
        client.call(vol, LUN, "Delete", "a{sv}", {})
        assert client.get(array, ARRAY, "Luns") == []


def test_nobody_but_root_changes_anything_and_the_group_may_read(lab: Lab, client: Client) -> None:
    with running(lab):
        array, _vol = made(client, lab, drives=2)
        asked = ["busctl", "--system", "call", NAME]
        read = [*asked, array, PROPERTIES, "Get", "ss", ARRAY, "Name"]
        change = [*asked, array, ARRAY, "Stop", "a{sv}", "0"]
        answers = [
            subprocess.run(
                ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *words],
                capture_output=True,
                text=True,
                check=False,
            )
            for user in ("reader", "stranger")
            for words in (read, change)
        ]
        assert [answer.returncode for answer in answers] == [0, 1, 1, 1]
        assert answers[0].stdout == 'v s "lab"\n'
        assert all("Access denied" in answer.stderr for answer in answers[1:])
        assert client.get(array, ARRAY, "Running")


def test_a_daemon_sleeps_feeds_the_watchdog_and_leaves_luns_as_they_are(lab: Lab, client: Client) -> None:
    with running(lab) as daemon:
        _array, vol = made(client, lab, drives=2)
        disk = client.get(vol, LUN, "Device")
        digest = fill(disk, LUN_SIZE, seed=4)
        run("udevadm", "settle")
        time.sleep(1)
        before = daemon.switches()
        time.sleep(3)
        woken = daemon.switches() - before
        print(f"daemon: idle for 3 s it has gone to sleep {woken} times")
        assert woken <= 2

        second = subprocess.run(
            [sys.executable, "-m", "blkrecov.daemon"],
            cwd=HERE,
            env={**os.environ, **lab.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (second.returncode, "VDS_E_DEVICE_IN_USE" in second.stderr) == (1, True)

        live = tables()
        assert daemon.terminate() == 0
        daemon.told("STOPPING=1")
        assert (tables(), checksum(disk)) == (live, digest)
    with running(lab, WATCHDOG_USEC="400000") as daemon:
        assert tables() == live
        for _ in range(3):
            daemon.told("WATCHDOG=1")


def test_a_restore_session_ends_with_its_client(lab: Lab, client: Client) -> None:
    """What it has begun goes on; another client may not use it."""
    with running(lab):
        array, vol = made(client, lab)
        client.call(vol, LUN, "CreateShadowCopy", "sa{sv}", "copy", {})
        with Client.connected() as other:
            session = other.call(array, ARRAY, "InitializeForRestore", "a{sv}", {})
            with pytest.raises(Refused) as refused:
                client.call(session, SESSION, "Add", "ssa{sv}", "copy", "", {})
            assert refused.value.name == "org.blkrecov1.Error.E_ACCESSDENIED"
            with pytest.raises(Refused) as refused:
                other.call(session, SESSION, "Add", "ssa{sv}", "vol", "", {})
            assert refused.value.name == "org.blkrecov1.Error.VSS_E_VOLUME_NOT_SUPPORTED"
            other.call(session, SESSION, "Add", "ssa{sv}", "copy", "", {})
            task = other.call(session, SESSION, "Resync", "a{sv}", {})
        client.until("the session's end", lambda: session not in client.objects())
        assert client.call(task, TASK, "Wait", "a{sv}", {})[:2] == ["completed", "S_OK"]
