"""An event of a run (events.jsonl) as a person reads it: time, kind and a sentence."""

import time
from collections.abc import Mapping
from typing import Any

from pcpo_ray.runs.lines import counted, shown


def line(row: Mapping[str, Any]) -> str:
    """Write an event as a line."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["time"]))
    return f"{at} {row['kind'].replace('_', ' ')}: {_sentence(row)}"


def _sentence(row: Mapping[str, Any]) -> str:
    match row:
        case {"kind": "started", "backend": backend, "device": device, "cores": cores, "prompts": prompts}:
            return "; ".join([f"{backend}, on {device} with {counted(cores, 'core')}", *prompts])
        case {"kind": "published", "version": version, "averaged": averaged, "bytes": size, "seconds": seconds}:
            what = "the EMA of the weights" if averaged else "the weights"
            return f"version {version} of {what}, {size / 2**20:.1f} MiB in {seconds:.2g} s"
        case {"kind": "checkpoint", "step": step, "seconds": seconds}:
            return f"step {step}, written in {seconds:.2g} s"
        case {"kind": "first_update", "max_log_ratio": ratio}:
            return f"the largest log-ratio is {shown(ratio)}"
        case {"kind": "micro_batch", "step": step, "pairs": pairs, "seconds_a_pair": tried}:
            times = ", ".join(f"{size}: {shown(seconds, '.2g')}" for size, seconds in tried.items())
            return f"{pairs} (image, timestep) pairs at once from step {step} on; seconds a pair by size, {times}"
        case {"kind": "missing_scores", "step": step, "prompt": prompt, "causes": causes}:
            why = "; ".join(f"{reward}: {cause}" for reward, cause in causes.items())
            return f"step {step}, {prompt!r}: {why}"
        case {"kind": "alarm", "step": step, "monitor": monitor, "text": text, "action": action}:
            return f"step {step}, {monitor}: {text}; monitors.action is {action}"
        case {"kind": "rolled_back", "step": step, "to": to, "alarm": alarm}:
            return f"from step {step} to step {to}: {alarm}"
        case {"kind": "resumed", "step": step, "checkpoint": checkpoint}:
            return f"from {checkpoint}, after step {step}"
        case {"kind": "stopped" | "finished", "step": step}:
            return f"after step {step}" + (f": {row['alarm']}" if "alarm" in row else "")
        case {"kind": "ending" | "failed", "error": error}:
            return str(error)
        case {"kind": "skipped", "step": step, "gradients": count}:
            return f"step {step}: {counted(count, 'optimizer step')}, as their gradient is not finite"
        case {"kind": "full", "needed": needed, "room": room}:
            return f"one batch more would take {needed / 2**30:.2f} GiB of {room / 2**30:.2f} in the object store"
        case {"kind": "refused", "why": why}:
            return str(why)
        case {"kind": "resized", "why": why}:
            return f"{why}: {_details(row, 'why')}"
        case {"kind": "code_changed", "changed": changed}:
            return "; ".join(changed)
        case {"message": message}:
            details = _details(row, "message")
            return f"{message}, {details}" if details else str(message)
        case _:
            return _details(row)


def _details(row: Mapping[str, Any], *told: str) -> str:
    """Write the details that are not told otherwise, each with its name."""
    rest = {name: value for name, value in row.items() if name not in ("time", "kind", *told)}
    return ", ".join(f"{name} {_value(value)}" for name, value in rest.items())


def _value(value: Any) -> str:
    match value:
        case float():
            return shown(value)
        case dict():
            return f"({', '.join(f'{name} {_value(one)}' for name, one in value.items())})"
        case list():
            return f"({', '.join(map(_value, value))})"
        case _:
            return str(value)
