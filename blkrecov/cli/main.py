"""blkrecov: the program."""

import logging
import os
import sys

import click

from blkrecov import journal
from blkrecov.cli import array, drive, events, install, lun, objects, operations, page83, snapshot, status, task, top
from blkrecov.cli.common import Options, common, tell_error, tell_usage
from blkrecov.errors import BlkrecovError, Code, resources


class Unexpected(BlkrecovError):
    """What nobody thought of. Its traceback is shown with --verbose."""

    code = Code.E_UNEXPECTED
    default_remedy = "run it again with --verbose and report what it says"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="blkrecov", message="%(prog)s %(version)s")
@common
def cli() -> None:
    """A software disk array: LUNs made of drives by the kernel's device-mapper, each a SCSI disk with an identity of its own."""


cli.add_command(array.group)
cli.add_command(drive.group)
cli.add_command(lun.group)
cli.add_command(snapshot.group)
cli.add_command(task.group)
cli.add_command(page83.group)
cli.add_command(status.status)
cli.add_command(top.top)
cli.add_command(events.events)
cli.add_command(objects.objects)
cli.add_command(install.install)
cli.add_command(install.uninstall)
for command in operations.COMMANDS:
    cli.add_command(command)


def main() -> None:
    """The entry point: every ending has an exit status, and every error its words."""
    # What happens while a command runs is in its result, and kept: blkrecov events.
    journal.log_as("blkrecov", logging.WARNING)
    options = Options(json="--json" in sys.argv[1:])
    sys.exit(run(options))


def run(options: Options) -> int:
    try:
        # Outside its standalone mode click gives the status of Context.exit() back, and else what the command returns: None.
        with resources():
            return cli.main(prog_name="blkrecov", standalone_mode=False, obj=options) or 0
    except BlkrecovError as error:
        tell_error(error, as_json=options.json)
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path.removeprefix("blkrecov").strip() if error.ctx else ""
        message = " ".join(error.format_message().split())
        tell_usage(f"{command}: {message}" if command else message, as_json=options.json)
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        # Whoever read us has what it wanted; the interpreter must not complain about its last flush either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.verbose:
            raise
        tell_error(Unexpected(f"{type(error).__name__}: {error}"), as_json=options.json)
        return 1


if __name__ == "__main__":
    main()
