import pytest
import torch
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fedml_keylock.errors import ConfigError
from fedml_keylock.evaluation.interval import mean_interval
from fedml_keylock.evaluation.matching import match
from fedml_keylock.evaluation.metrics import (
    align,
    psnr,
    psnr_aligned,
    ssim,
    ssim_aligned,
)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(4, 3, 24, 20, generator=generator)
    return truth + 0.1 * torch.randn(truth.shape, generator=generator), truth


def test_psnr_and_ssim_agree_with_scikit_image_image_by_image(pair):
    images, truth = pair
    clamped = images.clamp(0, 1)
    for index in range(len(truth)):
        left, right = truth[index].numpy(), clamped[index].numpy()
        assert psnr(images, truth)[index] == pytest.approx(
            peak_signal_noise_ratio(left, right, data_range=1), abs=1e-3
        )
        expected = structural_similarity(
            left,
            right,
            data_range=1,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert ssim(images, truth)[index] == pytest.approx(expected, abs=1e-5)


def test_a_mirrored_dark_border_does_not_raise_the_ssim():
    truth, other = torch.zeros(2, 1, 1, 28, 28).unbind()
    truth[..., 6:22, 8:12] = 1
    other[..., 13:16, 6:22] = 1
    expected = structural_similarity(
        truth[0, 0].numpy(),
        other[0, 0].numpy(),
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert expected < 0.2  # with the border that torchmetrics mirrors .48
    assert ssim(other, truth).item() == pytest.approx(expected, abs=1e-5)


def test_an_exact_copy_scores_the_most(pair):
    _, truth = pair
    assert psnr(truth, truth).tolist() == [100.0] * 4
    assert ssim(truth, truth).tolist() == pytest.approx([1.0] * 4)


def test_alignment_sees_through_contrast_brightness_and_sign(pair):
    _, truth = pair
    scale = torch.tensor([0.3, 0.5, -0.2]).reshape(1, 3, 1, 1)
    other = 0.4 + scale * truth
    assert psnr(other, truth).max() < 20
    assert psnr_aligned(other, truth).min() > 60
    assert ssim_aligned(other, truth).min() > 0.999


def test_alignment_is_never_worse_than_the_image_itself(pair):
    images, truth = pair
    assert bool((psnr_aligned(images, truth) >= psnr(images, truth)).all())


def test_a_flat_image_aligns_to_the_truth_s_mean(pair):
    _, truth = pair
    flat = align(torch.full_like(truth, 0.25), truth)
    assert torch.allclose(flat, truth.mean((2, 3), keepdim=True).expand_as(truth))


def test_interval_is_student_s_t():
    values = torch.tensor([0.2, 0.5, 0.4, 0.9])
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 3, values.mean().item(), stats.sem(values.numpy()))
    assert (found["low"], found["high"]) == pytest.approx((low, high), rel=1e-5)
    assert mean_interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize("values", [[], [0.1, float("nan")], [float("inf")]])
def test_a_mean_of_nothing_or_of_nan_is_refused(values):
    with pytest.raises(ConfigError):
        mean_interval(values)


@pytest.mark.parametrize("score", [psnr, ssim, psnr_aligned, ssim_aligned, match])
def test_images_that_cannot_be_scored_are_refused(score, pair):
    _, truth = pair
    with pytest.raises(ConfigError, match="must both be"):
        score(truth[:2], truth)
    with pytest.raises(ConfigError, match="finite"):
        score(truth * float("nan"), truth)
    if score is ssim:
        with pytest.raises(ConfigError, match="11 x 11"):
            ssim(truth[..., :8, :8], truth[..., :8, :8])


def test_matching_undoes_a_shuffle(pair):
    images, truth = pair
    shuffle = torch.tensor([3, 1, 0, 2])
    assert torch.equal(images[shuffle][match(images[shuffle], truth)], images)


def test_rows_of_a_table_are_matched_as_they_are():
    # clamped to [0, 1], as pictures are, these two would be the same
    apart = torch.tensor([[-1.0], [-3.0]])
    assert match(apart[[1, 0]], apart).tolist() == [1, 0]
    with pytest.raises(ConfigError, match="must both be"):
        match(apart[0], apart[0])
