"""Training: what the loss is, that nothing changes it silently, and that it falls."""

import copy

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from moe_codegen.errors import ConfigError
from moe_codegen.modeling import modeling
from moe_codegen.modeling.modeling import CACHE
from moe_codegen.moe import load_balancing_loss, router_z_loss
from tests.modeling.mixture import IMPLEMENTATIONS, mixture, relative_error, tokens
from tests.tiny import FAMILIES

NO_DROPOUT = {"gpt_bigcode": dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)}
LENGTHS = (12, 5, 9, 3)


def trained(family="phi", **fields):
    return mixture(family, dense=NO_DROPOUT.get(family), **fields).train()


def batch(lengths=LENGTHS):
    """Rows of different lengths, padded at the right, with the padding masked and without targets."""
    ids, mask = tokens(len(lengths)), torch.zeros(len(lengths), 12, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return dict(input_ids=ids.where(mask.bool(), 1), attention_mask=mask, labels=ids.where(mask.bool(), -100))


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = gradient.abs().max().item() or 1.0
        assert (actual[name] - gradient).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_training_loss_is_the_language_models_and_the_router_losses(family):
    model, inputs = trained(family, router_aux_loss_coef=0.5, router_z_loss_coef=0.25), batch()
    outputs = model(**inputs, output_router_logits=True)
    targets = inputs["labels"][:, 1:].flatten()
    language = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), targets)
    real = inputs["attention_mask"].flatten().bool()
    balance = torch.stack([load_balancing_loss(logits[real], 2) for logits in outputs.router_logits]).mean()
    z = torch.stack([router_z_loss(logits[real]) for logits in outputs.router_logits]).mean()
    assert len(outputs.router_logits) == 3
    torch.testing.assert_close(outputs.aux_loss, balance)
    torch.testing.assert_close(outputs.z_loss, z)
    torch.testing.assert_close(outputs.loss, language + 0.5 * balance + 0.25 * z)
    for asked in (False, True):
        torch.testing.assert_close(model.eval()(**inputs, output_router_logits=asked).loss, language)


def test_router_logits_come_only_when_asked_for_and_one_for_each_sparse_layer():
    model = trained("phi", moe_layers=[0, 2])
    assert model(**batch()).router_logits is None
    assert [tuple(each.shape) for each in model(**batch(), output_router_logits=True).router_logits] == [(48, 4)] * 2
    plain = model.eval()(tokens())
    assert plain.aux_loss is plain.z_loss is plain.router_logits is None
    model.config.output_router_logits = True
    assert len(model(tokens()).router_logits) == 2
    assert model(tokens(), output_router_logits=False).router_logits is None


def test_with_a_cache_the_router_losses_are_those_of_the_new_tokens():
    model = trained().eval()
    ids, mask = tokens(), torch.ones(2, 12, dtype=torch.int64)
    mask[1, :8] = 0
    past = model(ids[:, :6], attention_mask=mask[:, :6], use_cache=True)[CACHE]
    outputs = model(ids[:, 6:], attention_mask=mask, output_router_logits=True, **{CACHE: past})
    real = mask[:, 6:].flatten().bool()
    z = torch.stack([router_z_loss(logits[real]) for logits in outputs.router_logits]).mean()
    torch.testing.assert_close(outputs.z_loss, z)


def test_a_tuple_can_be_asked_for():
    model = trained()
    outputs = model(**batch(), output_router_logits=True)
    as_tuple = model(**batch(), output_router_logits=True, return_dict=False)
    torch.testing.assert_close(as_tuple[0], outputs.loss)
    assert len(as_tuple) == len(outputs.to_tuple())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_learns(family):
    model = trained(family, shared_expert=True, router_type="noisy_top_k")
    model(**batch()).loss.backward()
    assert not [name for name, gradient in gradients(model).items() if not gradient.any()]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", ["gpt_bigcode", "llama"])
def test_every_implementation_gives_the_same_gradients(family, implementation):
    expected, model = trained(family), trained(family)
    expected.set_experts_implementation("eager")
    model.set_experts_implementation(implementation)
    for each in (expected, model):
        each(**batch()).loss.backward()
    assert_same_gradients(gradients(model), gradients(expected), tolerance=1e-4)


SPLITS = {"1x4": [4], "2x2": [2, 2], "4x1": [1, 1, 1, 1]}


def accumulate(model, inputs, split):
    """What Trainer does: micro-batches one after the other, with the number of targets of all of them."""
    targets = (inputs["labels"][:, 1:] != -100).sum()
    columns = [values.split(split) for values in inputs.values()]
    parts = [dict(zip(inputs, rows, strict=True)) for rows in zip(*columns, strict=True)]
    model.zero_grad()
    losses = [model(**part, num_items_in_batch=targets) for part in parts]
    sum(each.loss for each in losses).backward()
    return parts, sum(each.loss.item() for each in losses), gradients(model)


@pytest.mark.parametrize("split", SPLITS)
def test_the_language_model_loss_does_not_depend_on_how_a_batch_is_split(split):
    model = trained(router_aux_loss_coef=0.0, router_z_loss_coef=0.0)
    whole = model(**batch())
    whole.loss.backward()
    expected = gradients(model)
    _, loss, actual = accumulate(model, batch(), SPLITS[split])
    assert loss == pytest.approx(whole.loss.item(), abs=1e-5)
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize("split", SPLITS)
def test_router_losses_count_once_however_a_batch_is_split(split):
    # Balance is not a mean over tokens but a product of two, so only equal micro-batches have the whole's.
    model = trained(router_aux_loss_coef=1.0, router_z_loss_coef=0.5)
    inputs = {name: rows[1:2].expand(4, -1).contiguous() for name, rows in batch().items()}
    whole = model(**inputs)
    whole.loss.backward()
    expected = gradients(model)
    _, loss, actual = accumulate(model, inputs, SPLITS[split])
    assert loss == pytest.approx(whole.loss.item(), abs=1e-5)
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize("split", SPLITS)
def test_unequal_micro_batches_add_their_router_losses_by_their_share_of_the_targets(split):
    model, inputs = trained(router_aux_loss_coef=1.0, router_z_loss_coef=0.5), batch()
    parts, loss, actual = accumulate(model, inputs, SPLITS[split])
    model.zero_grad()
    expected = model.eval()(**inputs).loss
    targets = sum(length - 1 for length in LENGTHS)
    for part in parts:
        outputs = model(**part, output_router_logits=True)
        share = sum(length - 1 for length in part["attention_mask"].sum(-1).tolist()) / targets
        expected = expected + share * (outputs.aux_loss + 0.5 * outputs.z_loss)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert_same_gradients(actual, gradients(model))


def test_a_plain_number_of_targets_will_do():
    model = trained()
    losses = [model(**batch(), num_items_in_batch=count).loss for count in (25, torch.tensor(25))]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing(family):
    model = trained(family, shared_expert=True)
    plain = model(**batch())
    plain.loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    recomputed = model(**batch())
    recomputed.loss.backward()
    torch.testing.assert_close(recomputed.loss, plain.loss, rtol=1e-6, atol=0)
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("kwargs", [{"use_reentrant": True}, {"preserve_rng_state": True}])
def test_reentrant_checkpointing_is_refused(kwargs):
    # It gives wrong gradients without a word; torch's own default is still reentrant.
    with pytest.raises(ConfigError, match="leave gradient_checkpointing_kwargs out"):
        trained().gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", ["gpt_bigcode", "qwen2"])
def test_mixed_precision_trains_near_fp32(family, implementation):
    model = trained(family, shared_expert=True)
    model.set_experts_implementation(implementation)
    expected = model(**batch(), output_router_logits=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = model(**batch(), output_router_logits=True)
    actual.loss.backward()
    assert actual.loss.dtype == actual.aux_loss.dtype == actual.z_loss.dtype == torch.float32
    assert relative_error(actual.loss, expected.loss) < 0.02
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


@pytest.mark.parametrize("fields", [dict(router_type="noisy_top_k"), dict(router_jitter_noise=0.2)], ids=str)
def test_routing_noise_comes_and_goes_with_training(fields):
    model = trained("phi", **fields)
    assert not torch.equal(model(tokens()).logits, model(tokens()).logits)
    model.eval()
    assert torch.equal(model(tokens()).logits, model(tokens()).logits)


def trainer(model, folder, **settings):
    rows = batch()
    data = [{name: values[row] for name, values in rows.items()} for row in range(4)]
    arguments = TrainingArguments(
        folder, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_steps=1, **settings
    )
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data)


def test_trainer_learns_in_mixed_precision_with_accumulation_and_checkpointing(tmp_path):
    model = trained("gpt_bigcode", shared_expert=True, router_type="noisy_top_k")
    run = trainer(
        model,
        tmp_path,
        max_steps=15,
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        bf16=True,
    )
    before = run.evaluate()["eval_loss"]
    run.train()
    assert run.evaluate()["eval_loss"] < before / 2
    assert run.predict(run.eval_dataset).predictions.shape == (4, 12, 128)


@pytest.mark.parametrize(
    ("settings", "coefficient", "warned"), [({"label_smoothing_factor": 0.1}, 0.01, 1), ({}, 0.01, 0), ({}, 0.0, 0)]
)
def test_router_losses_that_nobody_adds_are_missed_aloud(settings, coefficient, warned, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(modeling.logger, "warning_once", said.append)
    model = trained(router_aux_loss_coef=coefficient, router_z_loss_coef=0.0)
    trainer(model, tmp_path, max_steps=1, **settings).train()
    assert len(said) == warned
    model.train()(tokens())
    assert len(said) == warned + (coefficient > 0)


def test_trainer_logs_the_same_loss_however_it_accumulates(tmp_path):
    # The trap: 7.07 at 4x1 and 13.62 at 1x4 when every micro-batch adds the router losses in full.
    logged = {}
    start = trained(router_aux_loss_coef=5.0, router_z_loss_coef=0.0)
    for size, steps in ((4, 1), (2, 2), (1, 4)):
        model = copy.deepcopy(start)
        run = trainer(
            model,
            tmp_path,
            max_steps=1,
            learning_rate=0.0,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        run.train()
        logged[size] = run.state.log_history[0]["loss"]
    # Balance of a micro-batch is near, not at, that of the whole.
    assert logged[2] == pytest.approx(logged[4], rel=0.1)
    assert logged[1] == pytest.approx(logged[4], rel=0.1)
