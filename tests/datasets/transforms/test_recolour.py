"""Pictures in other colours: the same shapes, never the same colours, the same for the same seed."""
import numpy as np

from mgdet_plugin.datasets import Recolour, sample_randomness


def recoloured(image, seed):
    with sample_randomness(seed):
        return Recolour()(dict(img=image.copy()))['img']


def test_shapes_stay_and_colours_change():
    image = np.full((8, 8, 3), 200, np.uint8)
    image[2:5, 2:5] = 20
    inverted = 0
    for seed in range(40):
        found = recoloured(image, seed).astype(float)
        assert found.dtype == float and found.shape == image.shape
        inside, outside = found[2:5, 2:5], found[6:, 6:]
        assert np.ptp(inside, (0, 1)).max() == np.ptp(outside, (0, 1)).max() == 0  # flat parts stay flat
        inverted += inside.mean() > outside.mean()
    assert 10 < inverted < 30
    assert (recoloured(image, 3) == recoloured(image, 3)).all() and (recoloured(image, 3) != recoloured(image, 4)).any()


def test_floats_are_taken_and_bytes_given():
    assert recoloured(np.random.RandomState(0).rand(4, 4, 3).astype(np.float32) * 255, 1).dtype == np.uint8
