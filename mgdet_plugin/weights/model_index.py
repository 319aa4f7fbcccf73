"""The package's models by the names in ``model-index.yml``, with their weights, for mmengine's inferencers."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import PREFIXES, ROOT, own_config

_SCHEME = PREFIXES[0]


def patch_inferencer(module: ModuleType) -> None:
    """Let inferencers take the names of our metafile and of our configs, as they take those of OpenMMLab's metafiles.

    ``mgdet_plugin.compat`` calls it with ``mmengine.infer.infer``, once that is imported.
    """
    inferencer = module.BaseInferencer
    list_theirs, find = inferencer._get_models_from_metafile, inferencer._load_model_from_metafile

    def list_all(folder: str) -> Iterator[dict[str, Any]]:
        yield from shipped_models()
        yield from list_theirs(folder)

    def find_with_ours(self: object, model: str) -> tuple[object, str | None]:
        own = own_config(model.removeprefix(_SCHEME))
        return (module.Config.fromfile(own), None) if own is not None else find(self, model)

    inferencer._get_models_from_metafile = staticmethod(list_all)
    inferencer._load_model_from_metafile = find_with_ours
    from mmengine.runner.checkpoint import CheckpointLoader
    CheckpointLoader.register_scheme(_SCHEME, load_from_package, force=True)


def shipped_models() -> Iterator[dict[str, Any]]:
    """The models of our metafiles, config and weights such that mmengine finds them from any folder."""
    from mmengine.fileio import load
    for metafile in load(ROOT / 'model-index.yml')['Import']:
        for model in load(ROOT / metafile)['Models']:
            yield dict(model, Config=str(ROOT / model['Config']), Weights=_SCHEME + model['Weights'])


def load_from_package(filename: str, map_location: Any = None) -> dict[str, Any]:
    """A checkpoint of weights that come with the package, imported from their Keras file, which takes a second or two.

    Args:
        filename: ``mgdet_plugin::`` and a file that a model of the metafile has as its ``Weights``.
        map_location: As in ``torch.load``.

    Raises:
        UserError: No model of the package has weights of that name.
    """
    models = list(shipped_models())
    model = next((each for each in models if each['Weights'] == filename), None)
    if model is None:
        raise UserError(f'{filename} is not among the weights that come with the package; there is '
                        f'{", ".join(each["Weights"] for each in models)}')
    from mgdet_plugin.weights.importer import import_keras
    with TemporaryDirectory() as folder:
        path, config = Path(folder) / 'imported.pth', model['Config']
        import_keras(ROOT / filename.removeprefix(_SCHEME), path, config=config, classes=config, source_classes=config)
        return torch.load(path, map_location=map_location, weights_only=True)
