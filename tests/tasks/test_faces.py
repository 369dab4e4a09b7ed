"""The drawn pictures show what they are said to show, by pixels looked up by hand."""

import numpy as np
import pytest

from slugbench.tasks import _faces


def drawn(latents, *attributes, stream=(0, 99)):
    return _faces.photograph(latents, stream, np.array(attributes, np.int64))


@pytest.fixture(scope="module")
def people():
    return _faces.strangers(5, count=24)


def test_the_same_seed_draws_the_same_bytes_and_another_does_not(people):
    first, again, other = (_faces.photograph(people, (0, stream)).image_N3HW for stream in (1, 1, 2))
    assert (first == again).all() and (first != other).mean() > 0.5
    assert first.shape == (24, 3, 32, 32) and first.dtype == np.uint8


def test_drawing_in_parts_changes_nothing(people, monkeypatch):
    whole = _faces.photograph(people, (0, 1)).image_N3HW
    monkeypatch.setattr(_faces, "CHUNK", 7)
    assert (_faces.photograph(people, (0, 1)).image_N3HW == whole).all()


def test_the_upper_corners_have_the_background_that_is_told(people, monkeypatch):
    monkeypatch.setattr(_faces, "OCCLUDED", 0.0)
    colours = np.array(list(_faces.BACKGROUNDS.values()))
    told = np.arange(24) % 6
    picture = drawn(people, *np.stack([told, told % 2, told % 2], axis=1))
    corner_N3 = picture.image_N3HW[:, :, 0, [0, -1]].mean(-1) / 255
    nearest = np.linalg.norm(corner_N3[:, None] - colours[None], axis=-1).argmin(1)
    assert (nearest == told).all() and (picture.background_N == told).all()


@pytest.mark.parametrize(("attribute", "rows"), [(1, slice(10, 18)), (2, slice(20, 27))], ids=["glasses", "beard"])
def test_glasses_and_beards_change_their_part_of_the_face_alone(people, attribute, rows):
    without, worn = np.zeros((24, 3), np.int64), np.zeros((24, 3), np.int64)
    worn[:, attribute] = 1
    a, b = (drawn(people, *attributes).image_N3HW.astype(int) for attributes in (without, worn))
    changed_H = (a != b).any(axis=(0, 1, 3))
    assert changed_H[rows].all() and not changed_H[:4].any() and not changed_H[30:].any()


def test_three_pictures_in_ten_have_something_held_before_the_face(people, monkeypatch):
    one = np.repeat(people[:1], 1000, axis=0)
    image = _faces.photograph(one, (0, 4)).image_N3HW
    monkeypatch.setattr(_faces, "OCCLUDED", 0.0)
    changed = (image != _faces.photograph(one, (0, 4)).image_N3HW).any(axis=(1, 2, 3))
    assert changed.mean() == pytest.approx(0.3, abs=0.045)  # 3 standard errors of 1,000 draws


def test_pictures_of_one_person_differ_less_than_those_of_two(people):
    plain = np.zeros((24, 3), np.int64)
    a, b = (drawn(people, *plain, stream=(0, stream)).image_N3HW[:, :, 4:24, 8:24].astype(float) for stream in (6, 7))
    same = np.abs(a - b).mean(axis=(1, 2, 3))
    other = np.abs(a - np.roll(b, 1, axis=0)).mean(axis=(1, 2, 3))
    assert np.median(same) < 0.75 * np.median(other)
