"""Lines of JSON that a run adds to a file, of which a resumed one keeps those it has behind it."""
from pathlib import Path

from mgdet_plugin.common.records import append_line, keep_lines


def test_lines_of_what_is_not_behind_go(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        append_line(str(tmp_path), 'a.jsonl', dict(iter=number, loss=float('nan')))
    path = tmp_path / 'a.jsonl'
    whole = path.read_bytes()
    with path.open('ab') as stream:
        stream.write(b'{"iter": 1, "lo')  # killed
    keep_lines(str(tmp_path), 'a.jsonl', lambda entry: entry['iter'] <= 2)
    assert path.read_bytes() == b''.join(whole.splitlines(keepends=True)[:2])
    before = path.stat().st_mtime_ns
    keep_lines(str(tmp_path), 'a.jsonl', lambda entry: entry['iter'] <= 2)
    assert path.stat().st_mtime_ns == before
    keep_lines(str(tmp_path), 'not there', lambda entry: True)
    assert [each.name for each in tmp_path.iterdir()] == ['a.jsonl']
