"""The sparse layer: experts, shared expert, dropout."""

import pytest
import torch
from torch import nn

from moe_codegen.moe import SparseMoE
from tests.modeling.mixture import mixture
from tests.tiny import FAMILIES


def layer(family="phi", **fields) -> SparseMoE:
    return next(module for module in mixture(family, **fields).modules() if isinstance(module, SparseMoE))


def hidden(rows=3, length=7):
    return torch.randn(rows, length, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fields", [dict(), dict(norm_topk_prob=False), dict(num_experts_per_tok=4)])
@pytest.mark.parametrize("family", ["gpt_bigcode", "llama"])
def test_a_tokens_output_is_the_weighted_sum_of_its_experts(family, fields):
    sparse, x = layer(family, **fields), hidden()
    routing = sparse.gate(x.flatten(0, 1))
    every = torch.stack(
        [  # each expert alone on all tokens
            sparse.experts(x.flatten(0, 1), torch.full((21, 1), e), torch.ones(21, 1)) for e in range(4)
        ],
        dim=1,
    )
    gates = torch.zeros(21, 4).scatter(1, routing.ids_TK, routing.weights_TK)
    torch.testing.assert_close(sparse(x), (gates[:, :, None] * every).sum(1).view_as(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("family", ["gpt_bigcode", "llama"])
def test_the_shared_expert_takes_its_share_of_every_token(family, share):
    sparse, x = layer(family, shared_expert=True, shared_expert_weight=share), hidden()
    mixed, shared = layer(family)(x), sparse.shared_expert(x)
    torch.testing.assert_close(sparse(x), share * shared + (1 - share) * mixed, rtol=1e-4, atol=1e-4)
    assert (mixed - shared).abs().max() > 0.1


@pytest.mark.parametrize(("family", "field"), [("gpt_bigcode", "resid_pdrop"), ("starcoder2", "residual_dropout")])
def test_dropout_stays_where_the_dense_ffn_has_it(family, field):
    sparse = layer(family, dense={field: 0.5}).train()
    dropped = (sparse(hidden()) == 0).float().mean().item()
    assert dropped == pytest.approx(0.5, abs=0.1)
    assert not (sparse.eval()(hidden()) == 0).any()


def test_phi_has_its_dropout_outside_the_ffn():
    sparse = layer("phi", dense={"resid_pdrop": 0.5}).train()
    assert not any(isinstance(module, nn.Dropout) for module in sparse.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_carry_the_shapes_and_biases_of_their_family(family):
    names = {name: tuple(p.shape) for name, p in layer(family).experts.named_parameters()}
    if family in ("gpt_bigcode", "phi", "starcoder2"):
        assert names == {
            "up_proj": (4, 80, 32),
            "up_proj_bias": (4, 80),
            "down_proj": (4, 32, 80),
            "down_proj_bias": (4, 32),
        }
    else:
        assert names == {"gate_up_proj": (4, 160, 32), "down_proj": (4, 32, 80)}
