"""The operations: recover, scrub, resync, and what keeps an array as it should be."""

import signal
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import click

from blkrecov import journal
from blkrecov.bus.interfaces import ARRAY, LUN
from blkrecov.cli import complete, drive, lun
from blkrecov.cli.access import Named, array_view, request
from blkrecov.cli.common import common, opened, options, rates, reached, say, show_json, show_plan
from blkrecov.cli.task import run, run_begun
from blkrecov.page83 import information


@click.command("recover")
@click.argument("name", metavar="LUN", shell_complete=complete.luns)
@click.option(
    "--spare", metavar="DRIVE", shell_complete=complete.drives, help="The drive to substitute for the lost one."
)
@rates
@click.option("--no-wait", is_flag=True, help="Print the task and return; the kernel goes on.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def recover(
    name: str, spare: str | None, rate_min: int | None, rate_max: int | None, no_wait: bool, plan: bool
) -> None:
    """Bring a degraded LUN back to full redundancy.

    A lost member is substituted: by the drive you name, else by a hot spare, else by free space on a drive that the LUN does
    not use. Members that are out of sync, and parity that is wrong, are put right in place. A member on a drive that is
    failing but can be read still is copied to another drive underneath. At the end it is verified.

    \b
    Examples:
      blkrecov recover data
      blkrecov recover data --spare d7 --rate-max 100M --no-wait
    """
    drive = Named("drive", spare) if spare else None
    wanted = request(LUN, "Recover", of=name, spare=drive, rate_min=rate_min, rate_max=rate_max)
    with reached() as array:
        run(array, wanted, plan=plan, no_wait=no_wait)


@click.command("scrub")
@click.argument("name", metavar="LUN", shell_complete=complete.luns)
@click.option("--repair", is_flag=True, help="Rewrite what disagrees, then check again.")
@click.option("--no-wait", is_flag=True, help="Print the task and return; the kernel goes on.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def scrub(name: str, repair: bool, no_wait: bool, plan: bool) -> None:
    """Read all members of a LUN and count the places where they disagree."""
    with reached() as array:
        run(array, request(LUN, "Scrub", of=name, repair=repair), plan=plan, no_wait=no_wait)


@click.command("resync")
@click.argument("pairs", metavar="SHADOW[:LUN]...", nargs=-1, shell_complete=complete.pairs)
@click.option("--luns", "file", metavar="FILE", type=click.File("rb"), help="The pairs as JSON of VDS_LUN_INFORMATION.")
@click.option("--revert-identity", is_flag=True, help="Give targets the original's disk signature, not their own.")
@click.option(
    "--undo", is_flag=True, help="Keep what is there until all is copied: a cancelled resync goes back to it."
)
@click.option("--verify", is_flag=True, help="Compare what was copied.")
@click.option("--no-volume-check", is_flag=True, help="Lose volumes of the target that the shadow copy has not.")
@click.option(
    "--force", metavar="NAA", multiple=True, help="The full page-83 id of a target that is to be restored anyway."
)
@click.option("--no-wait", is_flag=True, help="Print the task and return; the kernel goes on.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def resync(
    pairs: Sequence[str],
    file: BinaryIO | None,
    revert_identity: bool,
    undo: bool,
    verify: bool,
    no_volume_check: bool,
    force: Sequence[str],
    no_wait: bool,
    plan: bool,
) -> None:
    """Put shadow copies back onto LUNs: onto their origins, onto other LUNs, or onto new ones. All of them, or none.

    The kernel copies inside the array, and only what differs, as far as that is known. Targets are not ready to this machine
    meanwhile; shadow copies stay as they are. A target that was not restored whole stays not ready until a resync succeeds.

    \b
    Examples:
      blkrecov resync monday
      blkrecov resync monday:data tuesday:copy --undo --verify
    """
    wanted = {
        "undo": undo,
        "verify": verify,
        "no-volume-check": no_volume_check,
        "revert-identity": revert_identity,
        "force": tuple(force),
    }
    meant = list(given(pairs, file))
    with reached() as array:
        if plan:
            show_plan(array.plan_resync(meant, wanted))
            return
        run_begun(array, array.resync(meant, wanted), no_wait=no_wait)


def given(pairs: Sequence[str], file: BinaryIO | None) -> Iterator[tuple[str, str]]:
    """The pairs that a command names, and those in a file: {"sources": [...], "targets": [...]}. Names, or JSON."""
    for pair in pairs:
        source, _, target = pair.partition(":")
        yield source, target
    if file is not None:
        several = information.pairs_from_json(file.read())
        for one, other in zip(several.sources, several.targets, strict=True):
            yield information.to_json(one).decode(), information.to_json(other).decode()


@click.command("monitor")
@common
def monitor() -> None:
    """Look after an array until interrupted: recover what fails, as far as the array is set to, and scrub when it is due.

    It sleeps until the kernel tells of a failure. What it does is told here, and kept: blkrecov events.
    """
    from blkrecov.monitor import Monitor

    journal.show_events()
    with opened() as array:
        watching = Monitor(array)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: watching.end())
        say(f"looking after array {array.document.name}")
        watching.run()


@click.command("reenumerate")
@common
def reenumerate() -> None:
    """Look for the array's drives anew, wherever they may be."""
    with reached() as array:
        came, went, missing = array.call(request(ARRAY, "Reenumerate"))
        name, count = array.head()["name"], len(array.drives())
    if options().json:
        show_json({"arrived": came, "departed": went, "missing": missing})
    say(f"array {name}: {count - len(missing)} drives are there")
    if missing:
        say(f"  missing: {', '.join(missing)}")


@click.command("refresh")
@common
def refresh() -> None:
    """Read the properties of all that is known anew, and bring up what is down."""
    with reached() as array:
        array.call(request(ARRAY, "Refresh"))
        view = array_view(array)
    if options().json:
        show_json(view)
        return
    drive.show_table(view["drives"])
    lun.show_table(view["luns"])


COMMANDS = (recover, scrub, resync, monitor, reenumerate, refresh)
