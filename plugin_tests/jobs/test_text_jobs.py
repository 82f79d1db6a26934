"""FedML jobs of the text example: a small GPT-2, in full and by adapters, in the open and sealed.

They run, learn, are captured, read where they can be, and exported.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import AttackError
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.inversion import DagerAttack, Knowledge

EXAMPLE = Path(__file__).parents[2] / "examples" / "text_lora"
FILES = [EXAMPLE / f"{name}.py" for name in ("main", "data", "model", "trainer")]
BATCH, ROUND, RANK = 4, 1, 48
ASKED = {
    "dataset": "text",
    "batch_size": BATCH,
    "comm_round": 12,
    "enable_attack": True,
    "attack_type": "gradient_inversion",
    "gradient_inversion": {"rounds": [ROUND], "when": "never", "loss": "CrossEntropyLoss"},
}
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed"),
]


@pytest.fixture(scope="module")
def example():
    """The example's own modules."""
    sys.path.insert(0, str(EXAMPLE))
    names = ("data", "model", "trainer")
    for name in names:
        sys.modules.pop(name, None)
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    sys.path.remove(str(EXAMPLE))
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def run(run_script):
    def run(case, settings, adapters=0):
        rate = 1.0 if adapters else 0.1
        changes = {"adapters": adapters, "learning_rate": rate, **ASKED}
        job = run_script(case, "main.py", FILES, settings, **changes)
        assert job.status == 0, job.output[-3000:]
        assert job.ours == []
        return job

    return run


@pytest.fixture(scope="module")
def full(run):
    return {
        "open": run("full", None),
        "sealed": run("full_sealed", {"save_model": "final"}),
    }


@pytest.fixture(scope="module")
def adapters(run):
    return {
        "open": run("lora", None, RANK),
        "sealed": run("lora_sealed", {"save_model": "final"}, RANK),
    }


def captured(job):
    return next(Capture.open(job.folder / "leakage" / "capture").each(ROUND))


def read(job, model, example):
    """The texts of the first silo's update, as somebody without a key reads it."""
    known = Knowledge(
        "oblivious",
        input_shape=(example.data.LENGTH,),
        classes=example.data.WORDS,
        batch=BATCH,
    )
    update = keylock({}).attacker_model(model).read(captured(job))
    (texts,) = DagerAttack().reconstruct([update], model, knowledge=known).texts
    return sorted(text.tolist() for text in texts)


def truth(example):
    args = SimpleNamespace(client_num_in_total=2, batch_size=BATCH)
    return example.data.load_data(args)[5][0].of_round(ROUND)


def loss(model, example):
    args = SimpleNamespace(client_num_in_total=2, batch_size=BATCH)
    made = example.trainer.tested(model, example.data.load_data(args)[3], "cpu")
    return made["test_loss"] / made["test_total"]


def final(job):
    found = [load_file(path) for path in sorted((job.folder / "final").glob("silo-*.safetensors"))]
    assert len(found) == 2
    assert all(torch.equal(found[1][n], t) for n, t in found[0].items())
    return found[0]


def test_a_full_job_s_texts_are_read_in_the_open_and_not_sealed(full, example):
    assert read(full["open"], example.model.gpt(), example) == sorted(truth(example).tolist())
    assert all(t.dtype == torch.int32 for t in captured(full["sealed"]).after.values())
    with pytest.raises(AttackError, match="no gradient of it; no result"):
        read(full["sealed"], example.model.gpt(), example)


def test_a_full_sealed_job_learns_and_is_exported(full, example, tmp_path):
    from transformers import GPT2LMHeadModel

    model = example.model.gpt()
    before = loss(model, example)
    model.load_state_dict(final(full["sealed"]))
    after = loss(model, example)
    assert after < before - 0.3
    model.save_pretrained(tmp_path)
    assert loss(GPT2LMHeadModel.from_pretrained(tmp_path), example) == pytest.approx(after)


def test_adapters_alone_are_sent_and_show_all_texts_but_their_last_word(adapters, example):
    model = example.model.model_of(RANK)
    assert set(captured(adapters["open"]).after) == set(final(adapters["sealed"]))
    assert all("lora_" in name for name in captured(adapters["open"]).after)
    expected = sorted(truth(example)[:, :-1].tolist())
    assert read(adapters["open"], model, example) == expected
    with pytest.raises(AttackError, match="no result"):
        read(adapters["sealed"], model, example)


def test_sealed_adapters_learn_and_are_exported(adapters, example, tmp_path):
    from peft import PeftModel

    model = example.model.model_of(RANK)
    before = loss(model, example)
    state = final(adapters["sealed"])
    missing = model.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    after = loss(model, example)
    assert after < before - 0.1
    model.save_pretrained(tmp_path)
    back = PeftModel.from_pretrained(example.model.gpt(), tmp_path)
    assert loss(back, example) == pytest.approx(after)
