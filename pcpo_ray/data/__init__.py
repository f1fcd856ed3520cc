"""What goes into a run and what travels in it: prompts, tasks, trajectories, updates, requests, weights."""
