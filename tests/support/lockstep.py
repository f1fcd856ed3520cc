"""Ranks as threads of one process: what they sum up is summed up here, in the order of their indices."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch

from pcpo_ray.workers.learner.distributed import Rank


class Store:
    """What the ranks' store is asked for, in this process."""

    def __init__(self):
        self.values, self.lock = {}, threading.Lock()

    def compare_set(self, key, expected, desired):
        with self.lock:
            if self.values.get(key, "") == expected:
                self.values[key] = desired
            return self.values[key].encode()


class Meeting:
    def __init__(self, count, deadline=60.0):
        self.barrier, self.brought = threading.Barrier(count, timeout=deadline), [None] * count

    def together(self, index, tensor, reduce):
        self.brought[index] = tensor.clone()
        self.barrier.wait()
        found = reduce(torch.stack(self.brought))
        self.barrier.wait()
        return tensor.copy_(found)


@dataclass(frozen=True, kw_only=True)
class Threads(Rank):
    meeting: Meeting = field(repr=False)

    def total(self, tensor):
        return self.meeting.together(self.index, tensor, lambda brought: brought.sum(0))

    def largest(self, tensor):
        return self.meeting.together(self.index, tensor, lambda brought: brought.amax(0))


def ranks(count):
    meeting, store = Meeting(count), Store()
    return [Threads(index=index, count=count, store=store, meeting=meeting) for index in range(count)]


def at_once(work, *arguments):
    """What `work` gave or raised on each rank; who fails leaves no other waiting."""

    def kept(*own):
        try:
            return work(*own)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(arguments[0])) as threads:
        return list(threads.map(kept, *arguments))
