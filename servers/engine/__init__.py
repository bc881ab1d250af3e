"""The embedded model server: llama.cpp behind an OpenAI-compatible HTTP endpoint."""
