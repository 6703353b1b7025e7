"""What the rest of the machine is told of us: every file has its place, and in it are the commands of whoever installed it."""

from pathlib import Path

import pytest

from blkrecov import placement
from blkrecov.cli.install import generated
from blkrecov.errors import InvalidArgument
from blkrecov.installing import templates
from blkrecov.placement import DEBIAN, LOCAL, Changes, File, Programs, changes, files

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = Programs.of_environment(
    "/opt/blkrecov/bin/python", "/opt/blkrecov/lib/python3.11/site-packages", on_path=False
)


def by_path(found: tuple[File, ...]) -> dict[str, File]:
    return {file.path: file for file in found}


def test_nothing_that_a_package_brings_lies_elsewhere() -> None:
    """What is told to a machine is in the wheel, or it would be missing where there is no Debian package."""
    assert [path.name for path in (ROOT / "packaging").iterdir()] == ["debian"]


@pytest.mark.parametrize("places", [DEBIAN, LOCAL], ids=["DEBIAN", "LOCAL"])
def test_every_file_has_a_place_of_its_own(places: dict[placement.Reader, str]) -> None:
    """Two that went to one path would be one."""
    texts = {**templates(), **generated()}
    assert len(by_path(files(places, Programs.of_package(), texts))) == len(texts)


def test_a_file_that_nobody_reads_is_refused() -> None:
    """It was forgotten in the table."""
    with pytest.raises(LookupError, match=r"notes\.txt"):
        files(LOCAL, ENVIRONMENT, {"notes.txt": ""})


def test_units_start_the_environment_that_was_installed() -> None:
    """Isolated, and not before it is mounted."""
    found = by_path(files(LOCAL, ENVIRONMENT, templates()))
    service = found["/etc/systemd/system/blkrecovd.service"].text.splitlines()
    assert "ExecStart=/opt/blkrecov/bin/python -I -m blkrecov.daemon" in service
    arrays = found["/etc/systemd/system/blkrecov-arrays.service"].text.splitlines()
    assert "ExecStop=/opt/blkrecov/bin/python -I -m blkrecov.boot stop" in arrays
    assert "RequiresMountsFor=/var/lib/blkrecov /opt/blkrecov/bin /opt/blkrecov/lib/python3.11/site-packages" in arrays


def test_a_mark_that_is_somebody_else_s_stays() -> None:
    """@module is a set of system calls, @BLKRECOV_LUN@ a field of the journal's."""
    (file,) = files(LOCAL, Programs.of_package(), {"x.catalog": "@module @BLKRECOV_LUN@ @BOOT@ @SUBJECT@"})
    assert file.text == "@module @BLKRECOV_LUN@ /usr/lib/blkrecov/boot @SUBJECT@"


def test_rules_name_the_helper_by_its_path() -> None:
    """udev looks for what has none below /usr/lib/udev only (udev(7), PROGRAM)."""
    found = by_path(files(LOCAL, ENVIRONMENT, templates()))
    assert found["/usr/local/lib/udev/blkrecov_id"].mode == 0o755
    assert (
        'IMPORT{program}="/usr/local/lib/udev/blkrecov_id drive $devnode"'
        in found["/etc/udev/rules.d/61-blkrecov.rules"].text
    )


def test_the_command_is_where_people_look_unless_it_is_already() -> None:
    """An environment's own directory is in nobody's path."""
    assert by_path(files(LOCAL, ENVIRONMENT, {}))["/usr/local/bin/blkrecov"].text == (
        '#!/bin/sh\nexec /opt/blkrecov/bin/python -I -m blkrecov.cli.main "$@"\n'
    )
    there = Programs.of_environment("/usr/bin/python3", "/usr/local/lib/python3.11/dist-packages", on_path=True)
    assert files(LOCAL, there, {}) == ()


@pytest.mark.parametrize(
    "path", ["/home/a b/bin/python", "/opt/100%/bin/python", "/opt/$x/python", "/opt/x@BOOT@", "python"]
)
def test_a_path_that_would_not_mean_itself_is_refused(path: str) -> None:
    """A unit, a rule and a shell's command quote in three ways."""
    with pytest.raises(InvalidArgument, match="cannot be written into units"):
        Programs.of_environment(path, "/opt/blkrecov/lib", on_path=True)


def test_what_is_there_already_is_not_written_again() -> None:
    """Its permissions count as well."""
    same, other_mode = File("/a", "text", 0o644), File("/b", "text", 0o755)
    present = {"/a": same, "/b": File("/b", "text", 0o644)}
    assert changes([same, other_mode], present, {"/a", "/b"}) == Changes((other_mode,), (), ())


def test_what_is_no_longer_wanted_goes() -> None:
    """An earlier version's, if it is there still."""
    assert changes([], {"/a": File("/a", "", 0o644)}, {"/a", "/gone"}) == Changes((), ("/a",), ())


def test_a_file_of_somebody_else_s_is_left_alone() -> None:
    """It has our name and another text; with our text it is as good as ours."""
    file = File("/a", "ours", 0o644)
    assert changes([file], {"/a": File("/a", "theirs", 0o644)}, ()).strange == ("/a",)
    assert changes([file], {"/a": file}, ()) == Changes((), (), ())


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "who"),
    [
        (0o40755, 0, 0, None),
        (0o40775, 0, 0, None),
        (0o41777, 0, 0, None),
        (0o40777, 0, 0, "everybody"),
        (0o42775, 0, 50, "group 50"),
        (0o40700, 1000, 1000, "user 1000"),
    ],
)
def test_who_may_write_to_what_root_starts(mode: int, uid: int, gid: int, who: str | None) -> None:
    """/tmp is everybody's, but nobody can replace there what is another's."""
    assert placement.writer(mode, uid, gid) == who
