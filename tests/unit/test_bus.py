"""org.blkrecov1 as values: objects made of an array's state, what is told of two moments, introspection, and who does what."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from dbus_fast import Message, Variant
from dbus_fast.introspection import Node
from hypothesis import given
from hypothesis import strategies as st

from blkrecov import views
from blkrecov.bus.interfaces import ARRAY, DRIVE, INTERFACES, LUN, MANAGER, SESSION, SHADOW, TASK, Method, introspection
from blkrecov.bus.objects import (
    Added,
    Changed,
    Interfaces,
    Objects,
    Removed,
    array_objects,
    array_of,
    array_path,
    changes,
    children,
    concerned,
    drive_path,
    lun_path,
    plain,
    session_object,
    session_path,
    task_path,
    uuid_of,
)
from blkrecov.bus.service import plain_options
from blkrecov.cli import remote
from blkrecov.errors import InvalidArgument
from blkrecov.methods import HANDLERS
from blkrecov.model import Document, Layout, Phase, Task, TaskKind, TaskState
from blkrecov.observed import Observed
from blkrecov.state import ArrayState
from tests.unit.arrays import drives, with_lun, with_shadow

ID = UUID(int=7)


def state(document: Document) -> ArrayState:
    observed = Observed()
    return ArrayState(
        uuid=document.array,
        name=document.name,
        sequence=document.sequence,
        running=True,
        drives=tuple(views.drive_view(document, drive) for drive in document.drives),
        luns=tuple(
            {
                **views.lun_view(
                    document, observed, lun, node=f"/dev/{lun.name}", verified=False, mounts=(("/x", "ext4"),)
                ),
                "trouble": "",
            }
            for lun in document.luns
        ),
        tasks=tuple(
            {**views.task_view(task), "phase": "rebuild", "done": 1, "total": 4, "rate_min": 0, "rate_max": 9}
            for task in document.tasks
        ),
    )


def furnished() -> Document:
    """Three drives, a mirror with a shadow copy, and a recovery."""
    document, vol = with_lun(drives(3), Layout.RAID1, "vol", mib=8)
    document, _ = with_shadow(document, "copy", of="vol")
    task = Task(
        id=1,
        kind=TaskKind.RECOVER,
        lun=vol.uuid,
        objects=("vol", "d2"),
        state=TaskState.IN_PROGRESS,
        phases=(Phase.REBUILD,),
        percent=25,
    )
    return document.with_task(task)


def test_every_object_has_just_the_properties_that_its_interface_declares() -> None:
    objects = array_objects(state(furnished()))
    assert {name for known in objects.values() for name in known} == {ARRAY, DRIVE, LUN, SHADOW, TASK}
    for known in (*objects.values(), session_object(":1.5", ID, 3)):
        for name, properties in known.items():
            assert set(properties) == {item.name for item in INTERFACES[name].properties}


def test_every_property_has_the_type_that_is_declared() -> None:
    """Marshalling raises for a value of another type; what comes out is what went in."""
    for path, known in array_objects(state(furnished())).items():
        for name, properties in known.items():
            for item in INTERFACES[name].properties:
                message = Message.new_signal(path, name, "X", "v", [Variant(item.type, properties[item.name])])
                message.serial = 1
                assert message._marshall(False)


def test_an_event_is_about_objects_that_are_there() -> None:
    """A LUN that was deleted meanwhile is in its words only."""
    document = furnished()
    objects = array_objects(state(document))
    vol = lun_path(document.array, document.lun("vol").uuid)
    d0 = drive_path(document.array, document.drive("d0").uuid)
    assert concerned(objects, "vol", "d0", 1) == [vol, d0, task_path(document.array, 1)]
    assert concerned(objects, "gone", None, 9) == []
    assert concerned(objects, None, None, None) == []


def test_objects_refer_to_each_other_by_path() -> None:
    document = furnished()
    objects = array_objects(state(document))
    vol, copy, d0 = document.lun("vol"), document.lun("copy"), document.drive("d0")
    known = objects[lun_path(document.array, vol.uuid)][LUN]
    assert known["Task"] == task_path(document.array, 1)
    assert [row[1] for row in known["Members"]] == [
        drive_path(document.array, document.drive(name).uuid) for name in ("d0", "d1")
    ]
    assert objects[lun_path(document.array, copy.uuid)][SHADOW]["Origin"] == lun_path(document.array, vol.uuid)
    assert lun_path(document.array, vol.uuid) in objects[drive_path(document.array, d0.uuid)][DRIVE]["Luns"]
    assert objects[array_path(document.array)][ARRAY]["ShadowCopies"] == [lun_path(document.array, copy.uuid)]
    assert set(objects) == {
        array_path(document.array),
        *(drive_path(document.array, drive.uuid) for drive in document.drives),
        *(lun_path(document.array, lun.uuid) for lun in document.luns),
        task_path(document.array, 1),
    }


def test_a_percentage_changes_one_property_of_one_object() -> None:
    document = furnished()
    later = document.with_task(msgspec.structs.replace(document.tasks[0], percent=26))
    assert changes(array_objects(state(document)), array_objects(state(later))) == (
        Changed(task_path(document.array, 1), TASK, {"Percent": 26}),
    )


def test_paths_tell_whose_they_are() -> None:
    path = lun_path(ID, UUID(int=9))
    assert path == "/org/blkrecov1/array/00000000000000000000000000000007/lun/00000000000000000000000000000009"
    assert (array_of(path), uuid_of(path)) == (ID, UUID(int=9))
    assert (array_of(session_path(1)), uuid_of(task_path(ID, 3)), array_of("/")) == (None, None, None)


def test_children_are_what_is_right_below() -> None:
    paths = ("/org/a", "/org/a/x/1", "/org/a/x/2", "/org/ab")
    assert children(paths, "/") == ("org",)
    assert children(paths, "/org") == ("a", "ab")
    assert children(paths, "/org/a") == ("x",)
    assert children(paths, "/org/a/x/1") == ()


@given(st.text() | st.binary().map(lambda data: data.decode(errors="surrogateescape")))
def test_every_name_can_be_told(text: str) -> None:
    """A file's name may hold any byte, D-Bus's strings may not."""
    told = plain([text, (text, 1)])
    assert told == [told[0], [told[0], 1]]
    assert "\0" not in told[0].encode().decode()
    assert plain("vol é") == "vol é"


_properties = st.dictionaries(st.sampled_from("ABC"), st.integers(0, 2), min_size=3, max_size=3)
_objects = st.dictionaries(
    st.sampled_from(("/a", "/b", "/c")), st.dictionaries(st.sampled_from("XY"), _properties, min_size=1), max_size=3
)


@given(_objects, _objects)
def test_who_hears_all_changes_knows_the_later_moment(before: Objects, after: Objects) -> None:
    known: dict[str, dict[str, Any]] = {path: dict(interfaces) for path, interfaces in before.items()}
    for change in changes(before, after):
        match change:
            case Removed(path, names):
                for name in names:
                    del known[path][name]
                if not known[path]:
                    del known[path]
            case Added(path, interfaces):
                known.setdefault(path, {}).update(interfaces)
            case Changed(path, name, properties):
                known[path][name] = {**known[path][name], **properties}
    assert known == after


@given(_objects)
def test_nothing_is_told_of_what_stays_the_same(objects: Objects) -> None:
    assert changes(objects, objects) == ()


@pytest.mark.parametrize("name", INTERFACES)
def test_introspection_can_be_read_and_says_all(name: str) -> None:
    """By D-Bus's own reader; each member has its types and its words."""
    interface = INTERFACES[name]
    xml = introspection((interface,), ("below",))
    node = Node.parse(xml)
    read = next(item for item in node.interfaces if item.name == name)
    assert {item.name: item.in_signature for item in read.methods} == {
        item.name: item.signature for item in interface.methods
    }
    assert {item.name: item.out_signature for item in read.methods} == {
        item.name: item.result for item in interface.methods
    }
    assert {item.name: item.signature for item in read.properties} == {
        item.name: item.type for item in interface.properties
    }
    assert [item.name for item in read.signals] == [item.name for item in interface.signals]
    assert [child.name for child in node.nodes] == ["below"]
    assert all(method.about for method in interface.methods)
    words = [element.get("value") for element in ElementTree.fromstring(xml).iter("annotation")]
    assert interface.about in words


def test_every_method_of_an_array_s_objects_is_done_by_somebody() -> None:
    """But for those that the service does by itself, because they are no business of the array's thread."""
    own = {(ARRAY, "InitializeForRestore"), (TASK, "Wait")}
    declared = {
        (interface.name, method.name)
        for interface in INTERFACES.values()
        if interface.name not in (MANAGER, SESSION)
        for method in interface.methods
        if method.name not in ("Plan", "GetState")
    }
    assert set(HANDLERS) == declared - own


def test_every_method_ends_with_options() -> None:
    for interface in INTERFACES.values():
        for method in interface.methods:
            assert method.takes[-1].type == "a{sv}"
            assert method.options is not None


def test_a_session_s_object_tells_what_it_has_begun() -> None:
    known: Interfaces = session_object(":1.7", ID, None)
    assert known[SESSION] == {"Owner": ":1.7", "Array": array_path(ID), "Task": "/"}


WAIT = INTERFACES[TASK].method("Wait")
RECOVER = INTERFACES[LUN].method("Recover")
EXPORT = INTERFACES[ARRAY].method("CreateLun")


@pytest.mark.parametrize(
    ("method", "given", "found"),
    [
        (WAIT, {"timeout": Variant("d", 1.5)}, {"timeout": 1.5}),
        (WAIT, {"timeout": Variant("u", 2)}, {"timeout": 2}),
        (RECOVER, {"rate-min": Variant("i", 7)}, {"rate-min": 7}),
        (EXPORT, {"export": Variant("b", False), "drives": Variant("as", ["d0"])}, {"export": False, "drives": ["d0"]}),
        (EXPORT, {}, {}),
    ],
)
def test_options_become_plain_values(method: Method, given: dict[str, Variant], found: dict[str, Any]) -> None:
    assert plain_options(given, method) == found


@pytest.mark.parametrize(
    ("method", "given"),
    [
        (WAIT, {"timeout": Variant("d", float("nan"))}),
        (WAIT, {"timeout": Variant("d", -1.0)}),
        (RECOVER, {"rate-min": Variant("x", -7)}),
        (RECOVER, {"rate-min": Variant("d", 7.0)}),
        (RECOVER, {"spare": Variant("s", "d0")}),
        (RECOVER, {"spares": Variant("o", "/")}),
        (EXPORT, {"export": Variant("u", 1)}),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(method: Method, given: dict[str, Variant]) -> None:
    with pytest.raises(InvalidArgument):
        plain_options(given, method)


def test_the_policy_lets_the_group_call_just_what_only_reads() -> None:
    policy = (Path(__file__).resolve().parents[2] / "blkrecov/data/org.blkrecov1.conf").read_text()
    allowed = set(re.findall(r'send_interface="org\.blkrecov1\.(\w+)" send_member="(\w+)"', policy))
    reading = {
        (interface.name.removeprefix("org.blkrecov1."), method.name)
        for interface in INTERFACES.values()
        for method in interface.methods
        if method.reads
    }
    assert allowed == reading


@pytest.mark.parametrize(("type_", "value"), [("t", 2**64), ("t", -1), ("i", 2**31), ("d", "much")])
def test_what_does_not_fit_its_type_is_a_mistake_in_the_argument(type_: str, value: object) -> None:
    """As it is where the command has opened the array itself."""
    with pytest.raises(InvalidArgument, match="does not fit"):
        remote._variant(type_, value)
