"""PCPO on Ray: prompts go to samplers, samplers make images and trajectories, scorers score the images, scores become
advantages, the learner applies the credit-weighted update, and its new weights go back to the samplers.

Proportionate Credit Policy Optimization: arXiv 2509.25774.
"""

__version__ = "0.1.0"
