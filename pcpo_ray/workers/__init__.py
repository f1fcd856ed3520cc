"""The work of the roles, each in one process and without Ray: sampler, scorer, learner."""
