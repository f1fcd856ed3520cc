"""State that a process has once and shares with all code in it: signals, output streams, settings."""
