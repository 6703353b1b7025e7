"""The operations: recover, scrub, status."""

import click

from blkrecov.cli import drive, lun
from blkrecov.cli.array import array_view
from blkrecov.cli.common import common, opened, options, say, show_json, show_plan
from blkrecov.cli.task import follow, tell
from blkrecov.engine import Array
from blkrecov.model import Task
from blkrecov.proposal import Proposal


@click.command("recover")
@click.argument("name", metavar="LUN")
@click.option("--spare", metavar="DRIVE", help="The drive to substitute for the lost one.")
@click.option("--no-wait", is_flag=True, help="Print the task and return; the kernel goes on.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def recover(name: str, spare: str | None, no_wait: bool, plan: bool) -> None:
    """Bring a degraded LUN back to full redundancy.

    A lost member is substituted: by the drive you name, else by a hot spare, else by free space on a drive that the LUN does
    not use. Members that are out of sync, and parity that is wrong, are put right in place.
    """
    with opened() as array:
        proposal, task = array.propose_recover(name, spare)
        _run(array, proposal, task, plan=plan, no_wait=no_wait)


@click.command("scrub")
@click.argument("name", metavar="LUN")
@click.option("--repair", is_flag=True, help="Rewrite what disagrees, then check again.")
@click.option("--no-wait", is_flag=True, help="Print the task and return; the kernel goes on.")
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def scrub(name: str, repair: bool, no_wait: bool, plan: bool) -> None:
    """Read all members of a LUN and count the places where they disagree."""
    with opened() as array:
        proposal, task = array.propose_scrub(name, repair=repair)
        _run(array, proposal, task, plan=plan, no_wait=no_wait)


def _run(array: Array, proposal: Proposal, task: Task, *, plan: bool, no_wait: bool) -> None:
    if plan:
        show_plan(array.plan(proposal))
        return
    say(proposal.why)
    started = array.start(proposal, task)
    if no_wait:
        tell(started)
        return
    tell(follow(array, started.id))


@click.command("status")
@click.pass_context
@common
def status(context: click.Context) -> None:
    """One screen. The exit status is 0 only if every drive is online and every LUN healthy."""
    with opened() as array:
        view = array_view(array)
        busy = [
            f"task {task.id}: {task.kind.value} of {' '.join(task.objects)}"
            for task in array.document.tasks
            if not task.state.ended
        ]
    well = all(item["status"] == "online" for item in view["drives"]) and all(
        item["health"] == "healthy" for item in view["luns"]
    )
    if options().json:
        show_json({**view, "healthy": well})
    else:
        say(f"array {view['name']}: {'all is healthy' if well else 'not all is healthy'}")
        drive.show_table(view["drives"])
        lun.show_table(view["luns"])
        for line in busy:
            say(line)
    context.exit(0 if well else 1)


COMMANDS = (recover, scrub, status)
