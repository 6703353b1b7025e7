"""The command line beside blkrecovd: it asks the daemon, and nobody who reads what it says could tell."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from blkrecov.bus.interfaces import ARRAY, LUN, TASK
from blkrecov.bus.objects import ROOT
from tests.kernel.buslab import HERE, LUN_SIZE, Client, made, running, slowly
from tests.kernel.lab import DEADLINE_S, Answer, Lab, Slow, blkrecov, checksum, fill
from tests.kernel.lab import made as lab_made

# What is asked, in this order: {d} is the directory of the drives. Each command is in here, and each way in which it answers.
STORY = """
array create lab
array create lab
array list
drive add {d}/d0 --size 40M --name d0 --plan
drive add {d}/d0 --size 40M --name d0
drive add {d}/d1 --size 40M --name d1 --json
drive add {d}/d2 --size 40M --name d2
drive add {d}/d3 --size 40M --name d3 --json
drive add {d}/nowhere/d4 --size 40M
drive add {d}/d0
drive add {d}/x --size 9000P
drive list
drive show d0
drive show d9
lun create vol --layout raid1 --size 8M --drives d0,d1 --plan
lun create vol --layout raid1 --size 8M --drives d0,d1
lun create vol --layout raid1 --size 8M
lun create huge --layout raid5 --size 8T
lun create huge --layout raid5 --size 8T --json
lun create five --layout raid5 --size 8M --drives d0,d1,d2 --json
lun create plain --layout linear --size 4M --no-export
lun extend plain --size 8M
lun extend plain --size 1M
lun list
lun list --json
lun show vol
lun show
lun show plain --json
lun show vol --information
scrub vol
scrub vol --plan
snapshot create vol copy five other --plan
snapshot create vol copy five other
snapshot create vol whole --plex
snapshot list
snapshot extend copy --store 6M
snapshot extend vol --store 6M
resync copy:vol --plan --undo
resync copy:vol other:five --verify
resync copy:vol --force 0123
resync copy:nothing:at:all
resync vol
snapshot delete other
snapshot delete vol
array set --auto-recover off --rate-max 500M
array set --scrub weekly --plan
array show
drive fail d1
drive fail d1
status
recover vol --spare d3 --plan
recover vol --spare d3
recover vol --spare d9
recover five --no-wait --json
task wait 7
task list
task show 1
task show 1 --json
task show 99
task cancel 1
task rate 1 --rate-max 1M
drive reconnect d1 --plan
drive reconnect d1
drive reconnect d1 --path {d}/d2
drive fail d2 --slow 1
drive reconnect d2
drive spare d1
drive spare d1 --off
drive trust d1 --plan
drive trust d1
drive replace d0 d1 --plan
drive replace d0
drive remove d0
drive remove d0
page83 show vol --json
page83 check
objects
status
status --json
top
reenumerate
refresh
lun delete plain --plan
lun delete plain
lun delete plain
lun delete vol
array stop
lun list
array list --json
"""
# A few of them, which take a tenth of the time.
SHORT = """
array create lab
array create lab
array list
drive add {d}/d0 --size 24M --name d0 --plan
drive add {d}/d0 --size 24M --name d0
drive add {d}/d1 --size 24M --name d1 --json
drive add {d}/d2 --size 24M --name d2
drive add {d}/d0
drive show d9
lun create vol --layout raid1 --size 8M --drives d0,d1 --plan
lun create vol --layout raid1 --size 8M --drives d0,d1
lun create huge --layout raid5 --size 8T --json
lun list
lun show vol --information
snapshot create vol copy
resync copy:vol --plan --undo
resync vol
drive fail d1
recover vol --spare d9
recover vol
task list
task show 1 --json
task show 99
task cancel 1
page83 check
objects
status
array set --scrub weekly
lun delete copy
lun delete copy
array stop
status
"""
_VARYING = (
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
    (r"6001405[0-9a-f]{25}", "NAA"),
    (r"[0-9a-f]{16,}", "HEX"),
    (r"_[0-9a-f]{8}\b", "_ID"),
    (r"/dev/(sd[a-z]+|loop\d+|dm-\d+)", "/dev/N"),
    (r"\d\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d", "MOMENT"),
    (r'"(kernel|process|taken|sequence|last_known_state|lastKnownState|read|written|busy|done)": [\d.]+', r'"\1": N'),
    (r"(the kernel moved|this program|configuration) [\d.]+( \w?i?B)?", r"\1 N"),
    (r"[\d.]+ %", "N %"),
)


def told(lab: Lab, story: str) -> list[tuple[str, int, str, str]]:
    """What each command of the story says, without what differs between any two runs; progress is no part of it."""
    answers = []
    for line in story.strip().splitlines():
        answer = blkrecov(lab, *line.format(d=lab.directory).split())
        err = "\n".join(each for each in answer.err.splitlines() if not re.match(r"  \w+ +\d+ %", each))
        answers.append((line, answer.status, cleaned(lab, answer.out), cleaned(lab, err)))
    return answers


def cleaned(lab: Lab, text: str) -> str:
    text = text.replace(lab.directory.name.partition("-")[2], "DIRECTORY")
    for pattern, word in _VARYING:
        text = re.sub(pattern, word, text)
    # Tables are as wide as what is in them.
    return re.sub(r"[ ─]+", " ", text)


@pytest.mark.parametrize(
    "story", [pytest.param(STORY, id="all", marks=pytest.mark.long), pytest.param(SHORT, id="some")]
)
def test_commands_say_the_same_with_and_without_the_daemon(ext4: Path, client: Client, story: str) -> None:
    heard = {}
    for wanted in (False, True):
        with lab_made(ext4) as lab, running(lab) if wanted else nullcontext():
            lab.drives.append("d1")  # To be stopped at the end.
            began = time.monotonic()
            heard[wanted] = told(lab, story)
            word = "asking the daemon" if wanted else "alone"
            print(f"client: {len(heard[wanted])} commands {word}: {time.monotonic() - began:.1f} s")
            assert any(each.path.startswith(ROOT) for each in client.heard) is wanted
    for alone, asking in zip(heard[False], heard[True], strict=True):
        assert asking == alone
    assert {status for _, status, _, _ in heard[True]} == {0, 1}


def program(lab: Lab, *words: str, user: str = "") -> subprocess.Popen[str]:
    """The command line as a process of its own."""
    who = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
    return subprocess.Popen(
        [*who, sys.executable, "-m", "blkrecov.cli.main", *words],
        cwd=HERE,
        env={**os.environ, **lab.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> Answer:
    out, err = process.communicate(timeout=DEADLINE_S)
    return Answer(process.returncode, out, err)


def test_a_command_is_interrupted_and_its_task_goes_on(lab: Lab, client: Client) -> None:
    with running(lab):
        array, vol = made(client, lab)
        slowly(array, client)
        scrub = program(lab, "scrub", "vol")
        client.until("the scrub", lambda: client.get(vol, LUN, "Task") != "/")
        task = client.get(vol, LUN, "Task")
        assert scrub.stderr is not None
        assert re.match(r"  check +\d+ %", scrub.stderr.readline())
        scrub.send_signal(signal.SIGINT)
        answer = ended(scrub)
        assert answer.status == 130
        assert "the task goes on; wait for it with: blkrecov task wait 1" in answer.err
        assert client.get(task, TASK, "State") == "in_progress"
        waited = blkrecov(lab, "task", "wait", "1", "--timeout", "0.2", "--json")
        assert (waited.status, waited.error["code"]) == (1, "VDS_E_TIMEOUT")
        assert blkrecov(lab, "task", "wait", "1", "--json").json["state"] == "completed"


def test_a_command_waits_for_a_daemon_that_is_restarted(lab: Lab, client: Client) -> None:
    """As an upgrade does it; and where none comes again, the next command does what the daemon would have done."""
    with running(lab) as first:
        array, vol = made(client, lab)
        digest = fill(client.get(vol, LUN, "Device"), LUN_SIZE, seed=1)
        client.call(client.named("org.blkrecov1.Drive", "d0"), "org.blkrecov1.Drive", "Fail", "a{sv}", {})
        slowly(array, client)
        recovery = program(lab, "recover", "vol")
        assert recovery.stderr is not None
        assert re.match(r"  rebuild +\d+ %", recovery.stderr.readline())
        first.kill()
    with running(lab) as second:
        answer = ended(recovery)
        assert (answer.status, "completed, 100 %" in answer.out) == (0, True), answer.err
        assert checksum(client.get(vol, LUN, "Device")) == digest
        scrub = program(lab, "scrub", "vol", "--no-wait")
        assert ended(scrub).status == 0
        second.kill()
    assert blkrecov(lab, "task", "wait", "2", "--json").json["state"] == "completed"


def test_members_of_the_group_look_and_do_not_touch(lab: Lab, client: Client) -> None:
    with running(lab):
        made(client, lab)
        assert blkrecov(lab, "drive", "fail", "d2").status == 0
        assert blkrecov(lab, "drive", "reconnect", "d2").status == 0
        answers = {
            (user, words): ended(program(lab, *words.split(), user=user))
            for user, words in (
                ("reader", "status"),
                ("reader", "lun show vol"),
                ("reader", "events -n 1"),
                ("reader", "lun delete vol"),
                ("stranger", "status"),
            )
        }
        assert [answer.status for answer in answers.values()] == [0, 0, 0, 1, 1]
        assert answers["reader", "status"].out.startswith("array lab is healthy")
        assert "naa.6001405" in answers["reader", "lun show vol"].out
        assert "drive d2" in answers["reader", "events -n 1"].out
        following = program(lab, "events", "-f", "-n", "0", user="reader")
        time.sleep(3)
        assert blkrecov(lab, "drive", "fail", "d2").status == 0
        assert following.stdout is not None
        assert "drive_failed: drive d2" in following.stdout.readline()
        following.send_signal(signal.SIGINT)
        following.communicate(timeout=DEADLINE_S)
        for answer in list(answers.values())[3:]:
            assert "E_ACCESSDENIED" in answer.err
            assert "the group blkrecov" in answer.err
        assert len(client.get(client.named(ARRAY, "lab"), ARRAY, "Luns")) == 1


def test_what_is_stuck_is_told_and_what_was_known_shown(slow: Slow, lab: Lab, client: Client) -> None:
    with running(lab):
        made(client, lab)
        path = str(slow.directory / "far")
        assert blkrecov(lab, "drive", "add", path, "--size", "40M", "--name", "far").status == 0
        lab.drives.append("far")
        slow.delay(300_000)
        try:
            stuck = program(lab, "lun", "create", "away", "--layout", "linear", "--size", "1M", "--drives", "far")
            client.until("the array to be stuck", lambda: stale(lab))
            began = time.monotonic()
            answer = blkrecov(lab, "lun", "list", "--json")
            took_s = time.monotonic() - began
        finally:
            slow.delay(0)  # What waits is let go.
        print(f"client: a question beside an array that is stuck was answered after {took_s:.1f} s")
        assert (answer.status, [lun["name"] for lun in answer.json]) == (0, ["vol"])
        assert "warning: array lab is" in answer.err
        assert "this is what was known before" in answer.err
        assert took_s < 10
        assert ended(stuck).status == 0


def stale(lab: Lab) -> bool:
    return "known before" in blkrecov(lab, "lun", "list").err
