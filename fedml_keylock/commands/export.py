"""`fedml-keylock export`: makes a deployable model from the global model and a silo's vault."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import ConfigError
from ..files import check_place
from .options import FILE, FOLDER, config_option, model_option

__all__ = ["export"]


def _sizes(
    _context: click.Context, _option: click.Parameter, given: str | None
) -> tuple[int, ...] | None:
    """Parse sizes such as 3,32,32."""
    if given is None:
        return None
    sizes = given.split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise click.BadParameter(f"{given}: must be sizes such as 3,32,32")
    return tuple(map(int, sizes))


@click.command()
@model_option
@click.option(
    "--checkpoint",
    type=FILE,
    required=True,
    help="The global model: what keylock.checkpoint or save_model wrote, another .safetensors "
    "file, or a state_dict of torch.save.",
)
@click.option(
    "--vault",
    "folder",
    type=FOLDER,
    help="Folder of the vault; keylock.vault in the YAML, or keylock_vault.",
)
@click.option("--silo", type=click.IntRange(min=0), required=True, help="The silo's index, from 0.")
@click.option(
    "--round",
    "round_index",
    type=click.IntRange(min=0),
    help="Of lock: rotated: the round after which the checkpoint was saved, from 0. Default: the "
    "vault's last round.",
)
@config_option
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="File to write. Default: exported.pt, or exported.pt2 for --format exported.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "state_dict", "exported"]),
    default="auto",
    show_default=True,
    help="A state_dict needs the model's class to load, exported needs torch only.",
)
@click.option(
    "--example-shape",
    "shape",
    metavar="C,H,W",
    callback=_sizes,
    help="Shape of one input, without the batch: compares the outputs before it writes.",
)
def export(
    builder: str,
    checkpoint: Path,
    folder: Path | None,
    silo: int,
    round_index: int | None,
    config: Path | None,
    output: Path | None,
    form: str,
    shape: tuple[int, ...] | None,
) -> None:
    """Make a plain model from the server's model and a silo's vault.

    The server's model is sealed (lock: sealed, the default), rotated, or trained to run under a
    silo's lock. This command opens it, rotates it back, or folds a silo's lock into it. The silo
    can then deploy it without fedml-keylock and FedML. A model of another job or round than the
    vault's is refused.

    Under lock: sealed the server writes keylock.checkpoint after each round, and any silo's vault
    opens the last one. Models written by save_model are open, and need no vault.

    \b
    Example:
      fedml-keylock export --model main:Net --config fedml_config.yaml \\
          --checkpoint global.safetensors --silo 0 --example-shape 3,32,32

    With --format auto it writes a state_dict for the job's model class if the lock folds into that
    class, as for a LeNet or a ResNet. A lock on a linear layer needs a normalisation that the class
    lacks. Then it writes torch.export's format, which needs --example-shape. The file is for
    evaluation, not for training.

    Only its owner can read the file. It holds the model that the server cannot read. For a lock on
    layers it also holds the lock, which opens the silo's past updates. The passphrase of an
    encrypted vault is read from FEDML_KEYLOCK_PASSPHRASE, from the owner-only file that
    FEDML_KEYLOCK_PASSPHRASE_FILE names, or from a terminal.
    """  # noqa: D301  # click wants the character that the escape stands for
    from ..builtin import keylock
    from ..disk import write_private
    from ..locks import export_model
    from ..tensors import deep_copy
    from . import pack
    from .deploy import lock_as_silo, read_checkpoint, unwrapped
    from .job import build_model, read_silo
    from .job_file import keylock_settings
    from .vault import current_cipher

    if output is not None:  # refuse a bad output path before the work
        try:
            check_place(output)
        except OSError as error:
            raise ConfigError(f"-o {output}: cannot be written: {error.strerror}") from None
    lock = keylock(keylock_settings(config))
    folder = folder or lock.config.vault
    state = read_checkpoint(checkpoint)
    stored = read_silo(folder, silo) if lock.needs_vault(state) else None
    model = build_model(builder)
    state = unwrapped(state, model)
    plain = deep_copy(model)
    cipher = current_cipher() if stored is not None and stored.sealed else None
    lock_as_silo(
        model,
        lock,
        stored,
        cipher,
        silo=silo,
        state=state,
        source=checkpoint,
        round_index=round_index,
    )
    example = None if shape is None else pack.random_input(model, shape)
    package = pack.pack(export_model(model), plain, form, example)
    if output is None:
        output = Path(f"exported{pack.SUFFIX if package.form == 'exported' else '.pt'}")
    elif package.form == "exported" and output.suffix != pack.SUFFIX:
        raise ConfigError(f"-o {output}: torch.export loads only files that end in {pack.SUFFIX}")
    for source in (checkpoint, *([] if stored is None else [stored.path])):
        if output.exists() and output.samefile(source):
            raise ConfigError(f"-o {output}: it is an input of this command; name another file")
    if package.missing:
        click.echo(
            f"the lock needs {package.missing}, which the class of {builder} does not have: the "
            f"format is {package.form}"
        )
    compared = "not compared with the locked model, for want of --example-shape"
    if example is not None:
        most, largest = pack.difference(model, package.loaded, example)
        compared = f"outputs up to {largest:.3g} differ by at most {most:.1e} from the locked ones"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"-o {output.parent}: cannot be made: {error.strerror}") from None
    write_private(output, package.content, what="-o")
    seen = 0 if stored is None else stored.round_index
    what, holds = lock.deployed(model, silo=silo, round_index=seen)
    click.echo(f"wrote {output}: {package.form}, {what}, {len(package.content)} bytes; {compared}")
    click.echo(f"keep {output} as you keep the vault: it holds {holds} (mode 0600)")
