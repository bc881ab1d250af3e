"""The Governor: configuration at run time, budgets and spend."""
