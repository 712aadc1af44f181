"""What is said of the machine and the process in a session's description."""

from __future__ import annotations

import getpass
import locale
import os
import platform
import socket
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mailboat.agent.config import AgentConfig
from mailboat.protocol.summary import PERSONAL_TEXTS, Info, cut_properties


def agent_version() -> str:
    """The installed version of mailboat."""
    try:
        return version("mailboat")
    except PackageNotFoundError:
        return "0"


def describe(config: AgentConfig) -> Info:
    """The static description of a session; an anonymous one says nothing of user, host and command line."""
    texts = {
        "product": config.product,
        "application": config.application,
        "version": config.version,
        "environment": config.environment,
        "agent": f"mailboat-python/{agent_version()}",
        "user": _user(),
        "host": socket.gethostname(),
        "command": " ".join(sys.argv)[:1024],
        "os": f"{platform.system()} {platform.release()}",
        "runtime": f"{platform.python_implementation()} {platform.python_version()}",
        "time_zone": time.strftime("%z"),
        "locale": locale.getlocale()[0] or "",
    }
    if config.anonymous:
        texts.update(dict.fromkeys(PERSONAL_TEXTS, ""))
    return Info(
        **texts, test=config.test_mode, anonymous=config.anonymous, properties=cut_properties(config.properties)
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in many containers
        return str(os.getuid()) if hasattr(os, "getuid") else ""


def boot_id() -> str:
    """An id of this run of the machine; empty where there is none, and then nothing is taken to be of this run."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _boot_time()


def _boot_time() -> str:
    """Where the system gives no id (macOS, Windows): the minute it was started."""
    since_boot: Any = getattr(time, "CLOCK_UPTIME_RAW", None) or getattr(time, "CLOCK_MONOTONIC", None)
    if since_boot is None or not hasattr(time, "clock_gettime"):
        return ""
    return f"up-since-{round((time.time() - time.clock_gettime(since_boot)) / 60)}"


def process_start() -> str:
    """When this process was started, in the system's own words; with the pid it names the process."""
    try:
        return Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
