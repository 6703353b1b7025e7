"""blkrecovd as the unit of its package, under systemd with a journal: what is told there and on the bus."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from blkrecov.bus.interfaces import DRIVE, LUN, TASK
from blkrecov.events import MESSAGE_IDS, EventKind, EventLog
from tests.kernel.buslab import HERE, Client, made
from tests.kernel.lab import Lab, run
from tests.kernel.test_mounting import systemd

UNIT: Final = "blkrecovd.service"
Entry = dict[str, Any]


@dataclass(frozen=True)
class Service:
    """Runs commands where systemd and the journal are."""

    inside: Callable[..., str]
    lab: Lab

    def blkrecov(self, *words: str) -> str:
        settings = [f"{name}={value}" for name, value in self.lab.environment.items()]
        return self.inside("env", *settings, sys.executable, "-m", "blkrecov.cli.main", *words)

    def entries(self, *words: str) -> list[Entry]:
        self.inside("journalctl", "--sync")
        found = self.inside("journalctl", "--output=json", "--all", *words)
        return [json.loads(line) for line in found.splitlines()]


@contextmanager
def placed(path: Path, text: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    try:
        yield
    finally:
        path.unlink()


@pytest.fixture
def service(lab: Lab, bus: None) -> Iterator[Service]:
    """The unit with the working tree's program, the lab's settings, and nothing that it waits for."""
    settings = {**lab.environment, "DBUS_SYSTEM_BUS_ADDRESS": os.environ["DBUS_SYSTEM_BUS_ADDRESS"]}
    words = "\n".join(f'Environment="{name}={value}"' for name, value in settings.items())
    drop_in = (
        "[Unit]\nDefaultDependencies=no\n"
        f"[Service]\nWorkingDirectory={HERE}\nExecStart=\nExecStart={sys.executable} -m blkrecov.daemon\n{words}\n"
    )
    units = Path("/etc/systemd/system")
    with (
        placed(units / UNIT, (HERE / "blkrecov/data" / UNIT).read_text().replace("@DAEMON@", "/bin/false")),
        placed(units / f"{UNIT}.d/lab.conf", drop_in),
        placed(
            Path("/usr/lib/systemd/catalog/blkrecov.catalog"), (HERE / "blkrecov/data/blkrecov.catalog").read_text()
        ),
        systemd() as inside,
    ):
        run("journalctl", "--update-catalog")
        inside("systemctl", "start", "systemd-journald.service")
        start(inside)
        yield Service(inside, lab)
        inside("systemctl", "stop", UNIT)


def start(inside: Callable[..., str]) -> None:
    try:
        inside("systemctl", "start", UNIT)
    except AssertionError:
        print(inside("journalctl", "--no-pager"))
        raise


def signals(client: Client, array: str) -> list[list[Any]]:
    return [each.body for each in client.heard if (each.path, each.member) == (array, "Event")]


def test_each_event_is_in_the_journal_once(service: Service, lab: Lab, client: Client) -> None:
    """Whoever makes it, a command beside the daemon or the daemon. It has its facts, is explained, and is a signal on the bus;
    and nothing is told as text without priority.
    """
    array, vol = made(client, lab)
    service.blkrecov("drive", "fail", "d0")
    (failed,) = service.entries(f"MESSAGE_ID={MESSAGE_IDS[EventKind.DRIVE_FAILED]}")
    facts = {name: value for name, value in failed.items() if name.startswith("BLKRECOV_")}
    assert facts == {
        "BLKRECOV_KIND": "drive_failed",
        "BLKRECOV_ARRAY": "lab",
        "BLKRECOV_DRIVE": "d0",
        "BLKRECOV_REMEDY": "mend it and bring it back with: blkrecov drive reconnect d0",
    }
    assert (failed["PRIORITY"], failed["SYSLOG_IDENTIFIER"], failed["_TRANSPORT"]) == ("4", "blkrecovd", "journal")

    task = client.call(vol, LUN, "Recover", "a{sv}", {})
    assert client.call(task, TASK, "Wait", "a{sv}", {})[0] == "completed"
    (done,) = service.entries(f"MESSAGE_ID={MESSAGE_IDS[EventKind.RECOVERY_DONE]}")
    assert (done["_SYSTEMD_UNIT"], done["SYSLOG_IDENTIFIER"], done["PRIORITY"]) == (UNIT, "blkrecovd", "6")
    assert (done["BLKRECOV_LUN"], done["BLKRECOV_TASK"], done["BLKRECOV_CODE"]) == ("vol", "1", "S_OK")

    happened = [(event.kind.value, event.message) for event in EventLog(lab.state).read()]
    assert len(happened) > 5
    told = [(entry["BLKRECOV_KIND"], entry["MESSAGE"]) for entry in service.entries("BLKRECOV_ARRAY=lab")]
    assert sorted(told) == sorted(happened)
    assert service.entries(f"_SYSTEMD_UNIT={UNIT}", "_TRANSPORT=stdout") == []
    messages = [entry["MESSAGE"] for entry in service.entries("_TRANSPORT=journal") if entry["PRIORITY"] < "7"]
    assert len(messages) == len(set(messages))

    client.until("all signals", lambda: len(signals(client, array)) >= len(happened) - 2)
    heard = signals(client, array)
    assert [(kind, message) for kind, message, *_ in heard] == happened[-len(heard) :]
    objects = {kind: paths for kind, _, _, _, paths in heard}
    assert objects["drive_failed"] == [client.named(DRIVE, "d0")]
    assert objects["recovery_done"] == [vol, task]
    remedies = {kind: remedy for kind, _, remedy, _, _ in heard}
    assert (remedies["member_failed"], remedies["recovery_done"]) == ("run: blkrecov recover vol", "")

    shown = service.inside("journalctl", "--catalog", f"MESSAGE_ID={MESSAGE_IDS[EventKind.DRIVE_FAILED]}")
    assert "Subject: Drive d0 of array lab has failed or is away" in shown
    assert "blkrecov drive reconnect d0" in shown
