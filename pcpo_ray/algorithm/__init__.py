"""The paper: noise schedules, affine steps, credit, advantages, losses. Torch only."""
