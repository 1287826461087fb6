"""One model in several formats, measured whole and small: every row there, and what does not depend on the machine's speed. `make bench-formats` does more of it."""
import inspect
import json
from pathlib import Path

import pytest

from whisper_nb.errors import RequestError, StepError
from whisper_nb.format_costs import Holding, fidelity_table, files_table, holdings, measure_formats, medians, runs_table, write_report
from whisper_nb.rows import read_rows
from whisper_nb.runs import notebook_parameters

from conftest import PROJECT

QUANTIZATIONS = 'bfloat16', 'int8'  # the notebook has float16 and openai-whisper


def test_the_demo_in_two_quantizations(tmp_path):
    "Measured once, looked at from all sides."
    measured = measure_formats('demo', 1, ','.join(QUANTIZATIONS), outputs_dir=str(tmp_path))
    check_every_row_is_there(measured)
    check_what_the_rows_say(measured)
    check_tables_and_pictures_come_from_the_rows_alone(measured)
    check_a_failed_run_has_no_figures(measured, tmp_path)


def check_every_row_is_there(measured):
    rows, wanted = read_rows(measured.rows), holdings(QUANTIZATIONS)
    def found(step): return [Holding(row['format'], row['quantization']) for row in rows if row['step'] == step]
    assert rows[0]['step'] == 'machine' and not rows[0]['random']
    assert found('files') == found('words') == wanted
    assert found('fidelity') == [each for each in wanted if each.format != 'transformers']
    assert set(found('run')) == set(wanted) and len(found('run')) == len(wanted)
    assert not measured.failures, measured
    # nothing is left but the results, and no path of this machine in them
    assert sorted(path.name for path in measured.path.parent.glob('[!.]*')) == [f'format-costs-demo.{end}' for end in ('jsonl', 'md', 'png', 'svg')]
    assert str(measured.path.parent) not in measured.rows.read_text()


def check_what_the_rows_say(measured):
    rows = read_rows(measured.rows)
    files = {(row['format'], row['quantization']): row for row in rows if row['step'] == 'files'}
    sizes = {key: row['weights_bytes'] for key, row in files.items()}
    assert sizes['ctranslate2', 'int8'] < 0.6 * sizes['ctranslate2', 'bfloat16']
    assert abs(sizes['transformers', 'bfloat16'] / sizes['ctranslate2', 'bfloat16'] - 1) < 0.01  # the same numbers
    assert all(sum(row['types'].values()) <= row['weights_bytes'] for row in files.values())
    found = medians(rows)
    assert (found.load_seconds > 0).all() and (found.rtfx > 0).all() and (found.peak_memory > 50e6).all()
    assert all(found.compute_type.str.startswith(('float32', 'int8', 'bfloat16')))
    assert all(row['wer'] == 0 and not row['invented'] for row in rows if row['step'] == 'words')
    assert all(row['text'] for row in rows if row['step'] == 'run')


def check_tables_and_pictures_come_from_the_rows_alone(measured):
    rows = read_rows(measured.rows)
    assert len(runs_table(rows)) == len(medians(rows)) and len(files_table(rows)) == len(holdings(QUANTIZATIONS))
    assert list(fidelity_table(rows)['faithful']) == ['✅'] * len(fidelity_table(rows))
    before = {path: path.read_bytes() for path in measured.path.parent.glob('format-costs-*')}
    assert repr(write_report(measured.rows)) == repr(measured)
    assert {path: path.read_bytes() for path in before} == before


def check_a_failed_run_has_no_figures(measured, tmp_path):
    rows = read_rows(measured.rows)
    runs = [row for row in rows if row['step'] == 'run']
    runs[0]['error'] = 'an example'
    (tmp_path / 'rows.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    assert medians(rows).load_seconds.isna().sum() == 1
    report = write_report(tmp_path / 'rows.jsonl')
    assert len(report.failures) == 1 and 'an example' in report.path.read_text()


def test_parameters_are_defined_once():
    notebook = PROJECT / 'nbs' / 'runs' / 'format_costs.ipynb'
    declared = {name: each.default for name, each in inspect.signature(measure_formats).parameters.items()}
    cell = next(cell for cell in json.loads(notebook.read_text())['cells'] if 'parameters' in cell['metadata'].get('tags', ()))
    values = {}
    exec(''.join(cell['source']), values)
    assert list(notebook_parameters(notebook)) == list(declared) and {name: values[name] for name in declared} == declared


def test_refused_before_anything_is_made(monkeypatch):
    with pytest.raises(RequestError, match='must be a whole number'): measure_formats(repeats='3')
    with pytest.raises(RequestError, match='no known model'): measure_formats('nothing')
    with monkeypatch.context() as patch:
        patch.setattr('whisper_nb.files.free_bytes', lambda path: 10**9)
        with pytest.raises(StepError, match='needs .* GB on the disk, 1 GB are free'): measure_formats('turbo')
    assert not list(Path('outputs/bench').glob('[!.]*'))
