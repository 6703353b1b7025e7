"""Where things are on this machine."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from blkrecov.errors import InvalidArgument
from blkrecov.settings import (
    Address,
    Remembered,
    Settings,
    metrics_place,
    publish,
    published,
    remember,
    remembered,
    sequence_file,
    write_whole,
)

LAB = Remembered(UUID("a1a1a1a1-0000-4000-8000-00000000000a"), "lab", ("/srv/d0", "/srv/d1"))


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLKRECOV_STATE", raising=False)
    monkeypatch.delenv("BLKRECOV_DIRECTORIES", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "blkrecov.toml"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state")


def test_without_a_file_the_defaults_hold(file: Path) -> None:
    """Nothing has to be configured to try it."""
    found = Settings.load(file)
    assert (str(found.state), found.directories) == ("/var/lib/blkrecov", ("/var/lib/blkrecov/drives",))


def test_the_file_names_directories(file: Path) -> None:
    """They replace the default: whoever names places means those."""
    file.write_text('directories = ["/srv/a", "/srv/b"]\n')
    assert Settings.load(file).directories == ("/srv/a", "/srv/b")


def test_an_empty_file_changes_nothing(file: Path) -> None:
    """All of it is optional."""
    file.write_text("# nothing\n")
    assert Settings.load(file).directories == ("/var/lib/blkrecov/drives",)


@pytest.mark.parametrize("content", [b"directories = [", b'directories = "/srv"', b"directories = [1]", b"\xff\xfe"])
def test_a_file_that_cannot_be_understood_is_refused(file: Path, content: bytes) -> None:
    """To go on with the defaults would be to look for drives where they are not."""
    file.write_bytes(content)
    with pytest.raises(InvalidArgument, match=r"blkrecov\.toml"):
        Settings.load(file)


def test_the_environment_goes_before_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test, or a second array on one machine, needs no file."""
    file.write_text('directories = ["/srv/a"]\n')
    monkeypatch.setenv("BLKRECOV_DIRECTORIES", "/srv/b::/srv/c")
    monkeypatch.setenv("BLKRECOV_STATE", "/run/state")
    found = Settings.load(file)
    assert (str(found.state), found.directories) == ("/run/state", ("/srv/b", "/srv/c"))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", None),
        ('metrics = "127.0.0.1:9835"', Address("127.0.0.1", 9835)),
        ('metrics = "127.9.9.9:1"', Address("127.9.9.9", 1)),
        ('metrics = "[::1]:65535"', Address("::1", 65535)),
        ('metrics = "/run/blkrecov/metrics.sock"', Path("/run/blkrecov/metrics.sock")),
    ],
)
def test_metrics_are_served_to_this_machine(file: Path, content: str, place: Address | Path | None) -> None:
    """Nowhere, unless it is asked for."""
    file.write_text(content)
    assert metrics_place(file) == place


@pytest.mark.parametrize(
    "value",
    [
        *(
            '"0.0.0.0:9835"',
            '"192.0.2.1:9835"',
            '"[::]:9835"',
            '"[::ffff:127.0.0.1]:9835"',
            '":9835"',
            '"localhost:9835"',
        ),
        *('"127.0.0.1"', '"127.0.0.1:"', '"127.0.0.1:0"', '"127.0.0.1:65536"', '"127.0.0.1:-1"', '"127.0.0.1:http"'),
        *('"run/metrics.sock"', '""', "9835", "true", '["127.0.0.1:9835"]'),
    ],
)
def test_metrics_are_served_to_nobody_else(file: Path, value: str) -> None:
    """There is no password. A name may lead anywhere tomorrow. What is said has the value, and what may be given."""
    file.write_text(f"metrics = {value}\n")
    with pytest.raises(InvalidArgument, match=r"blkrecov\.toml: metrics = ") as refused:
        metrics_place(file)
    assert "127.0.0.1:9835" in refused.value.remedy


def test_a_mistake_in_what_the_daemon_is_told_stops_no_command(file: Path) -> None:
    """Arrays come up at boot, and are recovered, whatever is wrong with metrics."""
    file.write_text('metrics = "nonsense"\n')
    assert Settings.load(file).directories == ("/var/lib/blkrecov/drives",)


def test_what_is_remembered_is_known_again(settings: Settings) -> None:
    """So that drives outside the configured directories are found after a restart."""
    remember(settings, LAB)
    assert remembered(settings) == (LAB,)


def test_the_state_directory_is_for_root_alone(settings: Settings) -> None:
    """Paths of drives tell where somebody's data is."""
    remember(settings, LAB)
    assert settings.state.stat().st_mode & 0o777 == 0o700


def test_remembering_the_same_again_writes_nothing(settings: Settings) -> None:
    """It happens at every command."""
    remember(settings, LAB)
    file = settings.state / f"{LAB.uuid}.json"
    before = file.stat().st_ino
    remember(settings, LAB)
    assert file.stat().st_ino == before


def test_newer_paths_replace_older_ones(settings: Settings) -> None:
    """One file per array, replaced whole: no half-written hint is ever read."""
    remember(settings, LAB)
    moved = Remembered(LAB.uuid, "lab", ("/srv/new/d0",))
    remember(settings, moved)
    assert remembered(settings) == (moved,)
    assert [path.name for path in settings.state.iterdir()] == [f"{LAB.uuid}.json"]


def test_arrays_of_one_name_are_both_remembered(settings: Settings) -> None:
    """A drive that was put in may be of another machine's array, whose name is its own business."""
    other = Remembered(UUID(int=5), "lab", ("/media/u0",))
    remember(settings, LAB)
    remember(settings, other)
    assert remembered(settings) == (other, LAB)


def test_what_version_0_1_remembered_is_known_and_renamed(settings: Settings) -> None:
    """Its files are named after arrays. A file of that name that is another array's stays."""
    settings.state.mkdir()
    old = settings.state / "lab.json"
    old.write_text(json.dumps({"uuid": str(LAB.uuid), "name": "lab", "paths": ["/srv/d0"]}))
    assert remembered(settings) == (Remembered(LAB.uuid, "lab", ("/srv/d0",)),)
    remember(settings, Remembered(UUID(int=5), "lab"))
    assert old.exists()
    remember(settings, LAB)
    assert not old.exists()
    assert remembered(settings) == (Remembered(UUID(int=5), "lab"), LAB)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"name": "x"}', b'{"uuid": "x", "name": "x", "paths": []}', b"\xff"],
)
def test_a_damaged_hint_is_passed_over(settings: Settings, content: bytes) -> None:
    """The labels on the drives are the truth; a lost hint costs a longer search."""
    remember(settings, LAB)
    (settings.state / "bad.json").write_bytes(content)
    assert remembered(settings) == (LAB,)


def test_a_hint_with_a_number_for_a_uuid_is_passed_over(settings: Settings) -> None:
    """UUID() asks a number for its replace() and ends in AttributeError."""
    remember(settings, LAB)
    (settings.state / "bad.json").write_bytes(b'{"uuid": 5, "name": "x", "paths": []}')
    assert remembered(settings) == (LAB,)


def test_without_a_state_directory_nothing_is_remembered(settings: Settings) -> None:
    """Reading makes no directory."""
    assert remembered(settings) == ()
    assert not settings.state.exists()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can be written, though it can be made and cut: as where there is no room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_version_that_cannot_be_written_leaves_the_one_before(settings: Settings) -> None:
    """An empty file would say that this machine knows of none, and an older configuration would be believed."""
    settings.state.mkdir()
    publish(settings, LAB.uuid, 7)
    with full_disk():
        publish(settings, LAB.uuid, 8)
    assert published(settings, LAB.uuid) == 7
    publish(settings, LAB.uuid, 9)
    assert published(settings, LAB.uuid) == 9
    assert list(settings.state.iterdir()) == [sequence_file(settings, LAB.uuid)]


def test_what_cannot_be_written_whole_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """Neither half a file nor another one beside it."""
    (tmp_path / "frozen").write_bytes(b"/srv")
    with full_disk(), pytest.raises(OSError, match="File too large"):
        write_whole(tmp_path / "frozen", b"/srv\0/var")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("frozen", b"/srv")]
