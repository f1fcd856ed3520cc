"""The commands: train, evaluate, sample, report, plan, study, bench, submit, status, scale, logs, stop."""
