"""The wall clock; everything that asks for the time takes it as an argument, with this as the default."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)
