"""A Ray of a test process's own."""

import contextlib
import os


@contextlib.contextmanager
def own_ray(**options):
    """Start a Ray without tokens: a process keeps the mode of its first Ray, and refuses calls of another mode."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(address="local", include_dashboard=False, log_to_driver=False, **options)
    try:
        yield
    finally:
        ray.shutdown()
