"""Remedies for numbers that are not finite: what a run's settings leave to be changed."""

from pcpo_ray import config


def remedy(run: config.Run, version: int) -> str:
    """Advise how to keep the numbers of weights `version` finite, by the settings that are narrower than float32.

    If none is, the weights themselves are to blame: the model's own, or those that training has led to.
    """
    narrow = {"model.dtype": run.model.dtype, "sampling.storage": run.sampling.storage}
    wider = [f"{key}=float32 (now {dtype})" for key, dtype in narrow.items() if dtype != "float32"]
    if run.optimizer.mixed_precision != "no":
        wider.append(f"optimizer.mixed_precision=no (now {run.optimizer.mixed_precision})")
    advice = [f"set {' and '.join(wider)}"] if wider else []
    if version:
        advice.append("continue from an earlier checkpoint with a lower optimizer.learning_rate")
    elif not wider:
        advice.append("copy the files of the model, and of model.train.start, again from where they are whole")
    return ", or ".join(advice)
