"""The README of a pre-trained text model: what it is, what it was trained on, how well it predicts, how to call it."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedConfig

_CALL = {
    True: """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")
print(tokenizer.decode(model.generate(**tokenizer("a prompt", return_tensors="pt"))[0], skip_special_tokens=True))""",
    False: """from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("{name}"), AutoTokenizer.from_pretrained("{name}")
print(tokenizer.decode(model.generate(**tokenizer("a prompt", return_tensors="pt"))[0], skip_special_tokens=True))""",
}
_TOWER = """
Its encoder can be a text tower of a term retriever: `--text_tower {name}`, or `--text_tower "phonemes:espeak:en-us +
{name}"`.
"""


def text_model_card(
    config: PreTrainedConfig, *, name: str, data: str, metrics: Mapping[str, float], step: int | None
) -> str:
    """The card, Markdown with YAML metadata.

    Args:
        config: of the model.
        name: Hub id or folder.
        data: what it was trained on.
        metrics: of an evaluation: `eval_loss`, `eval_perplexity`, `eval_bits_per_byte`; may be empty.
        step: that the weights are of.
    """
    shown = {key.removeprefix("eval_"): metrics[key] for key in metrics if key in _SHOWN}
    rows = [f"| {key.replace('_', ' ')} | {value:.4f} |" for key, value in shown.items()]
    table = ["", "| on validation pairs | |", "|---|---|", *rows] if rows else []
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [text-pretraining, qwen_term_retrieval]",
            "---",
            f"# {name}",
            "",
            f"A {config.model_type} of {config.hidden_size} × {config.num_hidden_layers}, trained from prompt to "
            f"response on {data}{f', {step} steps' if step else ''}.",
            *table,
            "",
            "```python",
            _CALL[bool(config.is_encoder_decoder)].format(name=name),
            "```",
            *([_TOWER.format(name=name)] if config.is_encoder_decoder else []),
        ]
    )


_SHOWN = ("eval_loss", "eval_perplexity", "eval_bits_per_byte")
