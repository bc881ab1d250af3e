"""The adapter registry server."""
