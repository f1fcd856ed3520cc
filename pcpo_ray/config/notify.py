"""Messages to a webhook when a run needs someone, or has ended."""

from typing import Annotated, Literal

from annotated_types import Len

from pcpo_ray.config.base import config

Occasion = Literal["failed", "alarm", "finished", "stopped"]
"""An occasion for a message; `stopped` is an end that somebody asked for."""


@config
class Notify:
    """A message to a webhook, as Slack and compatible services take it, for each of the `events`."""

    url_env: str = "PCPO_NOTIFY_URL"
    """The environment variable that holds the webhook's URL, a secret that stands in no config, log or report.

    It is read where the run's driver runs.
    """
    events: Annotated[tuple[Occasion, ...], Len(1)] = ("failed", "alarm", "finished")
    """The occasions for a message; `stopped` is an end that somebody asked for."""

    def __post_init__(self) -> None:
        if not self.url_env.isidentifier():
            raise ValueError(
                "notify.url_env is no name of an environment variable; expected a name such as PCPO_NOTIFY_URL, and "
                "the webhook's URL in that variable (the URL itself is a secret, and does not belong into a config)"
            )
