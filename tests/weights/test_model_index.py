"""The package's models by name, with the weights they come with."""
import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from mmengine.runner.checkpoint import CheckpointLoader
from PIL import Image

from mgdet_plugin.common.errors import UserError
from mgdet_plugin.common.resources import ROOT
from mgdet_plugin.datasets.digits import DOMAINS, _draw, _handwritten_samples
from mgdet_plugin.weights.model_index import shipped_models

NAME = 'mgdet_nano_digits'


def test_the_index_names_files_that_are_there():
    [model] = shipped_models()
    assert model['Name'] == NAME and model['Config'] == str(ROOT / 'configs/mgdet_nano_pretrain.py')
    assert (ROOT / model['Weights'].removeprefix('mgdet_plugin::')).is_file()


def test_it_is_listed_beside_mmdet_s():
    there = DetInferencer.list_models('mmdet', 'mgdet_nano_d|yolox_tiny')
    assert there == [NAME, 'yolox_tiny_8x8_300e_coco']


def test_an_inferencer_by_name_finds_digits(tmp_path, monkeypatch):
    """All seven, and nothing else, on a picture that no training has seen."""
    monkeypatch.chdir(tmp_path)
    seed = [DOMAINS['source'].seed, 2, 3]  # the fourth of the test set
    image, truth = _draw('source', _handwritten_samples()['test'], np.random.RandomState(seed))
    Image.fromarray(image).save('digits.png')
    infer = DetInferencer(NAME, device='cpu', show_progress=False)
    assert infer.model.dataset_meta['classes'] == list('0123456789')
    [found] = infer('digits.png', no_save_vis=True)['predictions']
    sure = sorted((label, *box) for label, score, box in zip(found['labels'], found['scores'], found['bboxes'])
                  if score > 0.5)
    true = sorted((digit, x, y, x + w, y + h) for digit, (x, y, w, h) in truth)
    assert len(sure) == len(true) == 7 and np.abs(np.subtract(sure, true)).max() < 5


def test_weights_that_do_not_come_with_it_are_refused():
    with pytest.raises(UserError, match=r'weights/no\.h5 is not among .*; there is mgdet_plugin::weights/'):
        CheckpointLoader.load_checkpoint('mgdet_plugin::weights/no.h5')


def test_the_weights_are_plain_tensors():
    content = CheckpointLoader.load_checkpoint('mgdet_plugin::weights/digits_source.h5', map_location='cpu')
    assert sum(value.numel() for value in content['state_dict'].values()) > 2_700_000
    assert all(isinstance(value, torch.Tensor) for value in content['state_dict'].values())
