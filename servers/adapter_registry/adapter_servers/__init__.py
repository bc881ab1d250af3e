"""Model servers that serve LoRA adapters, behind one port: the embedded engine, LoRAX, vLLM."""
