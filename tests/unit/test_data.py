"""The digits set, splits, batches, augmentation, and what is said of bad data."""

from __future__ import annotations

import hashlib
from importlib.resources import files

import pytest
import torch

from dpap.data import DATASETS, Dataset, DataSpec, Split, load_dataset
from dpap.data.spec import chosen_share, unit_range
from dpap.errors import DPAPError
from dpap.training.randomness import derived_seed, generator, seed_global

SPEC = DataSpec(name="toy", shape=(1, 4, 4), classes=("a", "b", "c"), credit="none")


def split(labels: list[int], shape: tuple[int, ...] = (1, 4, 4)) -> Split:
    return Split(images=torch.rand(len(labels), *shape), labels=torch.tensor(labels))


def dataset(test: Split) -> Dataset:
    return Dataset(spec=SPEC, train=split([0, 1, 2]), validation=split([1]), test=test)


def test_digits_is_the_file_that_was_described() -> None:
    data = files("dpap.data").joinpath("digits.npz").read_bytes()
    assert hashlib.sha256(data).hexdigest() == "9903ab791c512cc3f2b3aac4373ee316dd1d2b5786fe6171470db12fed670eb3"
    text = files("dpap.data").joinpath("digits.txt").read_text()
    assert "CC BY 4.0" in text
    assert "Alpaydin" in text


def test_digits_has_three_stratified_splits() -> None:
    data = load_dataset("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1078, 269, 450)
    whole = torch.cat([part.labels for part in (data.train, data.validation, data.test)]).bincount()
    assert whole.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # the published counts
    for part, share in ((data.train, 0.60), (data.validation, 0.15), (data.test, 0.25)):
        assert ((part.labels.bincount() / whole - share).abs() < 0.005).all()
        assert part.images.shape == (len(part), 1, 8, 8)
        assert part.images.dtype == torch.float32
        assert (part.images.min(), part.images.max()) == (0.0, 1.0)


def test_splits_share_no_image() -> None:
    data = load_dataset("digits")
    rows = [set(map(tuple, part.images.flatten(1).tolist())) for part in (data.train, data.validation, data.test)]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]


def test_training_with_and_without_the_validation_split() -> None:
    data = load_dataset("digits")
    assert len(data.training(hold_out=True)) == 1078
    both = data.training(hold_out=False)
    assert len(both) == 1347
    assert torch.equal(both.images[1078:], data.validation.images)


def test_there_is_a_data_set_for_every_use() -> None:
    assert {"digits", "mnist"} <= DATASETS.keys()


def test_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(DPAPError, match="did you mean 'digits'"):
        load_dataset("digit")


@pytest.mark.parametrize(("label", "shown"), [(3, "Label 3 is out of range"), (-1, "Label -1 is out of range")])
def test_labels_out_of_range_are_refused(label: int, shown: str) -> None:
    with pytest.raises(DPAPError, match=shown) as caught:
        dataset(split([0, label]))
    assert "row 1 of the test split of data set 'toy'" in caught.value.where
    assert "labels 0 to 2" in caught.value.what


def test_wrong_image_shape_is_refused() -> None:
    with pytest.raises(DPAPError, match=r"shape \(2, 1, 4, 5\), expected \(2, 1, 4, 4\)"):
        dataset(split([0, 1], (1, 4, 5)))


def test_a_split_without_samples_is_refused() -> None:
    with pytest.raises(DPAPError, match="holds no samples"):
        dataset(Split(images=torch.rand(0, 1, 4, 4), labels=torch.zeros(0, dtype=torch.long)))


def test_images_that_are_not_finite_are_refused() -> None:
    broken = split([0, 1, 2])
    broken.images[2, 0, 1, 1] = torch.nan
    with pytest.raises(DPAPError, match="NaN or inf") as caught:
        dataset(broken)
    assert "row 2" in caught.value.where


def test_batches_hold_every_sample_once() -> None:
    part = split([0] * 10)
    sizes = [len(labels) for _, labels in part.batches(4)]
    assert sizes == [4, 4, 2]
    assert part.batch_count(4) == 3
    images = torch.cat([images for images, _ in part.batches(4, generator=generator(0, "order"))])
    assert not torch.equal(images, part.images)
    assert torch.equal(images.flatten(1).sum(1).sort().values, part.images.flatten(1).sum(1).sort().values)


def test_full_batches_only() -> None:
    part = split([0] * 10)
    assert [len(labels) for _, labels in part.batches(4, full_only=True)] == [4, 4]
    assert part.batch_count(4, full_only=True) == 2
    assert part.batch_count(5, full_only=True) == 2
    assert part.batch_count(11, full_only=True) == 0


def test_bytes_become_numbers_from_0_to_1_and_numbers_stay() -> None:
    assert unit_range(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0.0, 0.2, 1.0])
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64) * 3 - 1
    assert unit_range(images) is images


def test_a_network_sees_pixels_less_the_mean_in_standard_deviations() -> None:
    spec = DataSpec(name="colour", shape=(2, 1, 2), classes=("a",), credit="none", mean=(0.5, 0.25), std=(0.5, 0.125))
    images = torch.tensor([[[[0.0, 1.0]], [[0.25, 0.5]]]])
    assert spec.normalized(images).tolist() == [[[[-1.0, 1.0]], [[0.0, 2.0]]]]
    stored = torch.tensor([[[[0, 255]], [[51, 255]]]], dtype=torch.uint8)
    torch.testing.assert_close(spec.prepared(stored), torch.tensor([[[[-1.0, 1.0]], [[-0.4, 6.0]]]]))
    assert SPEC.normalized(images) is images, "without a mean the pixels are as they are"


def test_bytes_are_a_data_set_and_stay_bytes_until_they_are_seen() -> None:
    images = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8)
    part = Split(images=images, labels=torch.tensor([0, 1, 2]))
    data = Dataset(spec=SPEC, train=part, validation=part, test=part)
    assert data.training(hold_out=False).images.dtype == torch.uint8
    ((seen, labels),) = data.batches(data.test, 8)
    assert torch.equal(seen, images.float() / 255)
    assert labels.tolist() == [0, 1, 2]
    assert [len(labels) for _, labels in data.batches(data.test, 2)] == [2, 1]


def test_a_part_keeps_the_order() -> None:
    whole = split([2, 0, 1])
    part = whole.part(torch.tensor([True, False, True]))
    assert part.labels.tolist() == [2, 1]
    assert torch.equal(part.images, whole.images[[0, 2]])


def test_a_share_is_the_same_of_each_class_and_spread_over_the_stored_order() -> None:
    labels = torch.tensor([0, 1] * 50 + [2] * 20)
    chosen = chosen_share(labels, 0.1)
    assert labels[chosen].bincount().tolist() == [5, 5, 2]
    assert chosen.nonzero().flatten().tolist() == [18, 19, 38, 39, 58, 59, 78, 79, 98, 99, 109, 119]
    assert torch.equal(chosen, chosen_share(labels, 0.1)), "it is not drawn"
    assert not chosen_share(labels, 0.0).any()
    assert chosen_share(labels, 1.0).all()


def test_every_sample_is_tested_in_one_fold_and_validated_in_another() -> None:
    data = load_dataset("digits")
    whole = torch.cat([part.images for part in (data.train, data.validation, data.test)])
    folds = [data.fold(k, 5) for k in range(5)]
    for splits in ([fold.test for fold in folds], [fold.validation for fold in folds]):
        seen = torch.cat([part.images for part in splits]).flatten(1)
        assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, whole.flatten(1).tolist()))
    for k, fold in enumerate(folds):
        parts = [set(map(tuple, s.images.flatten(1).tolist())) for s in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
        assert len(fold.test) in (359, 360)
        assert fold.test.labels.bincount().min() >= 34  # a fifth of the smallest class, 174
        assert torch.equal(fold.validation.images, folds[(k + 1) % 5].test.images)


def test_a_class_too_small_for_the_folds_is_named() -> None:
    with pytest.raises(DPAPError, match=r"Class 'a' has 3 samples, too few for 4 folds(.|\n)*data\.folds to 3 or less"):
        dataset(split([0, 0, 1, 1, 2, 2])).fold(0, 4)


def test_randomness_depends_on_position_and_purpose_alone() -> None:
    def draw(**position: int) -> list[int]:
        return torch.randint(0, 1000, (4,), generator=generator(7, "order", **position)).tolist()

    first = draw(epoch=3)
    torch.manual_seed(99)
    assert draw(epoch=3) == first
    assert draw(epoch=4) != first
    assert draw(epoch=3, batch=1) != first
    seeds = {derived_seed(s, p, e, b) for s in (0, 1) for p in ("order", "augment") for e in (1, 11) for b in (1, 11)}
    assert len(seeds) == 16
    assert derived_seed(0, "order", 1, 11) != derived_seed(0, "order", 11, 1)
    seed_global(7, "dropout", 1, 2)
    one = torch.rand(3)
    seed_global(7, "dropout", 1, 2)
    assert torch.equal(torch.rand(3), one)


def test_derived_seeds_never_change() -> None:
    """A change here would change every run that was ever made with a seed."""
    assert derived_seed(0, "order", 0, 0) == DERIVED
    assert derived_seed(0, "order", 0, 0) < 2**63


DERIVED = int.from_bytes(hashlib.blake2b(b"0/order/0/0", digest_size=8).digest(), "big") // 2
