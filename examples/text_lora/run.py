"""Runs the job four times and reads what its server received: undefended and sealed, full and LoRA.

python run.py

About two minutes on two cores.
"""

import subprocess
from argparse import ArgumentParser
from pathlib import Path
from types import SimpleNamespace

import yaml
from data import LENGTH, WORDS, Corpus, load_data
from model import model_of
from safetensors.torch import load_file
from torch import Tensor, nn
from torchmetrics.functional.text import rouge_score
from trainer import tested

from fedml_keylock.builtin import keylock
from fedml_keylock.errors import AttackError
from fedml_keylock.evaluation.capture import Capture
from fedml_keylock.host.launch import command, environment
from fedml_keylock.inversion import DagerAttack, Knowledge

HERE = Path(__file__).parent
ROUND = 1
"""In the first round the gradient of LoRA's first matrix is zero."""


def run(folder: Path, base: str, sealed: bool) -> dict:
    """The job in a folder of its own; its settings."""
    settings = yaml.safe_load((HERE / "fedml_config.yaml").read_text())
    settings["model_args"]["base"] = base
    settings["defense_args"]["enable_defense"] = sealed
    folder.mkdir(parents=True)
    (folder / "fedml_config.yaml").write_text(yaml.safe_dump(settings))
    line = command(3, [str(HERE / "main.py"), "--cf", "fedml_config.yaml"])
    env = environment(3) | {"OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        subprocess.run(line, cwd=folder, stdout=log, stderr=log, env=env, check=True)  # noqa: S603
    return settings


def found(folder: Path, model: nn.Module, settings: dict) -> list[Tensor]:
    """What DAGER reads of a silo's update, as somebody without a key has it."""
    (update, *_) = Capture.open(folder / "leakage" / "capture").each(ROUND)
    surrogate = keylock({}).surrogate(model)
    known = Knowledge(
        "oblivious",
        input_shape=(LENGTH,),
        classes=WORDS,
        batch=settings["train_args"]["batch_size"],
    )
    try:
        made = DagerAttack().reconstruct([surrogate.read(update)], model, knowledge=known)
    except AttackError as error:
        print(f"  {error}")
        return []
    return list(made.texts[0])


def score(texts: list[str], truth: list[str]) -> str:
    """ROUGE of each true text with the nearest that was found."""
    means = []
    for key in ("rouge1", "rouge2"):
        best = [
            max(
                (float(rouge_score(t, true, rouge_keys=key)[f"{key}_fmeasure"]) for t in texts),
                default=0.0,
            )
            for true in truth
        ]
        means.append(f"{sum(best) / len(best):.3f}")
    return " / ".join(means)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("text_lora"))
    output = parser.parse_args().output.resolve()
    corpus, rows = Corpus(), []
    for kind in ("full", "lora"):
        base = (
            "" if kind == "full" else str(output / "full-sealed" / "final" / "silo-0.safetensors")
        )
        for sealed in (False, True):
            name = f"{kind}-{'sealed' if sealed else 'undefended'}"
            print(f"{name}: the job runs", flush=True)
            settings = run(output / name, base, sealed)
            args = SimpleNamespace(**{k: v for s in settings.values() for k, v in s.items()})
            tests, loaders = load_data(args)[3], load_data(args)[5]
            truth = [corpus.read(text) for text in loaders[0].of_round(ROUND)]
            model = model_of(base)
            texts = [corpus.read(text) for text in found(output / name, model, settings)]
            for text in texts[:2]:
                print(f"  read: {text}")
            right = ""
            if sealed:
                final = load_file(output / name / "final" / "silo-0.safetensors")
                before = tested(model, tests, "cpu")
                model.load_state_dict(final, strict=False)
                model.save_pretrained(output / name / "export")
                after = tested(model, tests, "cpu")
                losses = [made["test_loss"] / made["test_total"] for made in (before, after)]
                right = f"{losses[0]:.2f} to {losses[1]:.2f}"
            rows.append(f"| {name} | {score(texts, truth)} | {right} |")
    print("\n| job | ROUGE-1 / -2 of what was read | loss of the next word |\n|---|---|---|")
    print("\n".join(rows))
