"""A small GPT-2 with random weights, trained in full or by adapters (LoRA) beside frozen ones."""

import torch
from data import LENGTH, WORDS
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel


def gpt() -> nn.Module:
    """Two layers, 128 wide, without dropout; the same weights on every rank."""
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 128, "n_layer": 2, "n_head": 4}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **rates, **ends))


def model_of(rank: int) -> nn.Module:
    """The model, with adapters of its attention layers of a rank above 0.

    A rank above the number of a batch's words is one by which a gradient shows them.
    """
    if not rank:
        return gpt()
    fields = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    return get_peft_model(gpt(), LoraConfig(r=rank, lora_alpha=2 * rank, **fields))
