"""What is said of the machine and the process in a session's description."""

from __future__ import annotations

import locale
import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mailboat.agent.config import AgentConfig
from mailboat.agent.descriptors import DESCRIPTORS
from mailboat.agent.scrub import kept_properties
from mailboat.agent.secret_names import without_secrets
from mailboat.protocol import __version__
from mailboat.protocol.summary import PERSONAL_TEXTS, Info, cut_text


def describe(config: AgentConfig) -> Info:
    """The static description of a session; an anonymous one says nothing of user, host and command line.

    Never raises: what the system does not tell stays empty, and every text is cut to what a preamble can hold.
    """
    texts = {
        "product": config.product,
        "application": config.application,
        "version": config.version,
        "environment": config.environment,
        "agent": f"mailboat-python/{__version__}",
        "user": _told(_user),
        "host": _told(socket.gethostname),
        "command": without_secrets(list(map(str, getattr(sys, "argv", ()))), config.api_key),
        "os": f"{platform.system()} {platform.release()}",
        "runtime": f"{platform.python_implementation()} {platform.python_version()}",
        "time_zone": time.strftime("%z"),
        "locale": _told(lambda: locale.getlocale()[0] or ""),
    }
    if config.anonymous:
        texts.update(dict.fromkeys(PERSONAL_TEXTS, ""))
    return Info(
        **{name: cut_text(text) for name, text in texts.items()},
        test=config.test_mode,
        anonymous=config.anonymous,
        properties=kept_properties(config.properties),
    )


def _told(ask: Callable[[], str]) -> str:
    """What the system says, or nothing: it may be odd in ways that are none of ours."""
    try:
        return ask()
    except (KeyError, OSError, ValueError, ImportError):
        return ""


def _user() -> str:
    with DESCRIPTORS.unforked():  # or a child would wait for what nobody goes on loading
        import getpass  # noqa: PLC0415 - an anonymous session does without, and without what it imports

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name, as in many containers
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def boot_id() -> str:
    """An id of this run of the machine: the kernel's own, or else the minute it was started."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8", "replace").strip()
    except OSError:
        return _boot_session() or _boot_time(time.time(), time.monotonic())


def is_same_boot(written_under: str, now: str) -> bool:
    """Whether the machine has run on from the boot id `written_under` to the one of `now`; False in doubt."""
    if written_under == now:
        return bool(now)
    minutes = [text.removeprefix(_UP_SINCE) for text in (written_under, now)]
    if not all(text.startswith(_UP_SINCE) for text in (written_under, now)) or not all(map(str.isdecimal, minutes)):
        return False
    return abs(int(minutes[0]) - int(minutes[1])) <= 1  # the clock may have been set by less than a minute


_UP_SINCE: Final = "up-since-"


def _boot_session() -> str:
    """The kernel's id of this boot on macOS."""
    if sys.platform != "darwin":
        return ""
    import ctypes  # noqa: PLC0415 - no other system needs it, and it takes its time

    buffer = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(buffer))
    failed = ctypes.CDLL(None).sysctlbyname(b"kern.bootsessionuuid", buffer, ctypes.byref(size), None, 0)
    return "" if failed else buffer.value.decode(errors="replace")


def _boot_time(wall: float, monotonic: float) -> str:
    """Where the system gives no id (Windows): the minute it was started."""
    return f"{_UP_SINCE}{round((wall - monotonic) / 60)}"


def process_start(pid: int | None = None) -> str:
    """When this process (or the one with that `pid`) was started, in the system's own words; with the pid it names the
    process. Empty where the system does not tell.
    """
    try:
        stat = Path(f"/proc/{'self' if pid is None else pid}/stat").read_bytes()  # its name may be no text
        return stat.rsplit(b")", 1)[1].split()[19].decode()
    except (OSError, IndexError):
        return ""


def is_running(pid: int, started: str, boot: str) -> bool:
    """Whether that very process runs; False where the system does not tell."""
    return bool(started) and is_same_boot(boot, boot_id()) and process_start(pid) == started
