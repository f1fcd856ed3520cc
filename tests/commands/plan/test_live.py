"""Bytes of tensors that are alive at once, and what AdamW's step is seen to take."""

import pytest
import torch
from torch import nn

from pcpo_ray.commands.plan.autocast import CudaRules
from pcpo_ray.commands.plan.live import Live

MIB = 2**20


def floats(mib):
    return torch.empty(mib * MIB // 4)


def test_what_is_let_go_counts_no_longer_and_the_peak_stays():
    there = floats(8)
    with Live() as live:
        first = floats(2)
        second = there + 1
        assert live.now == live.peak == 10 * MIB
        del second
        assert (live.now, live.peak) == (2 * MIB, 10 * MIB)
        del first
    assert (live.now, live.peak) == (0, 10 * MIB)


def test_views_and_changes_in_place_take_nothing():
    there = floats(8)
    with Live() as live:
        there[1:].view(-1).add_(1)
    assert live.peak == 0


def test_what_a_layer_keeps_for_its_backward_pass_counts_until_then():
    layers = nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 512))
    batch = torch.zeros(1024, 512)
    for parameter in layers.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with Live() as live:
        loss = layers(batch).sum()
        kept = live.now
        loss.backward()
    assert kept - 2 * 1024 * 512 * 4 in range(0, 64)  # GELU's input and output; the last layer's output is let go
    assert 0 <= live.now <= 64 and live.peak > kept


@pytest.mark.parametrize(("kernels", "narrow", "wider"), [(None, 0, 0), ("cpu", 0, 1), ("cuda", 1, 1)])
def test_a_convolution_has_copies_in_a_layout_of_its_own(kernels, narrow, wider):
    """On the CPU its largest tensor once more; on a GPU what comes in and what comes out."""
    with Live(kernels) as live:
        nn.functional.conv2d(torch.zeros(4, 8, 64, 64), torch.zeros(16, 8, 3, 3), padding=1)
    outcome, wide = 4 * 8 * 64 * 64 * 4 + 16 * 8 * 9 * 4, 4 * 16 * 64 * 64 * 4
    assert live.peak == outcome + wide + narrow * 4 * 8 * 64 * 64 * 4 + wider * wide


@pytest.mark.parametrize("shape", [(4, 8, 16, 16), (2, 8, 4, 16, 16)])
def test_images_with_channels_last_are_convolved_without_copies_on_a_cpu(shape):
    """SANA's tokens become such images by a transposition, and oneDNN takes them as they are."""
    convolve = {4: nn.functional.conv2d, 5: nn.functional.conv3d}[len(shape)]
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)]
    kernels, peaks = torch.zeros(8, 8, *(1 for _ in shape[2:])), []
    for images in (torch.zeros(shape), torch.zeros(shape).to(memory_format=layout)):
        with Live("cpu") as live:
            convolve(images, kernels)
        peaks.append(live.peak)
    assert peaks[0] - peaks[1] == torch.zeros(shape).nbytes > 0


@pytest.mark.parametrize("foreach", [False, True])
def test_adamws_step_takes_what_the_learners_plan_says(foreach):
    parameters = [nn.Parameter(torch.zeros(n, 1024)) for n in (256, 512, 1024)]
    optimizer = torch.optim.AdamW(parameters, foreach=foreach)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    trained = sum(p.nbytes for p in parameters)
    optimizer.step()
    kept = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert kept == 2 * trained + 4 * len(parameters)  # moments, and how many steps were taken
    with Live() as live:
        optimizer.step()
    least, planned = (trained, trained) if foreach else (2 * parameters[-1].nbytes, 3 * parameters[-1].nbytes)
    assert least <= live.peak <= 1.02 * planned


def test_cudas_autocast_computes_norms_in_float32_and_lets_dtypes_differ():
    half = torch.zeros(2, 8, dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        linear = nn.functional.linear(half, torch.zeros(8, 8))
        with pytest.raises(RuntimeError, match="autocast"):
            torch.cat([half, linear])
        with CudaRules():
            assert torch.cat([half, linear]).dtype is torch.float32
            assert nn.functional.layer_norm(linear, (8,)).dtype is torch.float32
            assert linear.pow(2).dtype is torch.float32
            assert nn.functional.linear(half, torch.zeros(8, 8)).dtype is torch.bfloat16
        assert nn.functional.layer_norm(linear, (8,)).dtype is torch.bfloat16
    with CudaRules():
        assert nn.functional.layer_norm(half, (8,)).dtype is torch.float16
