"""The learned quality gate: how likely the small model, and the large one, is good enough for a prompt. numpy only."""
