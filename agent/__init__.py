"""The agent that applications embed: records sessions safely on disk, and delivers them."""

from mailboat.agent.agent import Agent
from mailboat.agent.alerts import Alert
from mailboat.agent.config import AgentConfig
from mailboat.agent.hosted import AgentThread
from mailboat.agent.report import AgentState, SessionOutcome, SessionState, Status, SyncProgress, SyncReport
from mailboat.protocol.errors import ConfigError, MailboatError, StoreError
from mailboat.protocol.records import Kind, Level, Record

__all__ = [
    "Agent",
    "AgentConfig",
    "AgentState",
    "AgentThread",
    "Alert",
    "ConfigError",
    "Kind",
    "Level",
    "MailboatError",
    "Record",
    "SessionOutcome",
    "SessionState",
    "Status",
    "StoreError",
    "SyncProgress",
    "SyncReport",
]
