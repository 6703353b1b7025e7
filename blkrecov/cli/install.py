"""blkrecov install, uninstall"""

import click

from blkrecov import installing
from blkrecov.cli.common import common, options, say, show_json, show_plan, warn


def generated() -> dict[str, str]:
    """The manual pages and completions, by their files' names."""
    # They are made of the command line's tree, in which this command is.
    from blkrecov import manual
    from blkrecov.cli.main import cli

    return {**manual.pages(cli), **manual.completions(cli)}


@click.command("install")
@click.option("--plan", is_flag=True, help="Show what would be done, and do nothing.")
@common
def install(plan: bool) -> None:
    """Make an installation by pip a part of this machine: systemd's units, udev's rules, the D-Bus policy, manual pages.

    They start the Python environment that this command runs in. After an upgrade, or in a new environment, run it again. It is
    not for the Debian package, which brings all that.

    \b
    Examples:
      python3 -m venv /opt/blkrecov && /opt/blkrecov/bin/pip install blkrecov
      /opt/blkrecov/bin/blkrecov install
      systemctl enable --now blkrecovd
    """
    installing.refuse_package()
    installing.refuse_machine(acting=not plan)
    installing.refuse_interpreter()
    wanted = installing.wanted(generated())
    found = installing.plan(wanted)
    for danger in installing.dangers():
        warn(danger)
    written, removed = [file.path for file in found.write], list(found.remove)
    if plan:
        commands = installing.telling(install=True)
        show_plan(
            [
                *(f"write {path}" for path in written),
                *(f"remove {path}" for path in removed),
                *(f"run {' '.join(command)}" for command in commands),
            ]
        )
        return
    installing.install(wanted, found)
    if options().json:
        show_json({"written": written, "removed": removed})
        return
    for path in written:
        say(f"wrote {path}")
    for path in removed:
        say(f"removed {path}")
    if not written and not removed:
        say("all files are as they should be")
    say(f"what is left to do: systemctl enable --now {installing.SERVICE}; where it runs already, systemctl restart it")


@click.command("uninstall")
@click.option("--plan", is_flag=True, help="Show what would be done, and do nothing.")
@common
def uninstall(plan: bool) -> None:
    """Take back what blkrecov install has written. Arrays stay up, and nothing of them is forgotten.

    The service is stopped first. Nobody takes the arrays out of the kernel at the machine's shutdown any more: blkrecov array
    stop does.
    """
    installing.refuse_machine(acting=not plan)
    ours = installing.manifest()
    if plan and ours.files:
        commands = installing.telling(install=False)
        show_plan(
            [
                f"run systemctl disable --now {installing.SERVICE}",
                *(f"remove {path}" for path in ours.files),
                *(f"run {' '.join(command)}" for command in commands),
            ]
        )
        return
    installing.uninstall(ours)
    if options().json:
        show_json({"removed": list(ours.files)})
        return
    for path in ours.files:
        say(f"removed {path}")
    if not ours.files:
        say("blkrecov install has written nothing here")
