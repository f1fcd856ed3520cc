"""Decisions about work and workers, without clocks, processes or threads: whoever drives them says what time it is.

Standard library only, so each decision can be tested by the ten thousand.
"""
