"""The trainer server."""
