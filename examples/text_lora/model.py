"""A small GPT-2 with random weights, or with a trained one's and adapters (LoRA) beside them."""

from pathlib import Path

import torch
from data import LENGTH, WORDS
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

RANK = 48
"""Of the adapters: more than the tokens of a round's batch, and so they show them."""


def gpt() -> nn.Module:
    """Two layers, 128 wide, without dropout."""
    torch.manual_seed(0)
    sizes = {"vocab_size": WORDS, "n_positions": LENGTH, "n_embd": 128, "n_layer": 2, "n_head": 4}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(GPT2Config(**sizes, **rates, **ends))


def adapted(base: Path) -> nn.Module:
    """The model that a silo has saved, frozen, and new adapters of its attention layers."""
    model = gpt()
    model.load_state_dict(load_file(base), strict=False)  # the tied output layer is not in it
    settings = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["c_attn"])
    return get_peft_model(model, settings)


def model_of(base: str) -> nn.Module:
    """`model_args.base` in the YAML: a file of a trained model to adapt, or nothing."""
    return adapted(Path(base)) if base else gpt()
