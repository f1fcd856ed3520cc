"""The learner: training groups in, updated weights out."""
