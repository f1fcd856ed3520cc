"""The paper: noise schedules, affine steps, credit, advantages and losses. It needs torch only."""
