"""What one can type: train, evaluate, sample, report, plan, study, bench, submit, status, scale, logs, stop."""
