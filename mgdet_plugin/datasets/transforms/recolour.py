"""A picture in other colours: the same shapes, as another domain might show them."""
from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

GREYS = (40.0, 215.0)  # range of the new mean of each channel
CONTRAST = (0.3, 1.3)  # range of the factor on the distance from the mean, the same for all channels


@TRANSFORMS.register_module()
class Recolour(BaseTransform):
    """Give a picture random colours: dark on bright becomes bright on dark, channels get other means.

    What a detector thinks of many such pictures says more of what it knows than what it thinks of a few as they are,
    where these are not of the domain it was trained on. In this order: inverted with probability 1/2; contrast by a
    factor, each channel to a mean drawn anew; channels exchanged with probability 0.3; grey with probability
    0.2; clipped. Boxes stay.

    Required and modified key: ``img`` (h, w, 3), 0 to 255; uint8 afterwards. Draws from ``numpy.random``.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Recolour one sample, in place."""
        image = results['img'].astype(np.float32)
        if np.random.random() < 0.5:
            image = 255 - image
        mean = image.mean((0, 1))
        image = (image - mean) * np.random.uniform(*CONTRAST) + np.random.uniform(*GREYS, 3)
        if np.random.random() < 0.3:
            image = image[..., np.random.permutation(3)]
        if np.random.random() < 0.2:
            image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
        results['img'] = np.rint(image).clip(0, 255).astype(np.uint8)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
