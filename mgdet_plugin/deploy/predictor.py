"""One predictor over every file a model may lie in: the same call, the same boxes."""
from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mgdet_plugin.common.errors import is_whole, require
from mgdet_plugin.deploy.thresholds import ScoreThr, class_thresholds

if TYPE_CHECKING:  # what is missing is told without importing torch and mmdet
    import numpy as np
    from mmdet.structures import DetDataSample

    from mgdet_plugin.deploy.preparation import Picture, Preparation


EXPORTED = ('.onnx', '.xml')


class Backend(Protocol):
    """A model ready to run.

    Attributes:
        classes: Names of its classes.
        palette: (red, green, blue) of each class.
        input_size: (height, width) of its input in pixels; of an input that keeps a picture's shape, the most of each.
        score_thr: Score above which it gives a detection.
        prepare: Makes its samples of pictures.
    """

    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]]
    input_size: tuple[int, int]
    score_thr: float
    prepare: Preparation

    def lower(self, score_thr: float) -> None:
        """Give detections above this score, too.

        Raises:
            UserError: The file decides that itself.
        """

    def __call__(self, packed: list[dict[str, Any]]) -> list[DetDataSample]:
        """The samples with ``pred_instances`` on the CPU, boxes in pixels of the original picture."""


class Predictor:
    """Finds objects in pictures.

    Args:
        backend: The model.
        score_thr: See :func:`detect`.

    Attributes:
        classes: Names of the classes; a result's ``labels`` are their places.
        palette: (red, green, blue) of each class.
        input_size: (height, width) in pixels a picture is brought to.
    """

    def __init__(self, backend: Backend, score_thr: ScoreThr = None) -> None:
        self.classes, self.palette, self.input_size = backend.classes, backend.palette, backend.input_size
        self._backend = backend
        self._least = class_thresholds(score_thr, self.classes, backend.score_thr)
        if min(self._least) < backend.score_thr:
            backend.lower(min(self._least))

    def __call__(self, images: Picture | Iterable[Picture], batch: int = 1) -> list[DetDataSample]:
        """Find the objects of one picture or several.

        Args:
            images: A path, an array (H, W, 3) uint8 in BGR, a Pillow picture, or several of these.
            batch: Pictures that go through the network at once.

        Returns:
            A sample a picture: ``pred_instances`` with ``bboxes`` (M, 4) as (x1, y1, x2, y2) in pixels of the picture,
            ``scores`` and ``labels`` (M,), by falling score; ``img_path``, ``ori_shape`` (height, width) and
            ``classes``.

        Raises:
            UserError: A picture is not there, cannot be read or is none.
        """
        require(is_whole(batch, 1), 'the batch must be a whole number from 1', batch)
        from mgdet_plugin.deploy.preparation import as_pictures
        pictures, found = as_pictures(images), []
        while packed := [self._backend.prepare(each) for each in islice(pictures, batch)]:
            found += [self._above(sample) for sample in self._backend(packed)]
        return found

    def prepared(self, picture: Picture) -> np.ndarray:
        """What the network is given of a picture: (1, 3, H, W) uint8 in RGB."""
        pixels: np.ndarray = self._backend.prepare(picture)['inputs'].flip(0)[None].numpy()
        return pixels

    def _above(self, sample: DetDataSample) -> DetDataSample:
        """The sample with the detections above their classes' scores."""
        instances = sample.pred_instances
        least = instances.scores.new_tensor(self._least)
        sample.set_metainfo(dict(classes=self.classes))
        sample.pred_instances = instances[instances.scores > least[instances.labels]]
        return sample


def detect(weights: str | Path, config: str | Path | None = None, device: str | None = None,
           score_thr: ScoreThr = None, fast: bool = False, threads: int | None = None) -> Predictor:
    """Load a model of any of our files and give what finds objects with it.

    Args:
        weights: A checkpoint ``.pth``; a Keras file ``.h5`` or ``.keras``, imported in memory; or what ``mgdet export``
            wrote: ``.onnx``, OpenVINO's ``.xml`` with its ``.bin``, a ``.pth`` of torch.
        config: Config of the model. Default: the one stored in a checkpoint of a run; of a Keras file that of model5.
        device: Torch's name of it. Default: the GPU where there is one.
        score_thr: Score above which a detection counts; or class -> score, for others the model's own. Default: the
            model's own.
        fast: Of torch: normalisation folded into the convolutions, channels last, bfloat16 where the processor has
            units for it. The boxes are close to, not the same as without.
        threads: Threads to compute with. Default: what the library takes.

    Raises:
        UserError: The file is missing, no model, does not fit the config, or has no class of a name.
    """
    require(threads is None or is_whole(threads, 1), 'the number of threads must be a whole number from 1', threads)
    path, kind = str(weights), Path(weights).suffix.lower()
    if kind in EXPORTED:
        require(Path(path).is_file(), 'the exported model must be a file that is there', path)
        require(config is None, 'an exported file says itself what a config would; leave the config out', str(config))
        require(not fast, f'fast is for torch; export {path} in another precision instead', fast)
        from mgdet_plugin.deploy.backends.graph_backend import load_onnx, load_openvino
        return Predictor((load_onnx if kind == '.onnx' else load_openvino)(path, device, threads), score_thr)
    from mgdet_plugin.deploy.backends.torch_backend import load_torch
    return Predictor(load_torch(path, config, device, fast, threads), score_thr)
