"""What a process has one of, shared with whatever else runs in it: signals, output streams, settings."""
