"""Search spaces as tables: trace a module once, then work on integers."""
