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


def run(folder: Path, adapters: int, sealed: bool) -> SimpleNamespace:
    """The job in a folder of its own; its settings."""
    settings = yaml.safe_load((HERE / "fedml_config.yaml").read_text())
    settings["model_args"]["adapters"] = adapters
    settings["train_args"]["learning_rate"] = 1.0 if adapters else 0.1
    settings["defense_args"]["enable_defense"] = sealed
    folder.mkdir(parents=True)
    (folder / "fedml_config.yaml").write_text(yaml.safe_dump(settings))
    line = command(3, [str(HERE / "main.py"), "--cf", "fedml_config.yaml"])
    with (folder / "log").open("w") as log:
        subprocess.run(line, cwd=folder, stdout=log, stderr=log, env=environment(3), check=True)  # noqa: S603
    return SimpleNamespace(**{k: v for part in settings.values() for k, v in part.items()})


def found(folder: Path, model: nn.Module, batch: int) -> list[Tensor]:
    """What DAGER reads of a silo's update, as somebody without a key has it."""
    (update, *_) = Capture.open(folder / "leakage" / "capture").each(ROUND)
    attacker_model = keylock({}).attacker_model(model)
    known = Knowledge(
        "oblivious",
        input_shape=(LENGTH,),
        classes=WORDS,
        batch=batch,
    )
    try:
        made = DagerAttack().reconstruct([attacker_model.read(update)], model, knowledge=known)
    except AttackError as error:
        print(f"  {error}")
        return []
    return list(made.texts[0])


def score(texts: list[str], truth: list[str]) -> str:
    """ROUGE of each true text with the nearest that was found."""
    if not texts:
        return "no result"
    means = []
    for key in ("rouge1", "rouge2"):
        best = [
            max(float(rouge_score(text, true, rouge_keys=key)[f"{key}_fmeasure"]) for text in texts)
            for true in truth
        ]
        means.append(f"{sum(best) / len(best):.3f}")
    return " / ".join(means)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("text_lora"))
    output = parser.parse_args().output.resolve()
    corpus, rows = Corpus(), []
    for kind, adapters in (("full", 0), ("LoRA", 48)):
        for sealed in (False, True):
            name = f"{kind}, {'sealed' if sealed else 'undefended'}"
            print(f"{name}: the job runs", flush=True)
            folder = output / name.replace(", ", "-").lower()
            args = run(folder, adapters, sealed)
            _, _, _, tests, _, loaders, _, _ = load_data(args)
            truth = [corpus.read(text) for text in loaders[0].of_round(ROUND)]
            model = model_of(adapters)
            texts = [corpus.read(text) for text in found(folder, model, args.batch_size)]
            for text in texts[:2]:
                print(f"  read: {text}")
            right = ""
            if sealed:  # each silo has written the last model; what follows makes it the user's
                before = tested(model, tests, "cpu")
                final = load_file(folder / "final" / "silo-0.safetensors")
                model.load_state_dict(final, strict=False)
                model.save_pretrained(folder / "export")
                after = tested(model, tests, "cpu")
                losses = [made["test_loss"] / made["test_total"] for made in (before, after)]
                right = f"{losses[0]:.2f} to {losses[1]:.2f}"
            rows.append(f"| {name} | {score(texts, truth)} | {right} |")
    print("\n| job | ROUGE-1 / -2 of what was read | loss of the next word |\n|---|---|---|")
    print("\n".join(rows))
