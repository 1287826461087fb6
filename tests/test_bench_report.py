"""The benchmark as its users meet it: the notebook run by papermill, the three commands, and the report made again from rows."""
import inspect
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from fastcore.docments import docments

from whisper_nb.audio import default_clip
from whisper_nb.bench import benchmark
from whisper_nb.bench_report import write_bench_report
from whisper_nb.results import cases_frame, read_results
from whisper_nb.runs import notebook_parameters
from whisper_nb.settings import read_settings

from conftest import PROJECT

NOTEBOOK = PROJECT / 'nbs' / 'runs' / 'benchmark.ipynb'
KEPT = PROJECT / 'nbs' / 'explanations' / 'benchmark_demo.jsonl'
PICTURES = {f'{name}.{end}' for name in ('speed-accuracy', 'memory', 'latency', 'parts') for end in ('svg', 'png')}
LITTLE = dict(backends='faster-whisper', compute_types='int8', beam_sizes='1', batch_sizes='1', repeats=1, recordings=1, long_seconds=0, name='little')


@pytest.fixture
def kept(tmp_path):
    "The rows of a real run, in a directory of their own."
    directory = tmp_path / 'outputs' / 'bench' / 'kept'
    directory.mkdir(parents=True)
    shutil.copy(KEPT, directory / 'rows.jsonl')
    return directory


def changed(source, target, change):
    "Rows with each one changed."
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text('\n'.join(json.dumps(change(json.loads(line))) for line in source.read_text().splitlines()) + '\n')
    return target


def test_parameters_are_defined_once(whisper_nb):
    "Python, command line and notebook: same names, same defaults."
    python = {name: each.default for name, each in inspect.signature(benchmark).parameters.items()}
    cell = next(cell for cell in nbformat.read(NOTEBOOK, 4).cells if 'parameters' in cell.metadata.get('tags', ()))
    values = {}
    exec(cell.source, values)
    assert list(notebook_parameters(NOTEBOOK)) == list(python) and {name: values[name] for name in python} == python
    said = dict(re.findall(r'^(\w+): .*?  # (.*)$', cell.source, re.M))
    assert said == {name: text for name, text in docments(benchmark).items() if name in python}
    limits = docments(write_bench_report)
    assert all(limits[name] == said[name] for name in ('max_wer_loss', 'max_memory'))
    text = whisper_nb('bench', '--help').stdout
    assert '[MODELS]...' in text and all(f"--{name.replace('_', '-')}" in text for name in python if name != 'models')
    text = whisper_nb('bench-report', '--help').stdout
    assert all(f"--{name.replace('_', '-')}" in text for name in inspect.signature(write_bench_report).parameters if name != 'file')


def test_the_notebook_by_papermill(tmp_path, whisper_nb):
    "One small case: rows, report, pictures, figures as data; and what it recommends is what transcribe then does."
    given = [word for name, value in LITTLE.items() for word in ('-p' if isinstance(value, int) else '-r', name, str(value))]
    done = subprocess.run([sys.executable, '-m', 'papermill', str(NOTEBOOK), 'out.ipynb', *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    directory = tmp_path / 'outputs' / 'bench' / 'little'
    assert {path.name for path in directory.iterdir() if not path.name.startswith('.')} == PICTURES | {'rows.jsonl', 'report.md', 'cases.csv'}
    outputs = [output for cell in nbformat.read('out.ipynb', 4).cells if cell.cell_type == 'code' for output in cell.outputs]
    assert sum('image/png' in output.get('data', {}) for output in outputs) == len(PICTURES) / 2
    assert any('## Machine' in output.get('data', {}).get('text/markdown', '') for output in outputs)
    data = next(output.data['application/json'] for output in outputs if output.get('metadata', {}).get('whisper_nb', {}).get('report'))
    assert data['ok'] and data['recommended']['backend'] == 'faster-whisper' and not data['failures']
    assert str(tmp_path) not in (directory / 'rows.jsonl').read_text() + (directory / 'report.md').read_text()
    assert len(data['cases']) == 1 and data['words']
    heard = whisper_nb('transcribe', default_clip().path)
    assert heard.returncode == 0 and heard.stdout.strip(), heard.stderr
    note = next(line for line in heard.stderr.splitlines() if 'as recommended in' in line)
    assert all(data['recommended'][name] in note for name in ('backend', 'compute_type')) and Path(data['recommended']['model']).name in note


def test_one_case_on_the_command_line(tmp_path, whisper_nb):
    options = [word for name, value in LITTLE.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = whisper_nb('bench', 'demo', *options, '--json')
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data['ok'] and len(data['cases']) == 1 and data['cases'][0]['rtfx'] > 0 and Path(data['report']).is_file()
    again = whisper_nb('bench-report', data['rows'])
    assert again.returncode == 0 and 4 <= len(again.stdout.strip().splitlines()) <= 14 and data['report'] in again.stdout, again.stdout


@pytest.mark.parametrize('words, what', [
    (('bench', 'nothing-like-it'), 'nothing-like-it'),
    (('bench', '--backends', 'faster-wisper'), 'faster-wisper'),
    (('bench', '--max-wer-loss', '-1'), 'max_wer_loss'),
    (('bench', '--repeats', '0'), 'repeats'),
    (('bench', '--data', 'nowhere'), 'nowhere'),
    (('bench-report', 'nowhere'), 'nowhere'),
    (('bench-compare', 'nowhere', 'nowhere'), 'nowhere')])
def test_refused_before_anything_is_made(tmp_path, whisper_nb, words, what):
    done = whisper_nb(*words)
    assert done.returncode == 2 and what in done.stderr and '→' in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert not list(tmp_path.glob('outputs/bench/[!.]*'))


def test_rows_of_something_else(whisper_nb):
    done = whisper_nb('bench-report', PROJECT / 'nbs' / 'explanations' / 'full_size.jsonl')
    assert done.returncode == 2 and 'no rows of a benchmark' in done.stderr, done.stderr


def test_the_report_is_made_from_the_rows_alone(kept, tmp_path, whisper_nb):
    "The directory or the file; again the same bytes; other limits, another recommendation; nothing but the report is written."
    first = whisper_nb('bench-report', kept)
    assert first.returncode == 0, first.stderr
    files = {path.name: path.read_bytes() for path in kept.iterdir() if path.suffix in ('.md', '.svg', '.csv')}
    assert all(name in files for name in PICTURES if name.endswith('svg')) and files['report.md'].startswith(b'# Benchmark')
    assert all(f'({name})' in files['report.md'].decode() for name in files if name.endswith('svg'))
    assert repr(write_bench_report(os.path.relpath(kept / 'rows.jsonl'))) in first.stdout.replace(str(tmp_path) + os.sep, '')
    assert {name: (kept / name).read_bytes() for name in files} == files
    loose = json.loads(whisper_nb('bench-report', kept, '--max-wer-loss', '1', '--json').stdout)
    assert math.isclose(loose['recommended']['rtfx'], max(case['rtfx'] for case in loose['cases']))
    settings = json.loads((tmp_path / 'outputs' / 'recommended.json').read_text())['settings']
    assert settings[0]['backend'] == loose['recommended']['backend'] and settings[0]['rows'] == str(kept / 'rows.jsonl')
    assert len(cases_frame(read_results(kept / 'rows.jsonl'))) == len(loose['cases'])


def test_limits_that_exclude_everything(kept, tmp_path, whisper_nb):
    "No setting is written, the words say so, and the report is there all the same; what was recommended before stays."
    settings = tmp_path / 'outputs' / 'recommended.json'
    assert 'Nothing measured is within' in repr(write_bench_report(str(kept), max_memory=0.001))
    assert not settings.exists() and (kept / 'report.md').is_file()
    write_bench_report(str(kept))
    before = settings.read_bytes()
    again = whisper_nb('bench-report', kept, '--max-memory', '0.001')
    assert again.returncode == 0 and settings.read_bytes() == before and 'is as it was before' in again.stdout, again.stdout


def test_rows_of_another_machine(kept, tmp_path):
    "A colleague's settings are kept beside those of this machine, and it is said that they are of no use here."
    def move(row): return row | dict(machine=row['machine'] | dict(processor='Another One')) if row['step'] == 'machine' else row
    write_bench_report(kept)
    mine = read_settings('outputs/recommended.json')
    theirs = write_bench_report(changed(kept / 'rows.jsonl', kept.parent / 'theirs' / 'rows.jsonl', move))
    assert 'of another machine (Another One)' in repr(theirs)
    both = read_settings('outputs/recommended.json')
    assert all(each in both for each in mine) and len(both) == 2 * len(mine)


def test_a_later_run_replaces_the_settings(kept, tmp_path):
    def later(row): return row | dict(measured='2099-01-01T00:00:00Z') if row['step'] == 'machine' else row
    first = write_bench_report(kept).recommendation.setting
    second = write_bench_report(changed(kept / 'rows.jsonl', kept.parent / 'later' / 'rows.jsonl', later))
    assert f'replaces the one measured {first.measured}' in repr(second)
    assert all(each.measured.startswith('2099') for each in read_settings('outputs/recommended.json'))


def test_words_that_would_break_a_table(kept):
    "What a model wrote may hold a bar or a new line: the table's columns stay."
    def speak(row): return row | dict(text='one | two\nthree') if row['step'] == 'heard' else row
    rows = changed(kept / 'rows.jsonl', kept.parent / 'bars' / 'rows.jsonl', speak)
    table = write_bench_report(rows).path.read_text().split('## Recordings\n')[1].split('\n## ')[0].strip().splitlines()
    lines = [line for line in table if line.startswith('|')]
    assert any(r'one \| two three' in line for line in lines) and len({len(re.findall(r'(?<!\\)\|', line)) for line in lines}) == 1


def test_an_interrupted_run(kept, whisper_nb):
    "The last line is cut off: what is whole is used, and it is said."
    rows = kept / 'rows.jsonl'
    rows.write_bytes(rows.read_bytes()[:-40])
    done = whisper_nb('bench-report', kept)
    assert done.returncode == 0 and 'cut off' in done.stderr and 'Traceback' not in done.stderr, done.stderr


def test_nothing_measured(kept, whisper_nb):
    "Every trial failed: the report says so, and the exit code is 1."
    def fail(row): return row | dict(status='killed', problem='the system ended it') if row['step'] == 'trial' else row
    failed = changed(kept / 'rows.jsonl', kept.parent / 'failed' / 'rows.jsonl', fail)
    done = whisper_nb('bench-report', failed)
    assert done.returncode == 1 and 'the system ended it' in done.stdout, done.stderr
    assert 'the system ended it' in (failed.parent / 'report.md').read_text()
    assert not list(failed.parent.glob('*.svg'))


def test_two_runs_compared(kept, whisper_nb):
    "The same rows twice are no regression; twice the time is one, and the exit code says so."
    same = whisper_nb('bench-compare', kept, kept / 'rows.jsonl')
    assert same.returncode == 0 and 'no difference' in same.stdout, same.stdout + same.stderr
    def stretch(row): return row | dict(seconds=2 * row['seconds']) if row['step'] == 'heard' else row
    slow = changed(kept / 'rows.jsonl', kept.parent / 'slow' / 'rows.jsonl', stretch)
    worse = whisper_nb('bench-compare', kept, slow, '--json')
    assert worse.returncode == 1 and 'slower' in worse.stdout and isinstance(json.loads(worse.stdout), dict), worse.stdout + worse.stderr
