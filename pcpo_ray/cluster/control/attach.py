"""Joining a cluster that is there: within seconds, or with an error that says why not. Nothing here starts one."""

import logging
import os
from pathlib import Path

import grpc
import ray
from ray import exceptions
from ray._private import services
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from pcpo_ray.errors import ClusterError

ANSWER = 10.0
"""Seconds within which a cluster's head must answer."""

WHERE = (
    "give --address or RAY_ADDRESS the host:port that `ray start --head` has printed "
    "(without RAY_ADDRESS, train starts a cluster on this machine)"
)
KEPT = "~/.ray/auth_token"
"""The file in which Ray keeps a token, on the machines of a cluster that has made one."""


def token_hint() -> str:
    """Say what to set for a cluster that wants a token: on one's own head, the mode alone is enough."""
    if os.environ.get("RAY_AUTH_MODE") != "token" and Path(KEPT).expanduser().is_file():
        return f"set RAY_AUTH_MODE=token, which is enough if {KEPT} here is this cluster's; else RAY_AUTH_TOKEN too"
    return (
        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the file that holds it "
        f"(on a machine of the cluster that is {KEPT})"
    )


def attach(address: str) -> str:
    """Join the cluster at host:port, or the one on this machine (auto); return its dashboard's host:port, or "".

    Raises ClusterError that says what is wrong: no cluster there, no token or a wrong one, a machine outside of it.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    found = checked(address)
    try:
        context = ray.init(address=found, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    except (ConnectionError, ValueError, RuntimeError, OSError, exceptions.RayError) as error:
        raise ClusterError(
            f"the Ray cluster at {found} cannot be joined from this machine: {error}; "
            "run the command on one of the cluster's machines, or give --address http://HEAD:8265"
        ) from error
    return context.dashboard_url or ""


def no_token(address: str, error: exceptions.AuthenticationError) -> ClusterError:
    """Make the error of a process without a token, though RAY_AUTH_MODE asks for one."""
    return ClusterError(f"no token for the Ray cluster at {address}: {str(error).partition('. ')[0]}; {token_hint()}")


def check(address: str) -> None:
    """Check that a cluster answers, unless this process has joined one, in which it stays. Raises ClusterError."""
    if not ray.is_initialized():
        checked(address)


def _check_only_one() -> None:
    """Refuse to choose among several clusters on this machine, where a run might be stopped in the wrong one."""
    if ray.is_initialized() or os.environ.get("RAY_ADDRESS", "auto") not in ("", "auto"):
        return
    found = sorted(services.find_gcs_addresses())
    if len(found) > 1:
        raise ClusterError(
            f"{len(found)} Ray clusters run on this machine, at {', '.join(found)}; name one of them with --address or "
            "RAY_ADDRESS"
        )


def checked(address: str) -> str:
    """Return the address of a cluster that answers. Ray itself would try for minutes, and say little of the cause."""
    try:
        if address == "auto":
            _check_only_one()
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        found = services.canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError) as error:
        raise ClusterError(f"no Ray cluster at {address!r}: {error}; {WHERE}") from error
    if found is None:  # RAY_ADDRESS=local, which stands for a new one
        raise ClusterError(f"{os.environ.get('RAY_ADDRESS', address)!r} is no cluster that is there; {WHERE}")
    try:
        with init_grpc_channel(found, options=GLOBAL_GRPC_OPTIONS) as channel:  # of proxies, as Ray itself
            head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            head.GetClusterId(gcs_service_pb2.GetClusterIdRequest(), timeout=ANSWER)
    except exceptions.AuthenticationError as error:
        raise no_token(found, error) from error
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.UNAUTHENTICATED:
            raise ClusterError(f"no Ray cluster at {found}: {error.details()}; {WHERE}") from error
        what = "refuses this token" if is_token_auth_enabled() else "wants a token"
        raise ClusterError(f"the Ray cluster at {found} {what}; {token_hint()}") from error
    return str(found)
