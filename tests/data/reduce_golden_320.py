"""Reduce the reference's decode and loss numbers to what the tests need: ``python reduce_golden_320.py GOLDEN_DIR``.

Of the decoded cells every seventh is kept; of the suppressed boxes those of DIoU suppression, the only method the
reference gets right.
"""
import json
import sys
from pathlib import Path

import numpy as np

if __name__ == '__main__':
    source, here = Path(sys.argv[1]), Path(__file__).parent
    full = np.load(source / 'decode_loss_320.npz')
    keep = {key: full[key] for key in full.files if key.startswith(('boxes', 'num_boxes', 'y_true', 'pred', 'orig'))}
    keep['decoded'] = full['decoded'][:, ::7]
    keep.update({key: full[key] for key in full.files if key.startswith('nms_diou_iou')})
    np.savez_compressed(here / 'golden_320.npz', **keep)
    totals = json.loads((source / 'loss_320.json').read_text())
    (here / 'golden_loss_320.json').write_text(json.dumps(totals, indent=1))
