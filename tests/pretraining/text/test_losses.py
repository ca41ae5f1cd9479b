"""The loss of a step is that of its tokens, however they lie in batches and rows; and what goes wrong otherwise."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from transformers.modeling_outputs import BaseModelOutput

from qwen_term_retrieval.pretraining.text.architectures import SUPPORTED, build_model
from qwen_term_retrieval.pretraining.text.arguments import TextModelArguments
from qwen_term_retrieval.pretraining.text.batches import Packed, SideBySide, rows_of_documents
from qwen_term_retrieval.pretraining.text.flops import step_flops
from qwen_term_retrieval.pretraining.text.losses import num_labels, summed_loss
from qwen_term_retrieval.pretraining.text.run import open_prepared
from tests.processes.text_trainer import SMALL


@pytest.fixture(scope="module")
def opened(dataset):
    return open_prepared(dataset, 32)


def model_of(architecture, tokenizer, **settings):
    torch.manual_seed(0)
    return build_model(TextModelArguments(**{**SMALL, "architecture": architecture, **settings}), tokenizer).double()


def gradients(model, *batches):
    model.zero_grad()
    loss = sum(summed_loss(model, batch) for batch in batches)
    loss.backward()
    return loss.item(), {name: values.grad.clone() for name, values in model.named_parameters()}


def assert_same(one, other, tolerance=1e-6):
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.parametrize("loss_on", ["response", "all"])
@pytest.mark.parametrize("row_length", [64, 100, 1000])
def test_packed_documents_are_learned_as_if_each_were_alone(opened, loss_on, row_length):
    pairs, _, tokenizer = opened
    model, packed = model_of("qwen3", tokenizer), Packed(tokenizer.pad_token_id, row_length, loss_on)
    indices = range(17)
    together = packed(pairs.batch(indices))
    assert together["input_ids"].shape[1] <= row_length
    alone = [packed(pairs.batch([index])) for index in indices]
    assert num_labels(together) == sum(num_labels(batch) for batch in alone)
    assert_same(gradients(model, together), gradients(model, *alone))


def test_side_by_side_with_padding_is_as_each_pair_alone(opened):
    pairs, _, tokenizer = opened
    model, side_by_side = model_of("t5", tokenizer), SideBySide(tokenizer.pad_token_id, tokenizer.pad_token_id)
    indices = range(9)
    alone = [side_by_side(pairs.batch([index])) for index in indices]
    assert_same(gradients(model, side_by_side(pairs.batch(indices))), gradients(model, *alone))


def test_the_labels_of_a_decoder_are_the_next_tokens_of_responses_or_of_all(opened):
    pairs, _, tokenizer = opened
    batch = pairs.batch([4])
    num_prompt, ids = len(batch.prompt_BS[0]), [*batch.prompt_BS[0], *batch.response_BT[0]]
    response = Packed(0, 64)(batch)["labels"][0].tolist()
    assert response == [-100] * (num_prompt - 1) + ids[num_prompt:] + [-100]
    assert Packed(0, 64, "all")(batch)["labels"][0].tolist() == [*ids[1:], -100]
    assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("row_length", [40, 100, 4000])
def test_rows_hold_every_document_whole_and_are_filled_evenly(row_length):
    length_B = np.random.default_rng(0).integers(4, 40, 200)
    rows = rows_of_documents(length_B, row_length)
    assert sorted(document for row in rows for document in row) == list(range(200))
    filled = np.array([length_B[row].sum() for row in rows])
    assert filled.max() <= row_length
    if row_length > 40:
        assert filled.sum() / (len(filled) * filled.max()) > 0.8


def test_t5_has_the_encoders_mask_in_cross_attention_so_packed_pairs_need_their_parts_called_apart():
    """Why an encoder-decoder gets batches of like length, not rows: see the head of `losses.py`."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8))
    model.eval()
    prompts, responses = [torch.randint(2, 50, (1, n)) for n in (5, 3)], [torch.randint(2, 50, (1, n)) for n in (4, 6)]

    def blocks(rows, columns, causal=False):
        row, column = (
            torch.arange(2).repeat_interleave(torch.tensor(rows)),
            torch.arange(2).repeat_interleave(torch.tensor(columns)),
        )
        mask = row[:, None] == column[None]
        mask = mask & torch.ones_like(mask).tril() if causal else mask
        return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]

    prompt, response = torch.cat(prompts, 1), torch.cat(responses, 1)
    encoded = model.encoder(input_ids=prompt, attention_mask=blocks([5, 3], [5, 3])).last_hidden_state
    decoded = model.decoder(
        input_ids=response,
        attention_mask=blocks([4, 6], [4, 6], causal=True),
        encoder_hidden_states=encoded,
        encoder_attention_mask=blocks([4, 6], [5, 3]),
        use_cache=False,
    ).last_hidden_state
    alone = [
        model.decoder(input_ids=r, encoder_hidden_states=model.encoder(input_ids=p).last_hidden_state).last_hidden_state
        for p, r in zip(prompts, responses, strict=True)
    ]
    torch.testing.assert_close(decoded, torch.cat(alone, 1), atol=1e-5, rtol=0)
    with pytest.raises(RuntimeError):
        model(
            attention_mask=blocks([5, 3], [5, 3]),
            encoder_outputs=BaseModelOutput(encoded),
            decoder_input_ids=response,
            decoder_attention_mask=blocks([4, 6], [4, 6], causal=True),
        )


def test_the_plain_trainer_of_transformers_gets_accumulation_of_t5_wrong(tmp_path):
    """One batch of four makes another step than four of one: if this fails, transformers has mended it."""

    def step(batch_size, accumulation):
        torch.manual_seed(0)
        config = T5Config(
            vocab_size=60, d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8, dropout_rate=0.0,
            decoder_start_token_id=0, pad_token_id=0,
        )  # fmt: skip
        model = T5ForConditionalGeneration(config)
        ids = torch.randint(2, 60, (4, 6), generator=torch.Generator().manual_seed(1))
        rows = [{"input_ids": row, "labels": row} for row in ids]
        args = TrainingArguments(
            output_dir=str(tmp_path), per_device_train_batch_size=batch_size, learning_rate=0.1, max_grad_norm=0.0,
            gradient_accumulation_steps=accumulation, max_steps=1, optim="sgd", use_cpu=True, report_to="none",
            save_strategy="no", logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        before = model.lm_head.weight.detach().clone()
        trainer = Trainer(model, args, train_dataset=rows)
        trainer.train()
        return (model.lm_head.weight - before).norm().item(), trainer.state.log_history[0]["loss"]

    (update, loss), (accumulated_update, accumulated_loss) = step(4, 1), step(1, 4)
    assert accumulated_update / update > 3
    assert accumulated_loss / loss > 3


@pytest.mark.parametrize("kind", SUPPORTED)
def test_a_checkpoint_of_every_kind_goes_on_in_float32_each_document_as_if_it_were_alone(opened, tmp_path, kind):
    pairs, _, tokenizer = opened
    sizes = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    if kind in ("t5", "mt5"):
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), decoder_start_token_id=0, **sizes)
        AutoModelForSeq2SeqLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path)
        inputs_of = SideBySide(0, 0)
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), num_key_value_heads=1, **sizes)
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(tmp_path)
        inputs_of = Packed(0, 200)
    model = build_model(TextModelArguments(model=str(tmp_path)), tokenizer)
    assert model.dtype is torch.float32
    model.double().eval()
    indices = range(9)
    together = inputs_of(pairs.batch(indices))
    assert step_flops(model, together) > 0
    assert_same(gradients(model, together), gradients(model, *(inputs_of(pairs.batch([each])) for each in indices)))


def test_a_checkpoint_of_a_kind_that_is_not_tested_is_refused(opened, tmp_path):
    config = AutoConfig.for_model("gpt2", vocab_size=400, n_embd=8, n_layer=1, n_head=1)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is of type gpt2; those that go on here: t5, mt5, qwen3"):
        build_model(TextModelArguments(model=str(tmp_path)), opened[2])


@pytest.mark.parametrize("architecture", ["t5", "qwen3"])
def test_useful_operations_are_those_that_a_counter_sees_of_a_pair_alone(opened, architecture):
    from torch.utils.flop_counter import FlopCounterMode

    pairs, _, tokenizer = opened
    model = model_of(architecture, tokenizer).float()
    model.set_attn_implementation("eager")  # the counter knows no fused attention on a CPU
    inputs_of = Packed(0, 64) if architecture == "qwen3" else SideBySide(0, 0)
    inputs = inputs_of(pairs.batch([int(np.argmax(pairs.lengths(range(50))[1]))]))
    with FlopCounterMode(display=False) as counter:
        summed_loss(model, inputs).backward()
    # The counter sees whole squares of attention, of which a causal query needs half.
    assert 0.8 * counter.get_total_flops() < step_flops(model, inputs) < counter.get_total_flops()
