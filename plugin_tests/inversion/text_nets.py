"""Small transformers with random weights, and what a silo sends that trains one on some texts."""

import torch
from torch import Tensor, nn

from fedml_keylock.types import ClientUpdate

VOCABULARY = 120


def texts_of(batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids ``(batch, length)``, from 1 on: 0 is padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


def gpt2(width: int = 96, layers: int = 2, **fields: object) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": width, "n_layer": layers}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(n_head=4, **{**sizes, **rates, **ends, **fields}))


def llama(width: int = 96) -> nn.Module:
    """With grouped queries: half as many keys and values as queries, and no positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=2 * width,
            max_position_embeddings=64,
            **heads,
        )
    )


def bert(width: int = 96, layers: int = 3, spread: float = 0.1) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            intermediate_size=2 * width,
            max_position_embeddings=64,
            initializer_range=spread,
            **rates,
        )
    )


def text_update(model: nn.Module, rate: float = 1.0, **inputs: Tensor) -> ClientUpdate:
    """What a silo sends of its trainable weights after one plain SGD step on the model's loss."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    loss = model.train()(**inputs).loss
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    before = {n: p.detach().clone() for n, p in parameters.items()}
    after = {n: before[n] - rate * g for n, g in zip(parameters, gradients, strict=True)}
    return ClientUpdate(before, after, rate)


def adapted(
    model: nn.Module, texts: Tensor, rank: int, steps: int
) -> tuple[nn.Module, ClientUpdate]:
    """A GPT-2 with adapters (LoRA), and the update of its step after so many others.

    At a small rate the weights' precision rounds the first matrix's gradient away.
    """
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=rank, target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(model, settings)
    for _ in range(steps):
        after = text_update(model, 10.0, input_ids=texts, labels=texts).after
        model.load_state_dict(after, strict=False)
    return model, text_update(model, 10.0, input_ids=texts, labels=texts)
