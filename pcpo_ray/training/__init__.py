"""The loop, the protocols that it is written against, what it schedules, and the stages in one process."""
