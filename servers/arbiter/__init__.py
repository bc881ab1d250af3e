"""The arbiter server."""
