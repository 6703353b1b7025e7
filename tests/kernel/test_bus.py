"""org.blkrecov1 on a real bus and a real kernel: what its clients see and do, and who may ask it for what."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
from dbus_fast import Variant

from blkrecov.bus.interfaces import ARRAY, DRIVE, INTERFACES, LUN, MANAGER, NAME, PROPERTIES, SESSION, TASK
from blkrecov.bus.objects import ROOT
from blkrecov.units import MIB
from tests.kernel.buslab import Client, Refused, made, running, size, slowly
from tests.kernel.lab import DEADLINE_S, Lab, blkrecov, checksum, fill, run, tables


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
        stop = client.begin(array, ARRAY, "Stop", "a{sv}", {})
        behind = client.begin(array, ARRAY, "GetActivity", "a{sv}", {})
        stop.result(DEADLINE_S)
        with pytest.raises(Refused) as refused:  # To look at it would bring it up again.
            behind.result(DEADLINE_S)
        assert refused.value.name == "org.blkrecov1.Error.E_ACCESSDENIED"
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
                # What the kernel is at may be something else by now, in both.
                told = client.get(path, name, key)
                assert told == value or told == client.objects()[path][name][key]
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

        verified, witnesses, trouble = client.call(vol, LUN, "Verify", "a{sv}", {})
        naa = client.get(vol, LUN, "Naa")
        assert (verified, trouble, [list(row[:2]) for row in witnesses]) == (
            True,
            "",
            [[each, naa] for each in ("metadata", "sysfs", "udev")],
        )
        kinds = {row["kind"] for row in json.loads(client.call(array, ARRAY, "GetObjects", "a{sv}", {}))}
        assert {"disk", "region", "volume"} <= kinds
        (event,) = json.loads(client.call(array, ARRAY, "GetEvents", "a{sv}", {"last": Variant("u", 1)}))
        assert event["array"] == "lab"
        client.call(client.named(DRIVE, "d2"), DRIVE, "Remove", "a{sv}", {})
        client.call(vol, LUN, "Delete", "a{sv}", {})
        assert client.get(array, ARRAY, "Luns") == []


def as_user(user: str, *words: str) -> list[str]:
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *words]


# Prints the signals of three seconds.
LISTEN = """
import asyncio
from dbus_fast import BusType, Message
from dbus_fast.aio import MessageBus

def hear(message):
    if (message.path or "").startswith("/org/blkrecov1"):
        print(message.member)

async def listen():
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    bus.add_message_handler(hear)
    ask = Message("org.freedesktop.DBus", "/", "org.freedesktop.DBus", "AddMatch", signature="s")
    ask.body = ["type='signal',path_namespace='/org/blkrecov1'"]
    await bus.call(ask)
    print("listening", flush=True)
    await asyncio.sleep(3)

asyncio.run(listen())
"""


def test_nobody_but_root_changes_anything_and_the_group_may_read(lab: Lab, client: Client) -> None:
    with running(lab):
        array, _vol = made(client, lab, drives=2)
        asked = ["busctl", "--system", "call", NAME]
        read = [*asked, array, PROPERTIES, "Get", "ss", ARRAY, "Name"]
        change = [*asked, array, ARRAY, "Stop", "a{sv}", "0"]
        answers = [
            subprocess.run(
                as_user(user, *words),
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
        listening = {
            user: subprocess.Popen(as_user(user, sys.executable, "-c", LISTEN), stdout=subprocess.PIPE)
            for user in ("reader", "stranger")
        }
        for process in listening.values():
            assert process.stdout is not None
            assert process.stdout.readline() == b"listening\n"
        client.call(client.named(DRIVE, "d1"), DRIVE, "SetHotSpare", "ba{sv}", False, {})
        client.call(array, ARRAY, "Configure", "a{sv}", {"scrub": Variant("s", "weekly")})
        heard = {user: process.communicate(timeout=DEADLINE_S)[0].decode() for user, process in listening.items()}
        assert ("PropertiesChanged" in heard["reader"], heard["stranger"]) == (True, "")


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
