"""Layouts that cannot be: refused before a weight is read."""

import pytest
from transformers import PhiConfig

from moe_codegen import MoEConfig
from moe_codegen.errors import ConfigError
from moe_codegen.training import DenseSettings, MixSettings, train
from moe_codegen.training.parallel import ProcessLayout
from tests.tiny import FAMILIES

DENSE = PhiConfig(**FAMILIES["phi"])
MIXTURE = MoEConfig.from_dense(DENSE, num_experts=6)


@pytest.mark.parametrize(
    ("layout", "config", "message"),
    [
        (ProcessLayout(4, ep_size=3), MIXTURE, "ep_size=3 does not divide the 4 processes"),
        (ProcessLayout(1, ep_size=2), MIXTURE, "ep_size=2 does not divide the 1 processes.*torchrun"),
        (ProcessLayout(4, fsdp_size=0), MIXTURE, "fsdp_size=0 does not divide"),
        (ProcessLayout(6, fsdp_size=2, ep_size=3), MIXTURE, "one must divide the other"),
        (ProcessLayout(4, ep_size=4), MIXTURE, "6 experts cannot be shared out evenly over ep_size=4"),
        (ProcessLayout(2, ep_size=2), DENSE, "a phi model has no experts"),
        (
            ProcessLayout(6, fsdp_size=6, ep_size=2),
            MIXTURE,
            "hidden_size=32 cannot be cut into fsdp_size / ep_size = 3",
        ),
    ],
    ids=str,
)
def test_a_layout_that_does_not_fit(layout, config, message):
    with pytest.raises(ConfigError, match=message):
        layout.check(config)


def test_layouts_that_fit():
    for layout in (ProcessLayout(), ProcessLayout(4), ProcessLayout(4, fsdp_size=4), ProcessLayout(4, fsdp_size=2)):
        layout.check(DENSE)
    for layout in (
        ProcessLayout(6, ep_size=6),
        ProcessLayout(4, fsdp_size=4, ep_size=2),
        ProcessLayout(12, fsdp_size=2, ep_size=6),
    ):
        layout.check(MIXTURE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (MixSettings(model="x", train=("y",), trainer={"fsdp": "full_shard"}), "trainer.fsdp: processes share a model"),
        (MixSettings(model="x", train=("y",), ep_size=2, precision="fp16"), "precision='fp16' works only where"),
        (DenseSettings(model="x", train=("y",), fsdp_size=2, parts="lora"), "parts='lora' works only where"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        train(settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_processes_to_a_copy_than_there_are(corpus, base, tmp_path):
    with pytest.raises(ConfigError, match="fsdp_size=2 does not divide the 1 processes"):
        train(DenseSettings(model=base, train=(corpus.mixed,), fsdp_size=2), tmp_path / "out")
