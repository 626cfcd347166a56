"""quantised_expert_ffn on the CPU, compiled and not, and what a GPU does for many tokens, against the oracle."""

from dataclasses import dataclass, replace

import pytest
import torch

from moe_codegen_kernels import ACTIVATIONS, oracle, quantise_weight, quantised_expert_ffn
from moe_codegen_kernels.cpu import compiled
from moe_codegen_kernels.quantised import as_experts, expert_ffn_made_wide, quantised_expert_ffn_backward_cuda
from tests.kernels.problems import LOADS, Problem, make_problem, relative_error

FORMATS = [(8, None), (8, 32), (4, 32), (4, 64)]
# The compiled kernel rounds its input to 16 bits; what a float32 product of the same rows loses is a hundredth of it.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-3, torch.float16: 1e-3}


@dataclass
class Quantised:
    """A problem whose weights are stored in `bits`."""

    problem: Problem
    up: torch.Tensor
    up_scales: torch.Tensor
    down: torch.Tensor
    down_scales: torch.Tensor

    def arguments(self):
        p = self.problem
        experts = (self.up, self.up_scales, p.up_bias, self.down, self.down_scales, p.down_bias)
        return p.hidden_TD, p.expert_ids_TK, p.weights_TK, *experts

    @property
    def kind(self):
        return {"activation": self.problem.activation, "gated": self.problem.gated}


def make(bits=8, group_size=None, dtype=torch.float32, model=64, hidden=128, **settings):
    problem = make_problem(model=model, hidden=hidden, **settings).to(dtype)
    up, up_scales = quantise_weight(problem.up, bits, group_size)
    down, down_scales = quantise_weight(problem.down, bits, group_size)
    return Quantised(problem, up, up_scales, down, down_scales)


def results(function, quantised, dtype=None):
    """Output, and gradients of input and routing weights."""
    problem = quantised.problem if dtype is None else quantised.problem.to(dtype, dtype)
    inputs = {name: getattr(problem, name).detach().clone().requires_grad_() for name in ("hidden_TD", "weights_TK")}
    changed = replace(quantised, problem=replace(problem, **inputs))
    out_TD = function(*changed.arguments(), **quantised.kind)
    out_TD.backward(problem.grad_TD)
    return {"out_TD": out_TD.detach(), **{f"d_{name}": value.grad for name, value in inputs.items()}}


def check(quantised, function=quantised_expert_ffn):
    truth = results(oracle.quantised_expert_ffn, quantised, torch.float64)
    dtype = quantised.problem.hidden_TD.dtype
    for name, value in results(function, quantised).items():
        assert value.dtype == (torch.float32 if name == "d_weights_TK" else dtype)
        # A routing weight's gradient is one sum over the whole output, in which terms cancel.
        tolerance = TOLERANCE[dtype] * (10 if name == "d_weights_TK" else 1)
        assert relative_error(value, truth[name]) < tolerance, name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_every_format_and_dtype_gives_what_the_dequantised_weights_give(bits, group_size, dtype, cpu_path):
    check(make(bits, group_size, dtype))


@pytest.mark.parametrize("tokens", [1, 3, 5, 90])
@pytest.mark.parametrize("load", LOADS)
def test_every_load_and_number_of_rows(load, tokens, cpu_path):
    check(make(4, 32, tokens=tokens, load=load))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group_size"), FORMATS)
def test_many_rows_are_rounded_to_bfloat16_in_a_model_of_bfloat16_alone(bits, group_size, dtype, cpu_path):
    quantised = make(bits, group_size, dtype, tokens=300, experts=3, model=128, hidden=256)
    check(quantised)
    exact = replace(quantised, problem=quantised.problem.to(torch.float32))
    outputs = [quantised_expert_ffn(*each.arguments(), **each.kind).to(dtype) for each in (quantised, exact)]
    rounds = dtype == torch.bfloat16 and compiled.multiplies_pairs()
    assert (relative_error(*outputs) > torch.finfo(dtype).eps / 16) == rounds


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_kind_of_expert(activation, gated, bias):
    check(make(8, None, activation=activation, gated=gated, bias=bias))


def test_rows_that_are_no_whole_blocks_run_too():
    check(make(8, None, model=24, hidden=40))


def test_a_layer_large_enough_for_threads_gives_the_same_bits_on_any_number_of_them(cpu_path, monkeypatch):
    quantised = make(4, 64, model=512, hidden=1024, tokens=4, experts=3)
    outputs, threads = [], torch.get_num_threads()
    for count in (1, 2):
        try:
            torch.set_num_threads(count)
            outputs.append(quantised_expert_ffn(*quantised.arguments(), **quantised.kind))
        finally:
            torch.set_num_threads(threads)
    load = compiled.load
    monkeypatch.setattr(compiled, "load", lambda kernel: "not here" if kernel == "quantised" else load(kernel))
    truth = quantised_expert_ffn(*quantised.arguments(), **quantised.kind)
    assert torch.equal(*outputs) or cpu_path == "torch"  # whose products are summed as its library likes
    assert relative_error(outputs[0], truth) < TOLERANCE[torch.float32]


def wide_path(*arguments, activation, gated):
    """What a GPU runs for many tokens and in the backward pass, on CPU tensors."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden_TD, ids_TK, weights_TK):
            ctx.save_for_backward(hidden_TD, ids_TK, weights_TK)
            return expert_ffn_made_wide(hidden_TD, ids_TK, weights_TK, as_experts(*arguments[3:], activation, gated))

        @staticmethod
        def backward(ctx, grad_TD):
            hidden_TD, ids_TK, weights_TK = ctx.saved_tensors
            d_hidden, d_weights = quantised_expert_ffn_backward_cuda(
                grad_TD, hidden_TD, ids_TK, weights_TK, *arguments[3:], activation, gated
            )
            return d_hidden, None, d_weights

    return Function.apply(*arguments[:3])


@pytest.mark.parametrize("load", LOADS)
def test_experts_made_wide_give_the_same(load):
    check(make(4, 32, load=load), wide_path)
    check(make(8, None, load=load, gated=True), wide_path)


def test_tokens_of_no_expert_at_all_give_zero():
    quantised = make(tokens=3)
    quantised.problem.expert_ids_TK[:] = 5
    for function in (quantised_expert_ffn, wide_path):
        assert not any(value.any() for value in results(function, quantised).values())


def test_gradcheck_in_float64():
    quantised = make(8, None, torch.float64, model=4, hidden=6, tokens=5, load="sentinels", gated=True)
    _, ids_TK, _, *experts = quantised.arguments()

    def function(hidden_TD, weights_TK):
        return quantised_expert_ffn(hidden_TD, ids_TK, weights_TK, *experts, **quantised.kind)

    problem = quantised.problem.to(torch.float64, torch.float64)
    assert torch.autograd.gradcheck(function, (problem.hidden_TD.requires_grad_(), problem.weights_TK.requires_grad_()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_shows_in_its_token_and_nowhere_else(value, cpu_path):
    quantised = make(4, 32, tokens=4)
    quantised.problem.hidden_TD[2, 5] = value
    out_TD = quantised_expert_ffn(*quantised.arguments(), **quantised.kind)
    assert torch.equal(torch.isfinite(out_TD).all(dim=-1), torch.tensor([True, True, False, True]))


@pytest.mark.parametrize(("bits", "group_size"), [(8, None), (4, 32)])
def test_opcheck(bits, group_size):
    quantised = make(bits, group_size, tokens=6, load="sentinels")
    hidden_TD, ids_TK, weights_TK, *experts = quantised.arguments()
    arguments = (hidden_TD.requires_grad_(), ids_TK, weights_TK.requires_grad_(), *experts, "gelu_tanh", False)
    torch.library.opcheck(torch.ops.moe_codegen.quantised_expert_ffn.default, arguments)


def test_compiled_without_graph_breaks():
    quantised = make(4, 32)
    compiled = torch.compile(quantised_expert_ffn, fullgraph=True, backend="aot_eager")
    expected = results(quantised_expert_ffn, quantised)
    for name, value in results(compiled, quantised).items():
        assert torch.equal(value, expected[name]), name


def test_under_autocast_nothing_is_narrowed():
    quantised = make(4, 32, tokens=90)
    expected = results(quantised_expert_ffn, quantised)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out_TD = quantised_expert_ffn(*quantised.arguments(), **quantised.kind)
    assert torch.equal(out_TD, expected["out_TD"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up": torch.zeros(5, 128, 64)}, "up is torch.float32; expected int8 or uint8"),
        ({"down_scales": torch.zeros(5, 64, 1)}, "down_scales is torch.float32; expected bfloat16"),
        ({"up_scales": torch.zeros(5, 128, 3, dtype=torch.bfloat16)}, "up_scales has shape \\(5, 128, 3\\)"),
        ({"down": torch.zeros(5, 64, 128, dtype=torch.uint8)}, "up has shape .5, 128, 64.; expected .5, 256, 64."),
    ],
)
def test_errors_say_what_does_not_fit(change, message):
    quantised = replace(make(), **change)
    with pytest.raises(ValueError, match=message):
        quantised_expert_ffn(*quantised.arguments(), **quantised.kind)


def test_a_gradient_of_the_experts_is_refused():
    quantised = make()
    quantised.problem.up_bias.requires_grad_()
    with pytest.raises(ValueError, match="quantised experts are frozen"):
        quantised_expert_ffn(*quantised.arguments(), **quantised.kind)
    with torch.no_grad():
        quantised_expert_ffn(*quantised.arguments(), **quantised.kind)
