"""`fedml-keylock export`: from what a job leaves on disk to a file that a silo can deploy."""

from __future__ import annotations

import importlib
import os
import re
import stat
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from fedml_keylock import cli
from fedml_keylock.builtin import keylock
from fedml_keylock.commands import pack
from fedml_keylock.locks.vault.cipher import PASSPHRASE
from fedml_keylock.types import JobSecrets

MAIN = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Flatten(),
            nn.Linear(80, 3),
        )

class Other(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.GroupNorm(1, 5), nn.Flatten(),
            nn.Linear(80, 3),
        )

class Depends(Net):
    def forward(self, x):
        return super().forward(x if x.mean() < 100 else -x)

class Reads(Other):
    def forward(self, x):
        return super().forward(x) + self[0].weight.sum()

def needs_classes(classes): ...
"""
CONFIG = """
common_args: {{training_type: cross_silo}}
defense_args:
  enable_defense: true
  defense_type: keylock
  keylock: {{{lock}{more}}}
"""
LOCKS = {
    "sealed": "lock: sealed, checkpoint: global.safetensors, save_model: models",
    "rotated": "lock: rotated, group_key: group",
    "paper": "lock: paper, key_length: 16, layers: all",
    # the last one is linear, and its lock needs a norm that the class does not have
    "every layer": "lock: paper, key_length: 16, layers: ['*']",
}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Run what is left of a job in a folder of its own: main.py, YAML, vaults, global.pt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "export_main", raising=False)
    (tmp_path / "export_main.py").write_text(MAIN)

    def leave(name="Net", lock="paper", more="", settings=None):
        lock = LOCKS[lock]
        settings = {**yaml.safe_load(f"{{{lock}}}"), **(settings or {})}
        (tmp_path / "config.yaml").write_text(CONFIG.format(lock=lock, more=more))
        (tmp_path / "group").touch(mode=0o600)
        (tmp_path / "group").write_bytes(bytes(range(32)))
        sys.path.insert(0, str(tmp_path))
        made = getattr(importlib.import_module("export_main"), name)
        silos, sent, secret = [], [], settings.get("group_key", "group").encode().ljust(32)
        for silo in (0, 1):
            torch.manual_seed(0)
            model, defense = made(), keylock(settings)
            first, agreement = deepcopy(model.state_dict()), defense.describe(model)
            defense.protect(model, silo=silo, agreement=agreement)
            pairs = {1 - silo: b"pair".ljust(32)}
            defense.share(JobSecrets(secret, silo, pairs, {0: 6, 1: 6}))
            model.load_state_dict(defense.open(model, first, round_index=-1))
            defense.begin_round(model, round_index=0)
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            for _ in range(3):
                optimizer.zero_grad()
                x = 2 * torch.rand(6, 1, 8, 8) + silo
                cross_entropy(model(x), torch.arange(6) % 3).backward()
                optimizer.step()
            defense.end_round(model, round_index=0)
            sent.append(dict(defense.seal(model, model.state_dict(), samples=6)))
            silos.append((model, defense))
        if defense.seals:
            mean = defense.add_up(sent)
            defense.keep(mean, round_index=0)
        else:
            mean = {n: (sent[0][n] + sent[1][n]) / 2 for n in sent[0]}
        torch.save(mean, "global.pt")
        for silo, (model, defense) in enumerate(silos):
            model.load_state_dict(defense.open(model, mean, round_index=0))
            model.eval()
            if defense.seals:
                defense._rounds.secrets = replace(defense._rounds.secrets, pairs={})
                defense.finish(1, silo=silo)
        silos = [model for model, _ in silos]
        sys.path.remove(str(tmp_path))
        return made, silos

    return leave


def invoke(*arguments, model="Net", silo=0, checkpoint="global.pt", **options):
    given = ["--model", f"export_main:{model}", "--config", "config.yaml", "--silo", str(silo)]
    given += ["--checkpoint", str(checkpoint), *map(str, arguments)]
    result = CliRunner().invoke(cli.main, ["export", *given], **options)
    assert "Traceback" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def ok(*arguments, **options):
    result = invoke(*arguments, **options)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def fails(*arguments, **options):
    """The one line that it fails with; and nothing was written."""
    result = invoke(*arguments, **options)
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    assert line.startswith("fedml-keylock: ")
    return line


def rest(folder):
    return sorted(path.name for path in folder.iterdir())


X = 2 * torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)) + 0.5


def same(model, loaded):
    with torch.no_grad():
        wanted, got = model(X), loaded(X)
    assert wanted.std(0).max() > 1e-3
    return torch.allclose(wanted, got, atol=1e-5)


@pytest.mark.parametrize("silo", [0, 1])
def test_a_state_dict_for_the_jobs_own_class(job, silo, tmp_path):
    made, silos = job()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    wrote, warned = ok("--example-shape", "1,8,8", silo=silo)
    assert re.fullmatch(
        rf"wrote exported.pt: state_dict, silo {silo}'s lock before round 1, \d+ bytes; outputs up "
        r"to \S+ differ by at most \S+ from the locked ones",
        wrote,
    )
    assert float(re.search(r"most (\S+)", wrote)[1]) < 1e-5
    assert warned.startswith("keep exported.pt as you keep the vault")
    assert stat.S_IMODE((tmp_path / "exported.pt").stat().st_mode) == 0o600
    plain = made()
    plain.load_state_dict(torch.load("exported.pt", weights_only=True))
    assert same(silos[silo], plain.eval())
    assert not same(silos[1 - silo], plain)  # the control: silos differ by their locks
    after = {path: path.read_bytes() for path in before}
    assert after == before


def test_a_model_that_was_rotated_is_rotated_back_by_any_silo(job, tmp_path):
    made, silos = job(lock="rotated")
    (tmp_path / "group").unlink()  # what is needed of it is in the vault
    served = made()
    served.load_state_dict(torch.load("global.pt", weights_only=True))
    for silo in (0, 1):
        wrote, warned = ok("--example-shape", "1,8,8", silo=silo)
        assert re.fullmatch(
            rf"wrote exported.pt: state_dict, rotated back by silo {silo}, \d+ bytes; "
            r"outputs up to \S+ differ by at most \S+ from the locked ones",
            wrote,
        )
        assert warned.startswith("keep exported.pt as you keep the vault: it holds the model")
        assert stat.S_IMODE((tmp_path / "exported.pt").stat().st_mode) == 0o600
        plain = made()
        plain.load_state_dict(torch.load("exported.pt", weights_only=True))
        assert same(silos[silo], plain.eval())
        assert same(silos[1 - silo], plain)  # a lock of all
        assert not same(plain, served.eval())  # the control: the server has another model


def test_a_sealed_checkpoint_is_opened_by_any_silos_vault(job, tmp_path):
    _, silos = job(lock="sealed")
    for silo in (0, 1):
        wrote, warned = ok("--example-shape", "1,8,8", silo=silo, checkpoint="global.safetensors")
        assert re.fullmatch(
            rf"wrote exported.pt: state_dict, opened by silo {silo}, \d+ bytes; outputs up to \S+ "
            r"differ by at most 0.0e\+00 from the locked ones",
            wrote,
        )
        assert warned.endswith("it holds the model that the server cannot read (mode 0600)")
        assert stat.S_IMODE((tmp_path / "exported.pt").stat().st_mode) == 0o600
        loaded = torch.load("exported.pt", weights_only=True)
        for model in silos:
            assert all(torch.equal(loaded[n], t) for n, t in model.state_dict().items())
    served = torch.load("global.pt", weights_only=True)
    assert served["0.weight"].dtype == torch.int32


def test_what_save_model_wrote_needs_no_vault(job, tmp_path):
    _, silos = job(lock="sealed")
    ok("--vault", "nowhere", checkpoint="models/silo-1.safetensors")
    loaded = torch.load("exported.pt", weights_only=True)
    assert all(torch.equal(loaded[n], t) for n, t in silos[0].state_dict().items())
    plain = load_file("models/silo-1.safetensors")
    plain.pop("5.bias")
    save_file(plain, "part.safetensors")
    assert fails(checkpoint="part.safetensors").endswith(
        "part.safetensors: not of this model: it has no 5.bias"
    )


def test_a_sealed_checkpoint_of_another_round_or_job_is_refused(job, tmp_path):
    job(lock="sealed")
    one = load_file("global.safetensors")
    save_file(one, "later.safetensors", {"round": "4"})
    assert fails(checkpoint="later.safetensors").endswith(
        "later.safetensors: it is of round 4, and the vault opens the last checkpoint only: that "
        "of round 0"
    )
    for changed in (one | {"5.bias": one["5.bias"] + 1}, {"keylock.sealed": one["keylock.sealed"]}):
        save_file(changed, "other.safetensors")
        assert fails(checkpoint="other.safetensors").endswith(
            "other.safetensors: not of this vault's job, or changed since: it is not the sum of "
            "what the silos sent in round 0"
        )
    assert "--round: of lock: rotated only" in fails("--round", 0, checkpoint="global.safetensors")
    assert "nowhere: no such folder" in fails("--vault", "nowhere", checkpoint="global.safetensors")
    assert "silo 7 has no file here; those that have: 0, 1" in fails(
        silo=7, checkpoint="global.safetensors"
    )
    job(settings={"vault": "layers"})
    job(lock="sealed")
    assert "with layout" in fails("--vault", "layers", checkpoint="global.safetensors")


def test_what_another_round_or_job_left_is_not_rotated_back_to_noise(job, tmp_path):
    job(lock="rotated")
    assert "rotated back by silo 0" in ok("--round", 0)[0]
    said = r"global.pt: not the average of round {}, as rotated back so it is noise: name the round"
    (tmp_path / "exported.pt").unlink()
    assert re.search(said.format(1), fails("--round", 1))
    (tmp_path / "group2").touch(mode=0o600)
    (tmp_path / "group2").write_bytes(bytes(range(1, 33)))
    one = torch.load("global.pt", weights_only=True)
    job(lock="rotated", settings={"vault": "another", "group_key": "group2"})
    torch.save(one, "global.pt")
    assert re.search(said.format(0), fails("--vault", "another"))
    assert not (tmp_path / "exported.pt").exists()
    ok()  # the control: by its own job's vault
    job(settings={"vault": "layers"})
    assert "--round: of lock: rotated only" in fails("--vault", "layers", "--round", 0)


def test_without_an_example_nothing_is_compared(job):
    made, silos = job()
    wrote, _ = ok("-o", "plain.pt", "--format", "state_dict")
    assert "not compared with the locked model" in wrote
    plain = made()
    plain.load_state_dict(torch.load("plain.pt", weights_only=True))
    assert same(silos[0], plain.eval())


def test_layers_that_the_class_does_not_have(job):
    _, silos = job(lock="every layer")
    assert "needs the shape of an input: give --example-shape" in fails()
    assert "5.0.weight" in fails("--format", "state_dict")
    need, wrote, _ = ok("--example-shape", "1,8,8")
    assert need == (
        "the lock needs 5.0.weight, which the class of export_main:Net does not have: the "
        "format is exported"
    )
    assert wrote.startswith("wrote exported.pt2: exported")
    assert same(silos[0], torch.export.load("exported.pt2").module())
    assert "end in .pt2" in fails("--example-shape", "1,8,8", "-o", "model.pt")


def test_what_torch_cannot_export_is_said(job):
    job("Depends", "every layer")
    result = invoke("--example-shape", "1,8,8", model="Depends")
    assert result.exit_code == 1
    *_, line = result.output.splitlines()  # before it is what torch itself writes
    assert line.startswith("fedml-keylock: --format exported: torch.export cannot take the model")
    assert "fedml_keylock.export_model(model)" in line


def test_it_loads_where_neither_this_package_nor_the_jobs_code_is(job, tmp_path):
    _, silos = job(lock="every layer")
    ok("--example-shape", "1,8,8", "-o", "model.pt2")
    script = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "sys.modules['fedml_keylock'] = sys.modules['export_main'] = None\n"
        "import torch\n"
        "x, wanted = torch.load('x.pt')\n"
        "print(torch.allclose(torch.export.load('model.pt2').module()(x), wanted, atol=1e-5))\n"
    )
    torch.save((X, silos[0](X).detach()), "x.pt")
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert run.stdout.split() == ["True"], run.stderr
    assert b"fedml_keylock" not in (tmp_path / "model.pt2").read_bytes()


def test_a_safetensors_checkpoint(job):
    made, silos = job()
    save_file(torch.load("global.pt"), "global.safetensors")
    ok(checkpoint="global.safetensors")
    plain = made()
    plain.load_state_dict(torch.load("exported.pt"))
    assert same(silos[0], plain.eval())


def test_an_encrypted_vault(job, monkeypatch):
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    made, silos = job(more=", encrypt_vault: true", settings={"encrypt_vault": True})
    ok()
    plain = made()
    plain.load_state_dict(torch.load("exported.pt"))
    assert same(silos[0], plain.eval())
    monkeypatch.setenv(PASSPHRASE, "battery staple")
    line = fails()
    assert "silo-0.safetensors" in line
    assert "passphrase" in line
    assert "staple" not in line
    monkeypatch.delenv(PASSPHRASE)
    assert PASSPHRASE in fails()


def test_the_vault_is_the_yamls_or_the_one_that_is_named(job, tmp_path):
    job(more=", vault: kept", settings={"vault": tmp_path / "kept"})
    ok()
    (tmp_path / "kept").rename(tmp_path / "elsewhere")
    assert "kept: no such folder; run it in the job's folder" in fails()
    ok("--vault", "elsewhere")


class TestErrors:
    """Each in one line; no file is written, and what was there stays."""

    @pytest.fixture(autouse=True)
    def job_done(self, job, tmp_path):
        self.made, self.silos = job()
        (tmp_path / "exported.pt").write_bytes(b"old")
        before = rest(tmp_path)
        yield
        assert rest(tmp_path) == before
        assert (tmp_path / "exported.pt").read_bytes() == b"old"

    def test_no_checkpoint(self):
        assert "nowhere.pt: No such file" in fails(checkpoint="nowhere.pt")

    @pytest.mark.parametrize("name", ["config.yaml", "keylock_vault/silo-0.safetensors"])
    def test_a_checkpoint_that_is_something_else(self, name):
        line = fails(checkpoint=name)
        assert name in line
        assert "not a state_dict" in line or "not of this model" in line

    def test_a_whole_model_in_the_place_of_its_state(self, tmp_path):
        path = tmp_path / "keylock_vault" / "model.pt"
        torch.save(self.made(), path)
        assert "torch.save(model.state_dict(), path)" in fails(checkpoint=path)

    def test_a_state_that_is_nested(self, tmp_path):
        path = tmp_path / "keylock_vault" / "nested.pt"
        torch.save({"net": torch.load("global.pt"), "round": 3}, path)
        assert "its 'net' is not a tensor" in fails(checkpoint=path)
        torch.save([1, 2], path)
        assert "holds a list" in fails(checkpoint=path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("5.bias"), "it has no 5.bias"),
            (lambda s: s.update(extra=torch.ones(1)), "the model has no extra"),
            (
                lambda s: s.update({"5.bias": torch.ones(4)}),
                "is (4,), the model's is (3,)",
            ),
            (lambda s: s.update({"1.weight": 2 * torch.ones(4)}), "its 1.weight is not 1"),
        ],
        ids=["missing", "unexpected", "shape", "constant"],
    )
    def test_a_checkpoint_of_another_model(self, change, message, tmp_path):
        state = dict(torch.load("global.pt"))
        change(state)
        path = tmp_path / "keylock_vault" / "other.pt"
        torch.save(state, path)
        line = fails(checkpoint=path)
        assert str(path) in line
        assert message in line

    def test_no_such_silo(self):
        assert "silo 7 has no file here; those that have: 0, 1" in fails(silo=7)

    def test_another_silos_file(self, tmp_path):
        file = tmp_path / "keylock_vault" / "silo-0.safetensors"
        content = file.read_bytes()
        other = tmp_path / "keylock_vault" / "silo-1.safetensors"
        file.write_bytes(other.read_bytes())
        assert "it is silo 1's" in fails()
        file.write_bytes(content)

    def test_another_jobs_settings(self, tmp_path):
        config = tmp_path / "config.yaml"
        kept = config.read_text()
        config.write_text(kept.replace("key_length: 16", "key_length: 17"))
        assert "these settings has layout" in fails()
        config.write_text(kept.replace(LOCKS["paper"], "lock: rotated"))
        assert "these settings has layout" in fails()
        config.write_text(kept.replace("all", "first"))
        assert "with layout" in (line := fails())
        assert "give the job's own --model and --config" in line
        config.write_text(kept.replace("paper", "papr"))
        assert "keylock.lock: 'papr' is not allowed" in fails()
        config.write_text(kept.replace("lock: paper", "module: affine"))
        assert "keylock.module: a setting of an earlier version; use lock: paper" in fails()
        config.write_text(kept.replace("key_length", "keylength"))
        assert "keylock.keylength: no such field" in fails()
        config.write_text(kept.replace("type: keylock", "type: krum"))
        assert "defense_type: it is 'krum', and the keylock section would be ignored" in fails()
        config.write_text(kept)

    @pytest.mark.parametrize(
        ("model", "message"),
        [
            ("Nothing", "there is no Nothing in "),
            ("needs_classes", "missing 1 required positional argument"),
            ("torch.rand", "TypeError"),
        ],
    )
    def test_a_model_that_cannot_be_made(self, model, message):
        assert message in fails(model=model)

    def test_a_model_that_is_not_the_jobs(self):
        assert "global.pt: not of this model" in fails(model="Other")

    def test_an_example_that_does_not_fit(self):
        result = invoke("--example-shape", "3,x")
        assert result.exit_code == 2
        assert "must be sizes such as 3,32,32" in result.output

    def test_the_format_exported_needs_an_example(self):
        assert "give --example-shape" in fails("--format", "exported")

    def test_a_place_where_nothing_can_be_written(self):
        assert "global.pt/model.pt: cannot be written: Not a" in fails("-o", "global.pt/model.pt")

    @pytest.mark.parametrize("name", ["global.pt", "keylock_vault/silo-0.safetensors"])
    def test_an_input_is_not_overwritten(self, name):
        assert "it is an input of this command" in fails("-o", name)

    def test_outputs_that_differ(self, monkeypatch):
        monkeypatch.setattr(pack, "random_input", lambda *_: torch.full((2, 1, 8, 8), torch.nan))
        assert "nothing was written" in fails("--example-shape", "1,8,8")


def test_a_layer_that_cannot_be_exported_is_named(job):
    job("Reads")
    assert "0: the model reads this layer's weight" in fails(model="Reads")


def test_an_output_that_is_no_file_is_left_as_it_is(job, tmp_path):
    job()
    os.mkfifo(tmp_path / "pipe")
    assert fails("-o", "pipe") == (
        "fedml-keylock: -o pipe: cannot be written: it is a pipe, not a file; name another path"
    )
    assert (tmp_path / "pipe").is_fifo()


def test_the_folder_of_the_output_is_made(job, tmp_path):
    job()
    ok("-o", "to/deploy/model.pt")
    assert (tmp_path / "to/deploy/model.pt").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("lock", ["paper", "rotated", "sealed"])
def test_a_shape_that_the_model_does_not_take_is_refused_in_one_line(job, lock):
    job(lock=lock)
    assert "--example-shape 3,8,8: the model does not take it: " in fails(
        "--example-shape", "3,8,8"
    )
