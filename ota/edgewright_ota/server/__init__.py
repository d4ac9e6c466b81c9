"""The update server; it needs the `server` extra."""

from edgewright_ota.server.app import create_app

__all__ = ["create_app"]
