"""However processes share the model and the data, the losses and gradients are those of one process."""

import functools

import pytest

from moe_codegen.training.parallel.mesh import ProcessLayout
from tests.training.parallel import processes
from tests.training.parallel.runs import each_layout, weights_held

LAYOUTS = {
    "2, DDP": ProcessLayout(2),
    "2, FSDP2": ProcessLayout(2, fsdp_size=2),
    "2, EP2": ProcessLayout(2, ep_size=2),
    "2, FSDP2 x EP2": ProcessLayout(2, fsdp_size=2, ep_size=2),
    "4, DDP": ProcessLayout(4),
    "4, FSDP2": ProcessLayout(4, fsdp_size=4),
    "4, two copies of FSDP2": ProcessLayout(4, fsdp_size=2),
    "4, EP4": ProcessLayout(4, ep_size=4),
    "4, EP2 x DP2": ProcessLayout(4, ep_size=2),
    "4, FSDP2 x EP2": ProcessLayout(4, fsdp_size=4, ep_size=2),
}


@functools.cache
def of_one_process(family):
    alone = ProcessLayout()
    return each_layout(family, [alone])[alone]


@functools.cache
def of_processes(family, world_size):
    layouts = [layout for layout in LAYOUTS.values() if layout.world_size == world_size]
    return processes.run(world_size, each_layout, family, layouts)[0]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_ten_steps_have_the_losses_of_one_process(layout):
    expected, _ = of_one_process("phi")
    losses, _ = of_processes("phi", layout.world_size)[layout]
    assert len(losses) == 10
    assert losses == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_gradient_is_that_of_one_process_and_so_is_the_norm_that_clips_them(layout):
    _, (expected, expected_norm) = of_one_process("phi")
    _, (gradients, norm) = of_processes("phi", layout.world_size)[layout]
    assert norm == pytest.approx(expected_norm, rel=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_process_holds_its_share_of_the_experts_and_of_the_rest(world_size):
    alone = ProcessLayout()
    experts, rest = weights_held("phi", [alone])[alone]
    layouts = [layout for layout in LAYOUTS.values() if layout.world_size == world_size]
    for held in processes.run(world_size, weights_held, "phi", layouts):
        for layout, (held_experts, held_rest) in held.items():
            assert held_experts == experts / max(layout.fsdp_size, layout.ep_size), layout
            assert held_rest == pytest.approx(rest / layout.fsdp_size, rel=0.02), layout
