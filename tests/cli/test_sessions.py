"""`mailboat sessions` on stores and files made by the protocol's own writer."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mailboat.cli.sessions import sessions
from mailboat.protocol import Info, Preamble, SealReason, SegmentWriter

from .conftest import SESSION, SegmentMaker, SessionMaker

OTHER = "018f0000-0000-7000-8000-000000000002"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(sessions, [*map(str, arguments)])


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# -- list ------------------------------------------------------------------------------------------------------------


def test_a_store_that_is_not_there_is_empty(store: Path) -> None:
    result = invoke("list", "--store", store)
    assert (result.exit_code, result.output) == (0, "")
    assert not store.exists()


def test_list_shows_every_state_oldest_first(
    store: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    make_session(store, [make_segment(session_id=OTHER, seal=None)], session_id=OTHER, state="live")
    rotated = make_segment(seal=SealReason.ROTATED)
    make_session(store, [rotated, make_segment(index=1, first=15, blocks=1)], state="sent")
    first, second = lines(invoke("list", "--store", store, "--json"))
    assert (first["session"], first["state"], first["records"], first["segments"]) == (SESSION, "sent", 20, 2)
    assert (second["session"], second["state"], second["records"], second["segments"]) == (OTHER, "live", 15, 1)
    assert first["product"] == "Acme Studio"
    assert first["started"] == 1_700_000_000
    plain = invoke("list", "--store", store)
    assert [line.split("\t")[:3] for line in plain.stdout.splitlines()] == [
        [SESSION, "sent", "Acme Studio"],
        [OTHER, "live", "Acme Studio"],
    ]


def test_the_store_is_taken_from_the_environment(
    store: Path, make_segment: SegmentMaker, make_session: SessionMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_session(store, [make_segment()])
    monkeypatch.setenv("MAILBOAT_STORE", str(store))
    assert len(lines(invoke("list", "--json"))) == 1


def test_list_goes_on_past_a_session_that_is_no_session(store: Path, make_session: SessionMaker) -> None:
    make_session(store, [b"\0" * 100_000])
    make_session(store, [], session_id=OTHER)
    first, second = lines(invoke("list", "--store", store, "--json"))
    assert (first["records"], first["product"], first["started"]) == (0, "acme", None)
    assert (second["records"], second["segments"]) == (0, 0)


def test_a_store_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    result = invoke("list", "--store", tmp_path / ("x" * 300))
    assert result.exit_code == 1
    assert "cannot be read: File name too long" in result.stderr


def test_names_cannot_move_the_cursor_of_a_terminal(
    store: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    make_session(store, [b""], product="\x1b[2Jevil\n")
    (line,) = invoke("list", "--store", store).stdout.splitlines()
    assert "\\x1b[2Jevil\\n" in line


# -- show ------------------------------------------------------------------------------------------------------------


def test_show_by_the_beginning_of_an_id(store: Path, make_segment: SegmentMaker, make_session: SessionMaker) -> None:
    content = make_segment()
    make_session(store, [content])
    (shown,) = lines(invoke("show", SESSION[:5].upper(), "--store", store, "--json"))
    assert shown["counts"] == {"feature": 15}
    assert shown["end"] == "stopped"
    assert shown["files"] == [{"name": "000000.zst", "size": len(content), "records": 15, "sealed": True}]
    plain = dict(line.split("\t") for line in invoke("show", SESSION, "--store", store).stdout.splitlines())
    assert plain["session"] == SESSION
    assert plain["started"] == "2023-11-14T22:13:20Z"


def test_an_id_that_is_nobodys_or_not_ones_is_misuse(
    store: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    assert invoke("show", "018f", "--store", store).exit_code == 2
    make_session(store, [make_segment()])
    make_session(store, [make_segment(session_id=OTHER)], session_id=OTHER)
    result = invoke("show", "018f", "--store", store)
    assert result.exit_code == 2
    assert "2 sessions" in result.stderr


# -- cat -------------------------------------------------------------------------------------------------------------


def test_cat_prints_all_records_of_a_session_in_order(
    store: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    make_session(store, [make_segment(seal=SealReason.ROTATED), make_segment(index=1, first=15)])
    result = invoke("cat", SESSION, "--store", store)
    assert result.exit_code == 0
    assert [record["sequence"] for record in lines(result)] == list(range(30))
    assert lines(result)[7] | {"time": 0} == {
        "sequence": 7,
        "time": 0,
        "kind": "feature",
        "name": "f.1",
        "attributes": {"at": 2},
    }


def test_cat_prints_a_bare_file(tmp_path: Path, make_segment: SegmentMaker) -> None:
    path = tmp_path / "taken.along"
    path.write_bytes(make_segment())
    result = invoke("cat", path)
    assert (result.exit_code, len(lines(result)), result.stderr) == (0, 15, "")


def test_cat_expresses_what_json_cannot(tmp_path: Path, make_segment: SegmentMaker) -> None:
    path = tmp_path / "x.zst"
    odd: dict[object, object] = {"n": float("nan"), "b": b"\xff", 5: [float("inf")], "u": "ü"}
    path.write_bytes(make_segment(attributes=odd, blocks=1))
    result = invoke("cat", path)
    assert result.exit_code == 0
    assert lines(result)[0]["attributes"] == {"at": 0, "n": "nan", "b": "/w==", "5": ["inf"], "u": "ü"}


def test_cat_of_a_damaged_file_prints_what_is_left_and_names_the_gap(
    tmp_path: Path, make_segment: SegmentMaker
) -> None:
    content = bytearray(make_segment())
    whole = bytes(content)
    second = whole.index(whole[whole.index(b"\x5b\x2a\x4d\x18") :][:8], whole.index(b"\x5b\x2a\x4d\x18") + 8)
    content[second + 120] ^= 1
    path = tmp_path / "x.zst"
    path.write_bytes(content)
    result = invoke("cat", path)
    assert result.exit_code == 1
    assert [record["sequence"] for record in lines(result)] == [*range(5), *range(10, 15)]
    assert "records 5 to 9" in result.stderr


def test_cat_of_a_file_cut_short_says_so(tmp_path: Path, make_segment: SegmentMaker) -> None:
    path = tmp_path / "x.zst"
    path.write_bytes(make_segment()[:-10])
    result = invoke("cat", path)
    assert (result.exit_code, len(lines(result))) == (1, 15)
    assert "without a seal" in result.stderr


def test_a_running_session_need_not_be_sealed(
    store: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    folder = make_session(store, [make_segment(seal=None)], state="live")
    assert invoke("cat", SESSION, "--store", store).exit_code == 0
    assert invoke("cat", folder / "000000.zst").exit_code == 0


def test_cat_names_a_segment_that_is_missing(
    store: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    folder = make_session(store, [make_segment(seal=SealReason.ROTATED), make_segment(index=1, first=15)])
    (folder / "000000.zst").unlink()
    result = invoke("cat", SESSION, "--store", store)
    assert (result.exit_code, len(lines(result))) == (1, 15)
    assert "000000 is missing" in result.stderr


@pytest.mark.parametrize("content", [b"", b"a" * 100, b"\x5a\x2a\x4d\x18\xff\xff\xff\xff"])
def test_cat_of_what_is_no_segment(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    result = invoke("cat", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr


def test_cat_of_a_file_that_is_not_there_is_misuse(store: Path) -> None:
    assert invoke("cat", "nothing/here.zst", "--store", store).exit_code == 2
    assert invoke("cat", "nothing", "--store", store).exit_code == 2


# -- verify ----------------------------------------------------------------------------------------------------------


def test_verify_all_of_the_store(store: Path, make_segment: SegmentMaker, make_session: SessionMaker) -> None:
    make_session(store, [make_segment()])
    assert invoke("verify", "--store", store).exit_code == 0
    damaged = bytearray(make_segment(session_id=OTHER))
    damaged[-60] ^= 1
    make_session(store, [bytes(damaged)], session_id=OTHER)
    result = invoke("verify", "--store", store, "--json")
    assert result.exit_code == 1
    assert [(each["source"], each["intact"]) for each in lines(result)] == [(SESSION, True), (OTHER, False)]


def test_verify_finds_every_flipped_byte(tmp_path: Path, make_segment: SegmentMaker) -> None:
    content = make_segment(blocks=1)
    path = tmp_path / "x.zst"
    for at in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        path.write_bytes(damaged)
        assert invoke("verify", path).exit_code == 1, at


# -- export and purge ------------------------------------------------------------------------------------------------


def test_an_exported_session_can_be_read_anywhere(
    store: Path, tmp_path: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    folder = make_session(store, [make_segment(seal=SealReason.ROTATED), make_segment(index=1, first=15)])
    result = invoke("export", SESSION[:12], "--to", tmp_path / "stick" / "sessions", "--store", store)
    assert result.exit_code == 0
    package = Path(result.stdout.removesuffix("\n"))
    assert package.read_bytes() == b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    assert list((tmp_path / "stick" / "sessions").iterdir()) == [package]
    assert invoke("cat", package).stdout == invoke("cat", SESSION, "--store", store).stdout
    assert lines(invoke("verify", package, "--json")) == [
        {"source": str(package), "records": 30, "intact": True, "damage": []}
    ]


def test_a_package_that_was_damaged_is_read_past_the_damage(
    store: Path, tmp_path: Path, make_segment: SegmentMaker
) -> None:
    first, last = make_segment(seal=SealReason.ROTATED), make_segment(index=1, first=15)
    package = tmp_path / "package.zst"
    damaged = bytearray(first)
    damaged[len(first) // 2] ^= 1
    package.write_bytes(bytes(damaged) + last)
    result = invoke("cat", package)
    assert result.exit_code == 1
    assert len(lines(result)) == 25
    package.write_bytes(first + last[:-1])
    result = invoke("cat", package)
    assert (result.exit_code, len(lines(result))) == (1, 30)
    assert "without a seal" in result.stderr


def test_a_running_session_is_exported_as_far_as_it_is(
    store: Path, tmp_path: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    make_session(store, [make_segment(seal=None)], state="live")
    result = invoke("export", SESSION, "--to", tmp_path, "--store", store)
    assert result.exit_code == 0
    assert "still running" in result.stderr


def test_an_export_that_cannot_be_written_is_told(
    store: Path, tmp_path: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    make_session(store, [make_segment()])
    (tmp_path / "file").touch()
    result = invoke("export", SESSION, "--to", tmp_path / "file" / "below", "--store", store)
    assert result.exit_code == 1
    assert "cannot be exported" in result.stderr


def test_purge_deletes_what_was_sent_and_nothing_else(
    store: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    make_session(store, [make_segment()], state="sent")
    make_session(store, [make_segment(session_id=OTHER)], session_id=OTHER)
    refused = invoke("purge", OTHER, "--store", store)
    assert refused.exit_code == 2
    assert "waiting" in refused.stderr
    assert invoke("purge", SESSION, OTHER, "--store", store).exit_code == 2
    result = invoke("purge", "--store", store)
    assert (result.exit_code, result.stdout.split()) == (0, [SESSION])
    assert [each["session"] for each in lines(invoke("list", "--store", store, "--json"))] == [OTHER]


def test_every_command_tells_it_in_lines_of_json(
    store: Path, tmp_path: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    make_session(store, [make_segment()], state="sent")
    commands: dict[str, list[object]] = {
        "list": [],
        "show": [SESSION],
        "cat": [SESSION],
        "verify": [SESSION],
        "export": [SESSION, "--to", tmp_path],
        "purge": [SESSION],
    }
    said = {
        command: lines(invoke(command, *arguments, "--store", store, "--json"))
        for command, arguments in commands.items()
    }
    package = tmp_path / f"{SESSION}.zst"
    assert [each["session"] for each in said["list"] + said["show"]] == [SESSION, SESSION]
    assert (len(said["cat"]), said["verify"][0]["records"]) == (15, 15)
    assert said["export"] == [{"session": SESSION, "file": str(package), "size": package.stat().st_size}]
    assert said["purge"] == [{"session": SESSION, "purged": True}]
    assert lines(invoke("list", "--store", store, "--json")) == []


def test_large_descriptions_are_found_all_the_same(store: Path, make_session: SessionMaker) -> None:
    info = Info(product="Acme Studio", properties={f"p{at}": "x" * 1000 for at in range(30)}).to_wire()
    writer = SegmentWriter(Preamble(SESSION, 0, 77, 0, 10**18, 0, info=info))
    content = writer.preamble()
    writer.add(content)
    seal = writer.seal(SealReason.STOPPED, 10**18, 10**9, {"id": "inst-42", "properties": {"plan": "x" * 20_000}})
    make_session(store, [content + seal])
    (shown,) = lines(invoke("show", SESSION, "--store", store, "--json"))
    assert shown["product"] == "Acme Studio"
    assert shown["installation"]["id"] == "inst-42"
