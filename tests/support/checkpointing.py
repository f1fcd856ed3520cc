"""Checkpoints written by hand."""

from pcpo_ray.runs import checkpoints


def write_checkpoint(folder, *, version, state, parameters, averaged, optimizer, export=lambda folder: None, updates=0):
    """Write a checkpoint; `export` writes diffusers' own files."""
    with checkpoints.unfinished(folder) as made:
        sums = checkpoints.write_part(made, parameters, averaged, optimizer)
        export(made)
        checkpoints.finish(made, folder, version=version, state=state, updates=updates, sums=sums)
