"""Receives, decides, ingests, keeps, shows."""

from typing import TYPE_CHECKING

__all__ = ["ServerConfig", "create_app"]

if TYPE_CHECKING:
    from mailboat.server.app import create_app
    from mailboat.server.config import ServerConfig
else:

    def __getattr__(name: str) -> object:
        """`create_app` and `ServerConfig`, when asked for: a decoder's process or `mailboat keys` needs no aiohttp."""
        if name == "create_app":
            from mailboat.server.app import create_app  # noqa: PLC0415 - see above

            return create_app
        if name == "ServerConfig":
            from mailboat.server.config import ServerConfig  # noqa: PLC0415 - see above

            return ServerConfig
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
