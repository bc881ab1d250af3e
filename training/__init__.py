"""Training of adapters: what the Trainer's jobs run. Nothing is built yet."""
