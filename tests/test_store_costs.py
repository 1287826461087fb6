"""What stores cost, measured whole and small: every row there, and what does not depend on the machine's speed. `make bench-stores` does more of it."""
import inspect
import json
from pathlib import Path

import pytest

from whisper_nb.errors import RequestError, StepError
from whisper_nb.rows import read_rows
from whisper_nb.runs import notebook_parameters
from whisper_nb.store_costs import OURS, free_port, measure_stores, medians, restores_table, s3_server, started, uploads_table, verdicts, write_report

from conftest import PROJECT


def test_the_demo(tmp_path):
    "Measured once, looked at from all sides."
    measured = measure_stores('demo', 'tar.gz', 1, str(tmp_path / 'outputs'))
    check_every_row_is_there(measured)
    check_what_the_rows_say(measured)
    check_tables_and_pictures_come_from_the_rows_alone(measured)


def check_every_row_is_there(measured):
    rows = read_rows(measured.rows)
    found = {(row['store'], row['step'], row['way']) for row in rows[1:]}
    assert rows[0]['step'] == 'machine' and rows[0]['s3'] in ('s3rver', 'moto') and not rows[0]['random']
    assert len(found) == len(rows) - 1 and not [row for row in rows if row.get('error')]
    assert {(store, 'restore', OURS) for store in ('S3', 'HTTP', 'directory')} <= found
    assert {('S3', 'upload', OURS), ('S3', 'upload', 'obstore'), ('S3', 'download', 'boto3'), ('S3', 'usual way', 'usual'), ('HTTP', 'download', 'obstore'), ('directory', 'upload', 'cp')} <= found
    # nothing is left but the results, and no path, port or key of this machine in them
    assert sorted(path.name for path in measured.path.parent.glob('[!.]*')) == [f'store-costs-demo.{end}' for end in ('jsonl', 'md', 'png', 'svg')]
    text = measured.rows.read_text()
    assert str(measured.path.parent) not in text and '127.0.0.1' not in text and 'S3RVER' not in text


def check_what_the_rows_say(measured):
    rows = read_rows(measured.rows)
    found, size = medians(rows), rows[0]['bytes']
    restored = found.xs(('restore', OURS), level=('step', 'way'))
    archive = found.bytes['tar.gz', 'S3', 'download', 'obstore']
    assert (restored.bytes == size).all() and 0.5 * size < archive < size
    assert (restored.fetched >= archive).all() and (restored.fetched < 1.2 * archive).all()  # once, and the small files beside it
    assert (restored.disk < size + 0.5 * archive).all() and (found.cpu_seconds > 0).all()
    assert found.disk['tar.gz', 'S3', 'usual way', 'usual'] > size + 0.9 * archive  # the archive lies there, too
    assert verdicts(rows)[-1].met, measured  # memory; the disk's target is for large models


def check_tables_and_pictures_come_from_the_rows_alone(measured):
    rows = read_rows(measured.rows)
    assert len(restores_table(rows)) + len(uploads_table(rows)) == len(medians(rows))
    before = {path: path.read_bytes() for path in measured.path.parent.glob('store-costs-*')}
    assert repr(write_report(measured.rows)) == repr(measured)
    assert {path: path.read_bytes() for path in before} == before


def test_parameters_are_defined_once():
    notebook = PROJECT / 'nbs' / 'runs' / 'store_costs.ipynb'
    declared = {name: each.default for name, each in inspect.signature(measure_stores).parameters.items()}
    cell = next(cell for cell in json.loads(notebook.read_text())['cells'] if 'parameters' in cell['metadata'].get('tags', ()))
    values = {}
    exec(''.join(cell['source']), values)
    assert list(notebook_parameters(notebook)) == list(declared) and {name: values[name] for name in declared} == declared


def test_refused_before_anything_is_made(monkeypatch):
    with pytest.raises(RequestError, match='must be a whole number'): measure_stores(repeats='3')
    with pytest.raises(RequestError, match='no known model'): measure_stores('nothing')
    with pytest.raises(RequestError, match='no kinds of archives'): measure_stores(formats='tar.gz,zip')
    with monkeypatch.context() as patch:
        patch.setattr('whisper_nb.files.free_bytes', lambda path: 10**9)
        with pytest.raises(StepError, match='needs 6.* GB on the disk, 1 GB are free'): measure_stores('turbo')
    assert not list(Path('outputs/bench').glob('[!.]*'))


def test_a_server_that_ends_at_once_is_said():
    with pytest.raises(StepError, match='did not start'):
        with started(['false'], free_port()): pass


def test_without_the_fast_server_moto_is_taken(tmp_path, monkeypatch):
    pytest.importorskip('moto')
    monkeypatch.delenv('NODE_PATH', raising=False)
    monkeypatch.setattr('sys.prefix', str(tmp_path))
    assert s3_server(tmp_path, 1)[0] == 'moto'
