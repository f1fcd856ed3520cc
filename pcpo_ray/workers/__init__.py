"""What the roles do, each in one process and without Ray: sampler, scorer, learner."""
