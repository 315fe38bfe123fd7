"""Fixtures that every test may use."""

from _servers import database_url, new_database, server_database_url

__all__ = ["database_url", "new_database", "server_database_url"]
