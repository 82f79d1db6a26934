"""A silo's last update is refused the second time; what only looks like one passes."""

import pytest
import torch

from fedml_keylock.errors import UpdateRefused
from fedml_keylock.host.update_history import SAMPLE, DuplicateDetector, Sender


def state(seed, size=5000):
    draw = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(size, generator=draw), "n": torch.tensor(seed)}


def rounds(detector, *exchanges, rank=1, silo=0):
    for index, (model, update) in enumerate(exchanges):
        detector.sending(rank, model)
        detector.check(update, Sender(rank, silo, index))


def test_the_last_update_again_is_refused_with_its_round():
    detector = DuplicateDetector()
    rounds(detector, (state(0), state(1)), (state(2), state(3)))
    detector.sending(1, state(4))
    said = r"^rank 1 \(silo 0\), round 2: it sent the update of round 1 again"
    with pytest.raises(UpdateRefused, match=said):
        detector.check(state(3), Sender(1, 0, 2))


def test_a_rank_whose_silo_is_not_known_is_told_from_others_by_its_number():
    detector = DuplicateDetector()
    rounds(detector, (state(0), state(1)), rank=1, silo=None)
    rounds(detector, (state(2), state(1)), rank=2, silo=None)
    with pytest.raises(
        UpdateRefused, match=r"^rank 1, round 0: it sent the update of round 0 again"
    ):
        rounds(detector, (state(3), state(1)), rank=1, silo=None)


def test_a_model_that_went_to_all_ranks_counts_for_each():
    detector, silo = DuplicateDetector(), Sender(1, 0, 0)
    detector.sending(None, state(0))
    detector.check(state(1), silo)
    detector.sending(None, state(2))
    with pytest.raises(UpdateRefused, match="round 0 again"):
        detector.check(state(1), silo)


def test_a_silo_that_rests_one_round_and_then_repeats_is_refused():
    """With more silos than ranks, a silo's last update may be older, and another rank's."""
    detector = DuplicateDetector()
    rounds(detector, (state(0), state(1)), rank=1, silo=4)
    rounds(detector, (state(2), state(3)), rank=1, silo=5)
    with pytest.raises(UpdateRefused, match="round 0 again"):
        rounds(detector, (state(4), state(1)), rank=2, silo=4)


@pytest.mark.parametrize(
    "exchanges",
    [
        pytest.param([(state(0), state(0)), (state(1), state(1))], id="a silo without data"),
        pytest.param([(state(0), state(0)), (state(0), state(0))], id="a model that stands still"),
        pytest.param([(state(0), state(1)), (state(0), state(1))], id="a server that stands still"),
        pytest.param(
            [(state(s), {"w": torch.zeros(5000)}) for s in (0, 1)], id="a difference of nothing"
        ),
        pytest.param(
            [(state(s), {"w": torch.zeros(0)}) for s in (0, 1)], id="a tensor without numbers"
        ),
        pytest.param(
            [(state(s) | {"head": torch.ones(9)}, {"head": torch.ones(9)}) for s in (0, 1)],
            id="a part that the server did not change",
        ),
    ],
)
def test_what_no_duplicate_is_passes(exchanges):
    rounds(DuplicateDetector(), *exchanges)


def test_one_number_of_a_small_tensor_tells_two_updates_apart():
    update, other = state(1, size=SAMPLE), state(1, size=SAMPLE)
    other["w"][17] += 1e-3
    rounds(DuplicateDetector(), (state(0), update), (state(2), other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_any_type_and_layout_can_be_read(dtype):
    update = {"w": torch.ones(3, 4, 5).to(dtype).transpose(0, 2), "s": torch.ones((), dtype=dtype)}
    with pytest.raises(UpdateRefused, match="again"):
        rounds(DuplicateDetector(), ({"w": torch.zeros(2)}, update), ({"w": torch.ones(2)}, update))
