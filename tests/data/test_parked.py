"""Parked tensors: where they lie asleep and awake, and what an error between leaves."""

import pytest
import torch
from torch import nn

from pcpo_ray.commands.plan.live import Live
from pcpo_ray.data.parked import Parked, Places, parked, parked_network
from tests.support.two_places import Copies

CPU = torch.device("cpu")


def network():
    made = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    made[0].bias = nn.Parameter(made[1].bias.detach())  # two names for one memory
    made.append(made[0])  # and two places of one layer
    return made.eval().requires_grad_(False)


def pointers(module):
    return [tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())]


def test_a_network_is_copied_to_the_device_while_awake_and_dropped_there():
    module, copies = network(), Copies()
    shown, state = module(torch.ones(2, 4)), {name: value.clone() for name, value in module.state_dict().items()}
    parameters = dict(module.named_parameters())
    lying = Parked(lambda: (*module.parameters(), *module.buffers()), copies.places, frozen=True)
    homes = pointers(module)
    for _ in range(2):
        with Live() as live:
            with lying.awake():
                held = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
                assert live.now == held and copies.alive == len(homes)
                assert not {*pointers(module)} & {*homes}
                assert torch.equal(module(torch.ones(2, 4)), shown)
            assert live.now == 0 and copies.alive == 0
        assert pointers(module) == homes  # nothing was copied back
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert all(parameter is parameters[name] for name, parameter in module.named_parameters())


def test_a_state_goes_to_sleep_as_it_is_then_also_what_is_new_of_it():
    copies, state = Copies(), {"a": torch.zeros(3)}
    lying = Parked(lambda: state.values(), copies.places)
    asleep = state["a"]
    with lying.awake():
        state["a"].add_(1)
        state["b"] = torch.full((2,), 5.0)
        made = state["b"].data_ptr()
    assert state["a"] is asleep and torch.equal(state["a"], torch.ones(3)) and copies.alive == 0
    assert state["b"].data_ptr() != made
    del state["a"], asleep
    lying.sleep()
    with lying.awake():
        state["b"].mul_(2)
        assert copies.alive == 1  # what there is no more is not woken
    assert torch.equal(state["b"], torch.full((2,), 10.0))


def test_after_an_error_all_sleep_with_what_they_hold_then():
    copies, state = Copies(), [torch.zeros(3), torch.zeros(2)]
    lying = Parked(lambda: state, copies.places)
    with pytest.raises(RuntimeError, match="broken off"), lying.awake():
        state[0].add_(1)
        raise RuntimeError("broken off")
    assert copies.alive == 0 and torch.equal(state[0], torch.ones(3)) and torch.equal(state[1], torch.zeros(2))


def test_a_device_without_room_leaves_all_asleep_and_awake_later():
    state, room = [torch.zeros(3), torch.ones(2)], [1]

    def woken(home):
        if not room:
            raise torch.OutOfMemoryError("no room")
        room.pop()
        return home.clone()

    lying = Parked(lambda: state, Places(host=torch.Tensor.clone, device=woken))
    homes = [tensor.data_ptr() for tensor in state]
    with pytest.raises(torch.OutOfMemoryError), lying.awake():
        pytest.fail("it was awake")
    assert [tensor.data_ptr() for tensor in state] == homes
    room += [1, 1]
    with lying.awake():
        assert not {tensor.data_ptr() for tensor in state} & {*homes}


def test_on_a_cpu_and_unless_it_is_asked_for_nothing_moves():
    module, state = network(), [torch.zeros(3)]
    before = pointers(module), state[0].data_ptr()
    for lying in (
        parked_network(True, module, CPU),
        parked(True, lambda: state, CPU),
        parked_network(False, module, CPU),
        parked(False, lambda: pytest.fail("it was asked"), CPU),
    ):
        with lying.awake():
            assert before == (pointers(module), state[0].data_ptr()) and not lying.homes
