"""The configuration: dispatch, round trips, and what it refuses."""

import copy
import json
import pickle

import pytest
from transformers import AutoConfig

from moe_codegen import MoEConfig, MoEForCausalLM
from moe_codegen.errors import ConfigError
from tests.modeling.mixture import mixture
from tests.tiny import FAMILIES, dense_model

EVERY_FIELD = dict(
    num_experts=6,
    num_experts_per_tok=3,
    moe_intermediate_size=24,
    moe_layers=[0, 2],
    norm_topk_prob=False,
    router_type="noisy_top_k",
    router_jitter_noise=0.01,
    router_logit_scale=1.5,
    language_routing="prior",
    language_prior_init=2.0,
    shared_expert=True,
    shared_expert_weight=0.25,
    router_aux_loss_coef=0.02,
    router_z_loss_coef=0.003,
    output_router_logits=True,
    expert_names=["python", "java"],
    expert_granularity=3,
    source={"layout": "santacoder", "config": {"n_embd": 32}},
)


def phi(**fields) -> MoEConfig:
    return MoEConfig(**{"family": "phi", **FAMILIES["phi"], **fields})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_configurations_fields_are_taken_over(family):
    dense = dense_model(family).config
    config = MoEConfig.from_dense(dense, **EVERY_FIELD)
    assert config.model_type == f"moe_{family}"
    kept = dense.to_dict()
    for field in ("model_type", "architectures", "transformers_version"):
        kept.pop(field, None)
    assert kept == {field: value for field, value in config.to_dict().items() if field in kept}
    assert EVERY_FIELD.items() <= config.to_dict().items()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_survives_every_round_trip(family, tmp_path):
    config = MoEConfig.from_dense(dense_model(family).config, **EVERY_FIELD)
    config.save_pretrained(tmp_path)
    copies = [
        MoEConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        type(config).from_pretrained(tmp_path),
        MoEConfig.from_dict(config.to_dict()),
        type(config).from_dict(config.to_dict()),
        copy.deepcopy(config),
        pickle.loads(pickle.dumps(config)),
    ]
    for each in copies:
        assert type(each) is type(config)
        where_from = dict(transformers_version=None, _name_or_path=None)
        assert each.to_dict() | where_from == config.to_dict() | where_from


def test_a_family_name_gives_that_familys_class():
    assert type(phi()).__name__ == "MoEPhiConfig"
    assert phi().moe_intermediate_size == 80
    assert phi().sparse_layers == [0, 1, 2]
    assert phi(moe_layers=(2, 0)).sparse_layers == [0, 2]


def test_an_ffn_width_left_out_is_four_times_the_models():
    config = MoEConfig(family="gpt_bigcode", n_embd=32, n_layer=1, n_head=4)
    assert config.moe_intermediate_size == 128


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(num_experts=0), "num_experts=0: a mixture needs at least one"),
        (dict(num_experts="8"), "num_experts should be of type int, found '8'"),
        (dict(num_experts_per_tok=2.0), r"num_experts_per_tok should be of type int, found 2\.0"),
        (dict(moe_layers=["0"]), "moe_layers should be of type int, found '0'"),
        (dict(moe_layers=0), "moe_layers should be a list, found 0"),
        (dict(norm_topk_prob=None), "norm_topk_prob should be of type bool, found None"),
        (dict(moe_intermediate_size=0), "moe_intermediate_size=0: an expert needs at least one unit"),
        (dict(num_experts_per_tok=9), "num_experts_per_tok=9 must lie between 1 and num_experts=8; lower it"),
        (dict(num_experts_per_tok=0), "num_experts_per_tok=0 must lie between 1"),
        (dict(num_experts_per_tok=1), "makes every weight 1.*set norm_topk_prob=False"),
        (dict(router_type="topk"), "router_type='topk' is not known; use 'top_k' or 'noisy_top_k'"),
        (dict(router_jitter_noise=-0.1), "router_jitter_noise=-0.1 must lie between 0 and 1"),
        (dict(router_jitter_noise=1.0), "router_jitter_noise=1.0 must lie between 0 and 1"),
        (dict(router_logit_scale=-1.0), "router_logit_scale=-1.0 must be 0 or positive"),
        (dict(language_routing="detect"), "use 'none', 'prior' or 'oracle'"),
        (dict(language_routing="prior"), "language_routing='prior' needs expert_names"),
        (
            dict(language_routing="oracle", num_experts=2, expert_names=["c", "d"]),
            "one expert, so num_experts_per_tok=2 must be 1",
        ),
        (dict(shared_expert_weight=1.5), "shared_expert_weight=1.5 must lie between 0 and 1"),
        (dict(moe_layers=[]), "moe_layers=.*at least one"),
        (dict(moe_layers=[1, 1]), "must name different layers between 0 and 2"),
        (dict(moe_layers=[0, 3]), "must name different layers between 0 and 2"),
        (dict(moe_layers=[-1]), "must name different layers between 0 and 2"),
        (dict(expert_granularity=3), "expert_granularity=3 must divide num_experts=8 and num_experts_per_tok=2"),
        (dict(expert_granularity=4), "expert_granularity=4 must divide"),
        (dict(expert_granularity=0), "expert_granularity=0 must divide"),
        (dict(expert_names=["python"]), "1 expert_names for 8 experts; give one for each"),
        (dict(expert_names=["c"] * 8, expert_granularity=2), "8 expert_names for 4 experts"),
        (dict(expert_names=["c"] * 8), "must all differ, and none be empty; give each expert its own name"),
        (dict(expert_names=["c", ""], num_experts=2), r"\['c', ''\] must all differ"),
        (dict(family="bert"), "family 'bert'; supported are gpt_bigcode, phi"),
    ],
    ids=str,
)
def test_fields_that_cannot_hold_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        phi(**fields)


def test_a_family_must_be_named_and_be_the_classes_own():
    with pytest.raises(ConfigError, match="needs family=, one of gpt_bigcode, phi"):
        MoEConfig(num_experts=4)
    with pytest.raises(ConfigError, match="is of the family phi, not llama"):
        type(phi())(family="llama")


def test_top_1_is_allowed_as_switch_routing_and_for_a_single_expert():
    assert phi(num_experts_per_tok=1, norm_topk_prob=False).num_experts_per_tok == 1
    assert phi(num_experts_per_tok=1, num_experts=1).num_experts == 1


def test_a_field_set_later_is_checked_when_a_model_is_made():
    config = phi()
    config.num_experts_per_tok = 1
    with pytest.raises(ConfigError, match="Switch routing"):
        MoEForCausalLM(config)


def test_a_field_set_on_loading_is_checked_too(tmp_path):
    mixture("phi").save_pretrained(tmp_path)
    assert MoEForCausalLM.from_pretrained(tmp_path, router_jitter_noise=0.5).config.router_jitter_noise == 0.5
    with pytest.raises(ConfigError, match="num_experts_per_tok=5"):
        MoEForCausalLM.from_pretrained(tmp_path, num_experts_per_tok=5)


def test_a_config_json_with_a_value_of_another_type_is_refused(tmp_path):
    phi().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_attention_heads": "4"}))
    with pytest.raises(
        ConfigError, match=r"config\.json of .*'num_attention_heads' expected int, got str .*; correct it"
    ):
        MoEConfig.from_pretrained(tmp_path)


def test_a_dense_configuration_is_refused_with_the_way_to_go(tmp_path):
    dense = dense_model("phi")
    dense.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"is a phi model, not a mixture.*moe-codegen upcycle"):
        MoEConfig.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"is a phi model, not a mixture.*moe-codegen upcycle"):
        MoEForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"a phi configuration is a dense model's; make a mixture's"):
        MoEForCausalLM(dense.config)
    with pytest.raises(ConfigError, match=r"a phi configuration is a dense model's"):
        MoEForCausalLM.from_pretrained(tmp_path, config=dense.config)
    with pytest.raises(ConfigError, match="model_type 'phi' is not a mixture's"):
        MoEConfig.from_dict(dense.config.to_dict())
