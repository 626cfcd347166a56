"""LoRA on attention and on the experts' 3-D parameters, and the router trained in full."""

import pytest
import torch

from moe_codegen import MoEForCausalLM
from tests.modeling.mixture import mixture, tokens

peft = pytest.importorskip("peft")

ATTENTION = {"gpt_bigcode": ["c_attn"], "phi": ["q_proj", "v_proj"], "llama": ["q_proj", "v_proj"]}
EXPERTS = {
    "gpt_bigcode": ["mlp.experts.up_proj", "mlp.experts.down_proj"],
    "phi": ["mlp.experts.up_proj", "mlp.experts.down_proj"],
    "llama": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}


@pytest.mark.parametrize("family", ATTENTION)
def test_lora_trains_saves_loads_and_merges(family, tmp_path):
    base = mixture(family)
    base.save_pretrained(tmp_path / "base")
    before = base(tokens()).logits
    settings = peft.LoraConfig(
        r=4,
        lora_dropout=0.0,
        target_modules=ATTENTION[family],
        target_parameters=EXPERTS[family],
        modules_to_save=["gate"],
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(base, settings).train()
    trainable = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    for part in ("experts", "attn", "modules_to_save.default"):
        assert any(part in name for name in trainable), part
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # LoRA's B starts at zero, so its A learns only in the second step
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    still = [name for name, p in model.named_parameters() if p.requires_grad and torch.equal(p, trainable[name])]
    assert not still
    model.eval()
    after = model(tokens()).logits
    assert (after - before).abs().max() > 1e-3

    model.save_pretrained(tmp_path / "adapter")
    base = MoEForCausalLM.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(tokens()).logits, after)
    merged = loaded.merge_and_unload()
    assert isinstance(merged, MoEForCausalLM)
    torch.testing.assert_close(merged(tokens()).logits, after, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    again = MoEForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(tokens()).logits, merged(tokens()).logits)
