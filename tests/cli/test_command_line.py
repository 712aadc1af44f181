"""The command line as a whole: exit status, what it imports, keys, serving, sending and status, in real processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from .conftest import SESSION, SegmentMaker, SessionMaker

LOOPBACK = "127.0.0.1"


def mailboat(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "mailboat.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=60, check=False
    )


@dataclass(frozen=True, slots=True)
class Served:
    """A `mailboat serve` that runs."""

    data: Path
    url: str
    process: subprocess.Popen[str]

    def key(self, product: str = "acme", *options: str) -> str:
        done = mailboat("keys", "create", "--data", self.data, "--product", product, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.removesuffix("\n")


def serve(data: Path, log: Path, *options: str) -> Served:
    command = [sys.executable, "-P", "-m", "mailboat.cli", "serve", "--data", str(data), "--port", "0", *options]
    with log.open("w") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
    assert process.stdout is not None
    for line in process.stdout:
        found = re.search(r"listening on (\S+)", line)
        if found:
            return Served(data, found[1], process)
    process.communicate()
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    served = serve(folder / "data", folder / "log", "--stop-on-eof")
    yield served
    served.process.communicate(timeout=30)
    assert served.process.returncode == 0


# -- as a whole ------------------------------------------------------------------------------------------------------


def test_help_loads_neither_server_nor_agent() -> None:
    heavy = ["duckdb", "aiohttp", "asyncio", "mailboat.server", "mailboat.agent", "rich"]
    program = (
        "import sys, mailboat.cli\n"
        "sys.argv = ['mailboat', '--help']\n"
        "try: mailboat.cli.main()\n"
        f"finally: print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert {"demo", "serve", "keys", "sessions", "sync", "status"} <= set(
        re.findall(r"^  (\w+) ", done.stdout, re.MULTILINE)
    )


@pytest.mark.parametrize(
    ("module", "command", "extra"),
    [
        ("duckdb", ["demo"], "server"),
        ("click", ["--help"], "cli"),
    ],
)
def test_a_missing_extra_is_told_in_a_sentence(module: str, command: list[str], extra: str) -> None:
    program = (
        "import sys, mailboat.cli\n"
        f"sys.modules[{module!r}] = None\n"
        f"sys.argv = ['mailboat', *{command!r}]\n"
        "mailboat.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"pip install 'mailboat[{extra}]'" in done.stderr
    assert module in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["serve"],
        ["serve", "--data", "x", "--port", "70000"],
        ["keys", "create", "--data", "x"],
        ["keys", "create", "--data", "x", "--product", "p", "--role", "king"],
        ["sessions", "show"],
        ["sync", "--timeout", "-1"],
        ["sync"],
    ],
)
def test_wrong_usage_has_status_two(arguments: list[str], tmp_path: Path) -> None:
    done = mailboat(*arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_an_impossible_setting_has_status_two() -> None:
    done = mailboat("status", MAILBOAT_SYNC_INTERVAL="often")
    assert done.returncode == 2
    assert "MAILBOAT_SYNC_INTERVAL" in done.stderr


# -- quarantine ------------------------------------------------------------------------------------------------------


def test_what_is_no_segment_is_shown_and_saved(server: Served, tmp_path: Path) -> None:
    key = {"Authorization": f"Bearer {server.key()}", "Upload-Complete": "?1"}
    asked = urllib.request.Request(f"{server.url}/v1/uploads", data=b"no segment", headers=key, method="POST")
    with urllib.request.urlopen(asked) as made:
        upload = made.headers["Location"].rpartition("/")[2]
    listed = mailboat("server", "quarantine", "list", "--data", server.data, "--json")
    (shown,) = [json.loads(line) for line in listed.stdout.splitlines()]
    assert (shown["upload"], shown["product"], shown["size"], shown["reason"]) == (upload, "acme", 10, "corrupted")
    assert upload in mailboat("server", "quarantine", "list", "--data", server.data).stdout
    assert mailboat("server", "quarantine", "list", "--data", server.data, "--product", "other").stdout == ""
    target = tmp_path / "saved"
    assert mailboat("server", "quarantine", "save", upload, "--data", server.data, "--to", target).returncode == 0
    assert target.read_bytes() == b"no segment"
    again = mailboat("server", "quarantine", "save", upload, "--data", server.data, "--to", target)
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
    known = json.loads(mailboat("server", "quarantine", "show", upload, "--data", server.data).stdout)
    assert known == shown
    busy = mailboat("server", "quarantine", "replay", upload, "--data", server.data)
    assert (busy.returncode, busy.stdout) == (1, "")
    assert "uses this folder" in busy.stderr
    nowhere = mailboat("server", "quarantine", "list", "--data", tmp_path)
    assert nowhere.returncode == 1
    assert "no mailboat server's data" in nowhere.stderr


# -- serve and keys --------------------------------------------------------------------------------------------------


def test_a_key_is_printed_alone(server: Served) -> None:
    assert re.fullmatch(r"mbk_[\w-]+", server.key())
    done = mailboat("keys", "create", "--data", server.data, "--role", "admin")
    assert re.fullmatch(r"mbk_[\w-]+\n", done.stdout)


def test_a_server_stops_in_good_order_on_a_signal(tmp_path: Path) -> None:
    served = serve(tmp_path / "data", tmp_path / "log")
    served.process.send_signal(signal.SIGTERM)
    served.process.communicate(timeout=30)
    assert served.process.returncode == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_second_server_on_the_same_data_is_refused(server: Served) -> None:
    done = mailboat("serve", "--data", server.data, "--port", 0)
    assert done.returncode == 1
    assert str(server.data) in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = mailboat("serve", "--data", tmp_path / "data", "--port", port)
    assert done.returncode == 1
    assert str(port) in done.stderr
    assert "Traceback" not in done.stderr


# -- sync and status -------------------------------------------------------------------------------------------------


def states(store: Path) -> dict[str, str]:
    listed = mailboat("sessions", "list", "--store", store, "--json").stdout.splitlines()
    return {each["session"]: each["state"] for each in map(json.loads, listed)}


def test_what_waits_is_sent_and_kept_as_sent(
    server: Served, store: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    make_session(store, [make_segment(product="acme", started=time.time_ns())])
    settings = {"MAILBOAT_SERVER": server.url, "MAILBOAT_API_KEY": server.key(), "MAILBOAT_STORE": str(store)}
    done = mailboat("sync", "--timeout", 20, **settings)
    assert done.returncode == 0, done.stderr
    assert "1 accepted" in done.stdout
    assert states(store) == {SESSION: "sent"}
    again = mailboat("sync", "--json", **settings)
    assert (again.returncode, again.stdout) == (0, "")
    shown = json.loads(mailboat("status", "--json", **settings).stdout)
    assert shown["server"]["reachable"]
    (application,) = shown["applications"]
    assert application["ledger"]["accepted"] == 15
    assert application["ledger"]["pending"] == 0
    assert application["states"]["sent"]["sessions"] == 1


def test_a_wrong_key_is_told_and_nothing_is_lost(
    server: Served, store: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    make_session(store, [make_segment()])
    done = mailboat("sync", "--store", store, "--server", server.url, MAILBOAT_API_KEY="mbk_wrong")
    assert done.returncode == 1
    assert "key" in done.stderr
    assert states(store) == {SESSION: "waiting"}


def test_what_the_server_rejects_is_told_with_its_reason(
    server: Served, store: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    make_session(store, [make_segment(product="another")])
    done = mailboat("sync", "--store", store, "--server", server.url, MAILBOAT_API_KEY=server.key())
    assert done.returncode == 1
    assert "unknown_product" in done.stderr
    assert states(store) == {SESSION: "sent"}


def test_without_a_connection_all_is_left(store: Path, make_segment: SegmentMaker, make_session: SessionMaker) -> None:
    make_session(store, [make_segment()])
    with socket.socket() as unused:
        unused.bind((LOOPBACK, 0))
        url = f"http://{LOOPBACK}:{unused.getsockname()[1]}"
        done = mailboat("sync", "--store", store, "--server", url)
        shown = mailboat("status", "--store", store, MAILBOAT_SERVER=url)
    assert done.returncode == 1
    assert "no connection" in done.stderr
    assert states(store) == {SESSION: "waiting"}
    assert "no connection" in shown.stdout
    assert shown.returncode == 0


class Portal(BaseHTTPRequestHandler):
    """A captive portal: a page for everything."""

    def answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>Please sign in")

    do_GET = do_POST = do_HEAD = do_PATCH = answer  # noqa: N815 - names of the base class

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_a_server_that_is_none_is_told(store: Path, make_segment: SegmentMaker, make_session: SessionMaker) -> None:
    make_session(store, [make_segment()])
    with HTTPServer((LOOPBACK, 0), Portal) as portal:
        thread = Thread(target=portal.serve_forever)
        thread.start()
        url = f"http://{LOOPBACK}:{portal.server_port}"
        done = mailboat("sync", "--store", store, "--server", url)
        shown = json.loads(mailboat("status", "--store", store, "--json", MAILBOAT_SERVER=url).stdout)
        portal.shutdown()
        thread.join()
    assert done.returncode == 1
    assert "no mailboat server" in done.stderr
    assert not shown["server"]["reachable"]
    assert states(store) == {SESSION: "waiting"}


def test_one_key_does_not_send_for_several_products(
    server: Served, store: Path, make_segment: SegmentMaker, make_session: SessionMaker
) -> None:
    other = "018f0000-0000-7000-8000-00000000000a"
    make_session(store, [make_segment()], product="acme")
    make_session(
        store,
        [make_segment(session_id=other, product="other", started=time.time_ns())],
        session_id=other,
        product="other",
    )
    settings = {"MAILBOAT_SERVER": server.url, "MAILBOAT_API_KEY": server.key("other")}
    done = mailboat("sync", "--store", store, **settings)
    assert done.returncode == 2
    assert "acme, other" in done.stderr
    assert mailboat("sync", "--store", store, "--product", "other", **settings).returncode == 0
    assert states(store) == {SESSION: "waiting", other: "sent"}


def test_a_session_left_by_a_crash_is_recovered_and_sent(server: Served, store: Path) -> None:
    program = (
        "import asyncio, os\n"
        "from mailboat.agent import Agent\n"
        "async def main():\n"
        f"    agent = Agent(store={str(store)!r}, product='acme', application='importer')\n"
        "    await agent.start()\n"
        "    agent.feature('before.the.crash')\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    assert list(states(store).values()) == ["live"]
    done = mailboat("sync", "--store", store, "--server", server.url, MAILBOAT_API_KEY=server.key())
    assert done.returncode == 0, done.stderr
    ((session, state),) = states(store).items()
    assert state == "sent"
    printed = mailboat("sessions", "cat", session, "--store", store)
    assert [json.loads(line)["name"] for line in printed.stdout.splitlines()] == ["before.the.crash"]
