"""What any blob store must do: a suite to be run for each implementation of `Blobs`.

Take it as a base class, and give it a fixture ``blobs`` of an empty one.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from mailboat.protocol.limits import MIB
from mailboat.server.blobs import BlobLost, Blobs
from mailboat.server.direct import PAGE, paged
from testkit.serverkit import fresh_session_id

Step = tuple[str, int, int]


def put(blobs: Blobs, blob_id: str, content: bytes, offset: int = 0) -> int:
    """Append, durably."""
    writer = blobs.append(blob_id, offset)
    writer.write(content)
    size = writer.sync()
    writer.close()
    return size


def draw_step(draw: random.Random) -> Step:
    return draw.choice(["append", "settle", "remove", "read"]), draw.randrange(21), draw.randrange(21)


class BlobsContract:
    """The suite."""

    @pytest.fixture
    def name(self) -> str:
        """A blob's name."""
        return fresh_session_id()

    def test_what_is_appended_is_read_back(self, blobs: Blobs, name: str) -> None:
        assert (blobs.size(name), list(blobs.ids())) == (0, [])
        writer = blobs.append(name, 0)
        for piece in (b"abc", b"", b"defg"):
            writer.write(piece)
        assert (writer.offset, writer.sync()) == (7, 7)
        writer.close()
        writer.close()
        assert put(blobs, name, b"hij", 7) == 10
        assert blobs.read(name, 0, 100) == b"abcdefghij"
        assert blobs.read(name, 2, 3) == b"cde"
        assert blobs.read(name, 10, 5) == b""
        with blobs.opened(name) as opened:
            assert [opened.read(name, at, 4) for at in (0, 8, 2, 10)] == [b"abcd", b"ij", b"cdef", b""]
        assert (blobs.size(name), list(blobs.ids())) == (10, [name])

    def test_large_pieces_from_pages_of_memory_are_as_any_other(self, blobs: Blobs, name: str, seed: int) -> None:
        draw, memory, content = random.Random(seed), paged(MIB), b""
        for number in range(4):
            writer = blobs.append(name, len(content))
            for _ in range(3):
                start = writer.offset % PAGE if number else draw.randrange(PAGE)
                piece = memory[start : start + draw.randrange(MIB - start)]
                piece[:] = draw.randbytes(len(piece))
                writer.write(piece)
                content += bytes(piece)
            assert writer.sync() == len(content)
            writer.close()
            content = content[: draw.randrange(len(content) + 1)]
            blobs.settle(name, len(content))
            assert blobs.read(name, 0, 4 * MIB * 3) == content

    def test_going_on_below_the_end_cuts_it_off(self, blobs: Blobs, name: str) -> None:
        put(blobs, name, b"abcdef")
        put(blobs, name, b"X", 2)
        assert blobs.read(name, 0, 100) == b"abX"

    def test_what_was_announced_and_is_not_there_is_lost(self, blobs: Blobs, name: str) -> None:
        with pytest.raises(BlobLost):
            blobs.append(name, 1)
        put(blobs, name, b"abc")
        with pytest.raises(BlobLost):
            blobs.append(name, 4)
        assert blobs.read(name, 0, 100) == b"abc"

    def test_what_is_not_there_is_not_read(self, blobs: Blobs, name: str) -> None:
        with pytest.raises(FileNotFoundError):
            blobs.read(name, 0, 1)
        with pytest.raises(FileNotFoundError), blobs.opened(name):
            pytest.fail("it is not there")
        with pytest.raises(FileNotFoundError):
            blobs.lay_aside(name)
        blobs.remove(name)

    def test_tentative_bytes_are_so_until_they_are_confirmed(self, blobs: Blobs, name: str) -> None:
        put(blobs, name, b"abc")
        writer = blobs.append_tentatively(name, 3)
        writer.write(b"def")
        assert blobs.tentative(name)
        writer.sync()
        writer.close()
        assert blobs.tentative(name)
        blobs.settle(name, 3)
        blobs.confirm(name)
        assert (blobs.tentative(name), blobs.read(name, 0, 100)) == (False, b"abc")
        blobs.append_tentatively(name, 3).close()
        put(blobs, name, b"xyz", 3)
        assert not blobs.tentative(name), "what is appended next is trusted"

    def test_parts_are_joined_in_their_order(self, blobs: Blobs, name: str) -> None:
        parts = [fresh_session_id() for _ in range(3)]
        for part, content in zip(parts, (b"abc", b"", b"de"), strict=True):
            put(blobs, part, content)
        assert blobs.join(name, [parts[2], parts[0], parts[1], parts[2]]) == 7
        assert blobs.read(name, 0, 100) == b"deabcde"
        assert blobs.read(parts[0], 0, 100) == b"abc"
        with pytest.raises(BlobLost):
            blobs.join(name, [parts[0], fresh_session_id()])

    def test_small_blobs_are_put_many_at_once(self, blobs: Blobs) -> None:
        contents = [b"abc", b"x" * 60_000, b"de"]
        names = blobs.put(contents)
        assert len({*names, *blobs.put([memoryview(each) for each in contents])}) == 6
        assert [blobs.read(name, 0, 10**6) for name in names] == contents
        assert [blobs.size(name) for name in names] == [3, 60_000, 2]
        assert (blobs.read(names[1], 59_999, 5), blobs.read(names[0], 3, 5)) == (b"x", b"")
        with blobs.opened(names[1]) as opened:
            assert opened.read(names[1], 59_998, 5) == b"xx"
        blobs.remove(names[0])
        assert [blobs.read(name, 0, 10**6) for name in names[1:]] == contents[1:]

    def test_a_blob_is_settled_removed_and_laid_aside(self, blobs: Blobs, name: str) -> None:
        put(blobs, name, b"abcdef")
        blobs.settle(name, 4)
        blobs.settle(name, 9)
        assert blobs.read(name, 0, 100) == b"abcd"
        blobs.remove(name)
        blobs.remove(name)
        assert (blobs.size(name), list(blobs.ids())) == (0, [])
        put(blobs, name, b"abc")
        assert blobs.lay_aside(name)
        assert (blobs.size(name), list(blobs.ids())) == (0, [])

    def test_there_is_room(self, blobs: Blobs) -> None:
        assert blobs.free() > 0

    @pytest.mark.parametrize("name", ["", "x", "../x", "/etc/passwd", "018F0000-0000-7000-8000-000000000001", "a" * 36])
    def test_a_name_that_is_no_id_names_nothing(self, blobs: Blobs, name: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: blobs.append(name, 0),
            lambda: blobs.append_tentatively(name, 0),
            lambda: blobs.join(name, []),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="canonical"):
                call()
        assert list(blobs.ids()) == []

    def test_many_threads_write_blobs_of_their_own(self, blobs: Blobs) -> None:
        names = [fresh_session_id() for _ in range(8)]

        def write(name: str) -> None:
            for number in range(30):
                put(blobs, name, bytes([number]) * 10, 10 * number)

        threads = [threading.Thread(target=write, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = b"".join(bytes([number]) * 10 for number in range(30))
        assert [blobs.read(name, 0, 1000) for name in names] == [expected] * len(names)
        assert sorted(blobs.ids()) == sorted(names)

    def test_it_is_as_a_string_of_bytes(self, blobs: Blobs, seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(50):
            self._follow(blobs, [draw_step(draw) for _ in range(draw.randrange(30))])

    def _follow(self, blobs: Blobs, steps: list[Step]) -> None:
        name, model, there = fresh_session_id(), b"", False
        for number, (step, offset, length) in enumerate(steps):
            if step == "append" and offset <= len(model):
                content = bytes([number % 256]) * length
                put(blobs, name, content, offset if there else 0)
                model, there = model[: offset if there else 0] + content, True
            elif step == "settle" and there:
                blobs.settle(name, offset)
                model = model[:offset]
            elif step == "remove":
                blobs.remove(name)
                model, there = b"", False
            elif step == "read" and there:
                assert blobs.read(name, offset, length) == model[offset : offset + length]
            assert blobs.size(name) == len(model)
        blobs.remove(name)
