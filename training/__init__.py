"""Training of adapters: what the Trainer's jobs run, and the bootstrap. See docs/training.md."""
