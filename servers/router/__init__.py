"""The Router: answers requests over gRPC and over the OpenAI-compatible HTTP edge, and explains its decisions."""
