"""Processes that use a vault and come to harm, for test_vault_crash.py. Starts torch once.

python vault_loop.py harm FOLDER KILLS PASSPHRASE
python vault_loop.py hold FOLDER
"""

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from fedml_keylock.errors import VaultError
from fedml_keylock.locks import (
    KeyLockConfig,
    Vault,
    load_private_state_dict,
    lock_model,
    private_state_dict,
)
from fedml_keylock.locks.vault.cipher import Cipher
from fedml_keylock.locks.vault.silo import claim_silo

SILO = 2
LINES = 7
"""How many lines a child may say before the time runs after which it is killed, at the most: what
it is killed in does not depend on how busy the machine is."""


def tell(what):
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def made():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )
    lock_model(model, KeyLockConfig(lock="paper", layers="all", key_length=256))
    return model


def opened(folder, passphrase):
    cipher = Cipher(passphrase.encode()) if passphrase else None
    if cipher is not None:
        cipher.seal(b"", {})  # derives the key here, for every child that is forked
    return Vault(Path(folder), SILO, "a1b2c3d4", cipher)


def load(vault, model):
    state, round_index = vault.load()
    load_private_state_dict(model, state)
    return round_index


def digest(model):
    found = sha256()
    for name, tensor in sorted(private_state_dict(model).items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def loss_of(model):
    return nn.functional.cross_entropy(model(torch.rand(4, 1, 8, 8)), torch.arange(4))


def step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()


def warm_up(model):
    """Load what torch loads at first use, a second's worth, here and not in every child."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    # no backward pass: its threads, where there are any, do not survive a fork
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    loss_of(model)


def train(vault, model, say):
    """Go on from the vault, if there is one, and train and save for ever."""
    vault.claim()
    say("begun")
    if vault.exists():
        done = load(vault, model)
    else:
        done = 0
        say("saving", 0, digest(model))
        vault.save(private_state_dict(model), round_index=0)
        say("saved", 0)
    while True:
        step(model)
        done += 1
        say("saving", done, digest(model))
        vault.save(private_state_dict(model), round_index=done)
        say("saved", done)


def start(vault, model):
    """Fork a child that trains; returns its process id and what it says."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            # less than PIPE_BUF bytes: a line is written whole, or not at all
            train(vault, model, lambda *words: os.write(write, (json.dumps(words) + "\n").encode()))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(3)
    os.close(write)
    return child, os.fdopen(read)


def end(child):
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the child ended by itself, with status {status}"


def seconds_a_round(vault, model):
    """How long training and saving take here, now, with whatever else this machine does."""
    child, said = start(vault, model)
    with said:
        times = [time.monotonic() for line, _ in zip(said, range(25), strict=False)]
        end(child)
    return 2 * (times[-1] - times[4]) / (len(times) - 5)  # two lines a round


def kill(folder, kills, passphrase=None):
    """For each kill what the child had said, and what is found in the vault."""
    vault, model = opened(folder, passphrase), made()
    warm_up(model)
    aside = Vault(
        vault.folder.with_name(f"{vault.folder.name}-aside"), SILO, vault.layout, vault.cipher
    )
    longest, chance = seconds_a_round(aside, model), random.Random(1)
    made_of_kills = []
    for _ in range(int(kills)):
        child, pipe = start(vault, model)
        with pipe:
            heard = [pipe.readline() for _ in range(chance.randint(1, LINES))]
            time.sleep(chance.uniform(0, longest))
            end(child)
            said = [json.loads(line) for line in [*heard, *pipe]]
        found = {"said": said, "unfinished": len(list(vault.folder.glob(".silo-*.tmp")))}
        if vault.exists():
            try:
                found |= {"round": load(vault, model), "digest": digest(model)}
            except VaultError as error:
                found["error"] = str(error)
        made_of_kills.append(found)
    return made_of_kills


def full(folder, passphrase=None):
    """Save on a disk that takes no more: the kernel refuses to let a file grow."""
    vault, model = opened(folder, passphrase), made()
    vault.save(private_state_dict(model), round_index=7)
    before, old = vault.path.read_bytes(), digest(model)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    step(model)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        vault.save(private_state_dict(model), round_index=8)
        error = None
    except VaultError as caught:
        error = str(caught)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    found = {
        "error": error,
        "untouched": vault.path.read_bytes() == before,
        "round": load(vault, model),
        "same": digest(model) == old,
        "files": sorted(os.listdir(folder)),
    }
    vault.save(private_state_dict(model), round_index=9)  # when there is room again, all is well
    return {**found, "then": load(vault, model)}


def harm(folder, kills, passphrase):
    """What becomes of vaults that are not encrypted, and of those that are: JSON."""
    folder = Path(folder)
    tell(
        json.dumps(
            {
                # first, as no backward pass may have been before a fork
                "kill plain": kill(folder / "killed", kills),
                "kill encrypted": kill(folder / "killed-encrypted", int(kills) // 2, passphrase),
                "full plain": full(folder / "full"),
                "full encrypted": full(folder / "full-encrypted", passphrase),
            }
        )
    )


def hold(folder):
    """Claim the vault, let a child try to, and keep both until killed."""
    claim_silo(Path(folder), SILO)
    claim_silo(Path(folder), SILO)  # twice is once
    child = os.fork()
    if child == 0:
        try:
            claim_silo(Path(folder), SILO)
            tell("the child may write")
        except VaultError as error:
            tell(error)
        time.sleep(60)
        os._exit(0)
    tell(child)
    time.sleep(60)


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"harm": harm, "hold": hold}[sys.argv[1]](*sys.argv[2:])
