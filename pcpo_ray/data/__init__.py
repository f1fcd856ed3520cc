"""The data of a run: prompts, tasks, trajectories, updates, requests and weights."""
