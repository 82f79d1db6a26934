"""Folders of pictures as they lie on people's disks."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from fedml_keylock.errors import AttackError, ConfigError
from fedml_keylock.evaluation.audit import Subject, load_pictures
from fedml_keylock.evaluation.metrics import psnr_aligned, ssim, ssim_aligned
from fedml_keylock.inversion import PublicData
from fedml_keylock.types import ClientUpdate

RAMP = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))
"""From black on the left to 240 on the right."""
UNIT = torch.from_numpy(RAMP / 255).float()


@pytest.fixture
def classes(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        Image.fromarray(RAMP).save(tmp_path / name / "x.png")
    return tmp_path


def read(folder, channels=1, **options):
    said = []
    found = load_pictures(folder, size=(16, 16), channels=channels, say=said.append, **options)
    return *found, said


def one(classes, picture, channels=1, name="x.png", **options):
    """What is read of one picture, and what is said."""
    picture.save(classes / "b" / name, **options)
    images, _, said = read(classes, channels)
    return images[1], said


def test_pictures_are_read_class_by_class_in_turn(classes):
    for index in range(3):
        Image.fromarray(RAMP + index).save(classes / "c" / f"{index}.png")
    images, labels, said = read(classes, limit=5)
    assert (labels.tolist(), said) == ([0, 1, 2, 2, 2], [])
    assert len(images[2:].flatten(1).unique(dim=0)) == 3  # another picture each


def test_a_picture_is_read_by_its_middle(classes):
    wide = Image.fromarray(np.pad(RAMP, ((0, 0), (30, 30))))
    image, _ = one(classes, wide, channels=3)
    assert torch.equal(image, UNIT.expand(3, 16, 16))


@pytest.mark.parametrize("name", ["0/.ipynb_checkpoints", "a/.ipynb_checkpoints", "__MACOSX"])
def test_hidden_folders_are_no_classes(classes, name):
    (classes / name).mkdir(parents=True)
    Image.fromarray(RAMP).save(classes / name / "x-checkpoint.png")
    (classes / name / "._x.png").write_bytes(b"\0\5\x16\7")
    if name[0] == "0":
        (classes / name).rename(classes / ".ipynb_checkpoints")
        (classes / "0").rmdir()
    images, labels, said = read(classes)
    assert (len(images), labels.tolist(), said) == (3, [0, 1, 2], [])


def test_hidden_and_other_files_do_not_end_a_run(classes):
    for name in ("._x.png", ".x.jpg", "Thumbs.db", "desktop.ini"):
        (classes / "a" / name).write_bytes(b"\0\5\x16\7")
    (classes / "a" / "folder.png").mkdir()
    assert len(read(classes)[0]) == 3


def test_an_empty_class_keeps_its_number_and_is_said(classes):
    """Guards the numbering, which torchvision's ImageFolder has too."""
    (classes / "aa").mkdir()
    _, labels, said = read(classes)
    assert labels.tolist() == [0, 2, 3]
    assert said == [f"{classes}: no pictures of class aa (1); the others keep their numbers"]
    assert labels.tolist() == [n for _, n in ImageFolder(str(classes), allow_empty=True).samples]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_of_16_bits_is_read_by_its_depth(classes, channels):
    deep = np.tile(np.linspace(0, 0.5, 16) * 65535, (16, 1)).astype(np.uint16)
    image, said = one(classes, Image.fromarray(deep), channels)
    wanted = torch.from_numpy(deep / 65535).float().expand(channels, 16, 16)
    assert torch.allclose(image, wanted, atol=1e-6)  # 8 bits would be off by 2e-3
    assert said == []


def test_transparent_pictures_are_put_on_white_and_said(classes):
    colours = np.stack([RAMP, RAMP, RAMP, np.full_like(RAMP, 255)], -1)
    colours[:8, :, 3] = 0
    image, said = one(classes, Image.fromarray(colours), channels=3)
    assert torch.equal(image[:, 8:], UNIT[8:].expand(3, 8, 16))
    assert image[:, :8].min() == 1
    assert said == [f"{classes}: 1 of 3 pictures are transparent, and put on white"]
    colours[..., 3] = 255  # as screenshots are saved
    image, said = one(classes, Image.fromarray(colours), channels=3)
    assert (torch.equal(image, UNIT.expand(3, 16, 16)), said) == (True, [])


@pytest.mark.parametrize(("kind", "deep"), [("L", 1), ("P", 1), ("I;16", 257)])
def test_a_transparent_value_is_white(classes, kind, deep):
    picture = Image.fromarray(RAMP)
    if kind == "P":
        picture.putpalette([level for grey in range(256) for level in (grey,) * 3])
    if kind == "I;16":
        picture = Image.fromarray(RAMP.astype(np.uint16) * 257)
    image, said = one(classes, picture, transparency=16 * deep)
    assert torch.allclose(image[0], torch.where(RAMP_IS_16, 1.0, UNIT), atol=1e-6)
    assert len(said) == 1


RAMP_IS_16 = torch.from_numpy(RAMP == 16)


def test_palettes_and_four_inks_are_read_as_colours(classes):
    colour = Image.merge("RGB", [Image.fromarray(part) for part in (RAMP, RAMP.T, 255 - RAMP)])
    wanted = torch.from_numpy(np.array(colour)).permute(2, 0, 1) / 255
    image, _ = one(classes, colour.quantize(256), channels=3)
    assert (image - wanted).abs().max() < 0.06
    (classes / "b" / "x.png").unlink()
    image, _ = one(classes, colour.convert("CMYK"), channels=3, name="x.jpg", quality=100)
    assert (image - wanted).abs().mean() < 0.06


def test_a_photo_is_turned_upright(classes):
    (classes / "b" / "x.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    image, _ = one(classes, Image.fromarray(RAMP), name="x.jpg", exif=exif, quality=100)
    assert torch.allclose(image[0], UNIT.T, atol=0.02)


def test_of_an_animation_the_first_picture_is_read(classes):
    later = Image.fromarray(RAMP.T.copy())
    image, _ = one(classes, Image.fromarray(RAMP), save_all=True, append_images=[later])
    assert torch.equal(image[0], UNIT)


def test_pictures_of_one_colour_are_left_out_and_said(classes):
    Image.new("L", (20, 20), 99).save(classes / "b" / "x.png")
    Image.new("L", (20, 20), 99).save(classes / "b" / "y.jpg")
    _, labels, said = read(classes)
    assert labels.tolist() == [0, 2]
    assert said == [f"{classes}: 2 of 4 pictures are of one colour, and left out"]
    for path in classes.glob("*/x.png"):
        Image.new("L", (20, 20), 99).save(path)
    with pytest.raises(ConfigError, match="every picture is of one colour"):
        read(classes)


@pytest.mark.parametrize("cut", [0, 8, 50])
def test_a_damaged_picture_is_named(classes, cut):
    path = classes / "b" / "x.png"
    path.write_bytes(path.read_bytes()[:cut] or pickle.dumps({}))
    with pytest.raises(ConfigError, match=r"b/x\.png: cannot be read as a PNG or JPEG: [^\n]+$"):
        read(classes)


def test_labels_in_a_file(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "red.png")
    with pytest.raises(ConfigError, match="a sub-folder for each, or give --labels FILE"):
        read(tmp_path)
    table = tmp_path / "labels.csv"
    table.write_text("red.png,7\n")
    assert read(tmp_path, labels=table)[1].tolist() == [7]
    for text, said in (("red.png\n", "line 1: not like"), ("blue.png,1\n", "no such file")):
        table.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read(tmp_path, labels=table)


def subject(images, **options):
    update = ClientUpdate({"w": torch.zeros(1)}, {"w": torch.ones(1)}, 0.1)
    shape = images.shape[:1]
    return Subject(
        (update,), images[None], torch.zeros(1, *shape).long(), torch.nn.Flatten(), 3, **options
    )


def test_public_labels_are_the_models(tmp_path):
    public = PublicData(torch.rand(2, 1, 16, 16), torch.tensor([1, 3]))
    with pytest.raises(AttackError, match=r"^public labels span 1 to 3, and .* classes 0 to 2$"):
        subject(torch.rand(1, 1, 16, 16), public=public)


def test_what_is_of_one_colour_has_no_aligned_score():
    """Guards the mask in `ssim_aligned`: noise would score 1 on it, and 2/3 on one channel."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.zeros(3, 3, 16, 16)
    truth[1, 0] = UNIT  # a digit that is drawn in red
    truth[2] = UNIT
    made = torch.rand(truth.shape, generator=generator)
    scores = ssim_aligned(made, truth)
    assert scores.isnan().tolist() == psnr_aligned(made, truth).isnan().tolist()
    assert scores.isnan().tolist() == [True, False, False]
    assert scores[1] == pytest.approx(ssim_aligned(made[1:2, :1], truth[1:2, :1]).item())
    assert scores[1:].max() < 0.5
    assert ssim_aligned(truth, truth)[1:].min() > 0.999
    assert ssim(truth, truth).min() > 0.999
    with pytest.raises(AttackError, match="every picture is of one colour"):
        subject(truth[:1])
    assert subject(truth).batch == 3
