"""The controller, without Ray: requests wait until the driver takes them, and the end waits for who watches."""

from pcpo_ray.cluster.control.controller import WATCHED, Controller
from pcpo_ray.data.requests import Request


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def test_requests_are_handed_over_once_and_in_their_order():
    controller = Controller({"step": 0})
    asked = [Request(samplers=2), Request(stop=True)]
    for request in asked:
        controller.ask(request)
    assert controller.exchange({"step": 1}) == asked and controller.exchange({"step": 2}) == []


def test_the_status_says_how_old_it_is():
    clock = Clock()
    controller = Controller({"step": 0}, clock)
    clock.seconds += 3
    assert controller.status() == {"step": 0, "age": 3.0}


def test_the_end_is_heard_once_everybody_who_watches_has_asked_again():
    clock = Clock()
    controller = Controller({"step": 0}, clock)
    assert controller.heard()  # nobody has ever asked
    controller.status()
    clock.seconds += WATCHED / 2
    controller.tell({"state": "stopped"})
    assert not controller.heard()  # the one who asked a moment ago has not heard it
    controller.status()
    assert controller.heard()


def test_a_watcher_who_asks_no_more_is_not_waited_for():
    clock = Clock()
    controller = Controller({"step": 0}, clock)
    controller.status()
    controller.tell({"state": "stopped"})
    clock.seconds += WATCHED + 0.1
    assert controller.heard()
