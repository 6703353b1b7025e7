"""blkrecov array"""

import click

from blkrecov import engine, rows
from blkrecov.bus.interfaces import ARRAY
from blkrecov.cli import drive, lun
from blkrecov.cli.access import array_view, request
from blkrecov.cli.common import common, daemon, options, rates, reached, say, show_json, show_plan, table
from blkrecov.model import Schedule
from blkrecov.settings import Settings
from blkrecov.units import format_size
from blkrecov.views import Json


@click.group("array")
def group() -> None:
    """Arrays: sets of drives that know each other."""


@group.command("create")
@click.argument("name")
@common
def create(name: str) -> None:
    """Make an array. It is written onto its drives, from the first one on that is added."""
    with daemon() as running:
        uuid = running.create(name) if running else engine.create_array(Settings.load(), name).uuid
    if options().json:
        show_json({"name": name, "uuid": str(uuid), "drives": [], "luns": []})
    say(f"array {name} made; add drives with: blkrecov drive add PATH --size SIZE")


@group.command("list")
@common
def list_() -> None:
    """Show the arrays of this machine."""
    with daemon() as running:
        arrays = running.arrays() if running else found()
    if options().json:
        show_json(arrays)
        return
    table(
        [
            ("array", "left"),
            ("uuid", "left"),
            ("drives", "right"),
            ("found", "right"),
            ("LUNs", "right"),
            ("trouble", "left"),
        ],
        [
            (
                row["name"],
                row["uuid"],
                str(row["drives"]),
                str(row["found"]),
                str(row["luns"]),
                row["trouble"] or ("stopped" if row["stopped"] else ""),
            )
            for row in arrays
        ],
    )


def found() -> list[Json]:
    """The arrays of this machine, as far as this command finds them by itself."""
    settings = Settings.load()
    return [rows.found(settings, array) for array in engine.list_arrays(settings)]


@group.command("show")
@common
def show() -> None:
    """Show an array with its drives and LUNs. Brings up what is down."""
    with reached() as array:
        view = array_view(array)
    if options().json:
        show_json(view)
        return
    say(f"array {view['name']}  {view['uuid']}  configuration {view['sequence']}")
    say(f"  {_settings(view)}")
    drive.show_table(view["drives"])
    lun.show_table(view["luns"])


def _settings(view: Json) -> str:
    auto = {None: "where there is a hot spare", True: "on", False: "off"}[view["auto_recover"]]
    rates = [
        f"at {word} {format_size(view[key])}/s"
        for word, key in (("least", "rate_min"), ("most", "rate_max"))
        if view[key]
    ]
    return f"recovers by itself: {auto}; scrubs by itself: {view['scrub']}; rate: {', '.join(rates) or 'default'}"


@group.command("set")
@click.option(
    "--auto-recover",
    type=click.Choice(["on", "off", "default"]),
    help="Whether lost members are recovered without being asked for; by default where there is a hot spare.",
)
@click.option("--scrub", type=click.Choice([item.value for item in Schedule]), help="How often LUNs are scrubbed.")
@rates
@click.option("--plan", is_flag=True, help="Show the steps and take none.")
@common
def set_(auto_recover: str | None, scrub: str | None, rate_min: int | None, rate_max: int | None, plan: bool) -> None:
    """Change how an array looks after itself. What is not given stays as it is."""
    if (auto_recover, scrub, rate_min, rate_max) == (None, None, None, None):
        raise click.UsageError("nothing to set: give at least one option")
    wanted = request(ARRAY, "Configure", auto_recover=auto_recover, scrub=scrub, rate_min=rate_min, rate_max=rate_max)
    with reached() as array:
        if plan:
            show_plan(array.plan(wanted))
            return
        array.call(wanted)
        view = array_view(array)
    if options().json:
        show_json(view)
    say(f"array {view['name']}  {_settings(view)}")


@group.command("stop")
@common
def stop() -> None:
    """Take an array out of the kernel in good order. The next command that needs it brings it up again."""
    with reached() as array:
        head = array.head()
        array.call(request(ARRAY, "Stop"))
    if options().json:
        show_json({"name": head["name"], "uuid": head["uuid"]})
    say(f"array {head['name']} stopped")
