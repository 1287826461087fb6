"""The measurement against the usual way, on a small stand-in: every row there, and what does not depend on the machine's speed. `make bench-full` does it at full size."""
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from whisper_nb.errors import RequestError, StepError
from whisper_nb.full_size import (OURS, SNAPSHOT, STORED, USUAL, _resumes, measure, measure_checkpoint, medians, plan, read_rows, verdicts,
    write_report)
from whisper_nb.models import CHECKPOINTS
from whisper_nb.runs import notebook_parameters

from conftest import PROJECT, listen_to_ctrl_c

SMALL = replace(CHECKPOINTS['openai/whisper-large-v3-turbo'], repo_id='stand-in/small', width=384, encoder_layers=4, decoder_layers=2, attention_heads=6)
FOUR = 'download', 'verify', 'compress float16 tar.gz', 'restore float16 tar.gz'


def test_side_by_side(tmp_path):
    measured = measure_checkpoint(SMALL, 1, Path('bench'))
    rows = read_rows('bench/full-size.jsonl')
    first, rest = rows[0], rows[1:]
    # all of it ran, and left nothing but its results
    assert [(row['step'], row['way'], row['command']) for row in rest] == [(task.step, task.way, task.command) for task in plan(SMALL.repo_id) + _resumes(SMALL.repo_id)]
    assert not [row for row in rows if row.get('error')]
    assert sorted(path.name for path in Path('bench').glob('[!.]*')) == [f'full-size.{end}' for end in ('jsonl', 'md', 'png', 'svg')]
    assert str(tmp_path) not in Path('bench/full-size.jsonl').read_text()
    # bytes: downloaded whole; archives in all formats no larger than tar's (the tokenizer, a tenth of this small model, is packed less tightly than the weights)
    found = medians(rows)
    size, memory, seconds = found.bytes, found.peak_memory, found.seconds
    assert 60e6 < first['bytes'] < 90e6 and size['download', OURS] >= first['bytes'] and size['restore float16 tar.gz', OURS] > size['compress float16 tar.gz', OURS]
    assert size['compress float16 tar.gz', OURS] <= 1.005 * size['compress float16 tar.gz', USUAL]
    assert size['compress int8 tar.gz', OURS] < 0.6 * size['compress float16 tar.gz', OURS]
    # a killed download goes on where it was
    assert found.refetched['resume', OURS] <= 0.05 and found.refetched['resume', USUAL] > 0.3
    # memory
    assert all(memory[step, OURS] <= 300e6 for step in FOUR), memory
    assert all(memory[f'convert {each}', OURS] <= memory[f'convert {each}', USUAL] for each in STORED), memory
    # speed, so loosely that only a real loss fails: most of the time here is starting processes, on a machine that may be busy
    assert seconds['compress float16 tar.gz', OURS] < seconds['compress float16 tar.gz', USUAL]
    assert seconds['download', OURS] < 3 * seconds['download', SNAPSHOT]
    assert all(seconds[f'convert {each}', OURS] < 2 * seconds[f'convert {each}', USUAL] for each in STORED)
    assert seconds['convert float16,int8', OURS] < 3 * seconds['convert float16', OURS]
    assert seconds['whole job', OURS] < 2.5 * seconds['whole job', USUAL]
    assert seconds['run again', OURS] < seconds['whole job', OURS]
    # what is written is what the rows say, again and again
    assert all(each.value == each.value for each in verdicts(rows))
    before = {path: path.read_bytes() for path in Path('bench').glob('full-size.*')}
    assert repr(write_report(Path('bench/full-size.jsonl').absolute())) == repr(measured)
    assert {path: path.read_bytes() for path in before} == before


def test_parameters_are_defined_once():
    notebook = PROJECT / 'nbs' / 'runs' / 'full_size.ipynb'
    declared = {name: each.default for name, each in inspect.signature(measure).parameters.items()}
    cell = next(cell for cell in json.loads(notebook.read_text())['cells'] if 'parameters' in cell['metadata'].get('tags', ()))
    values = {}
    exec(''.join(cell['source']), values)
    assert list(notebook_parameters(notebook)) == list(declared) and {name: values[name] for name in declared} == declared


def test_refused_before_anything_is_made(monkeypatch):
    with pytest.raises(RequestError, match='not in the table'): measure('demo')
    with monkeypatch.context() as patch:
        patch.setattr('whisper_nb.files.free_bytes', lambda path: 10**9)
        with pytest.raises(StepError, match='needs 11.8 GB on the disk, 1 GB are free'): measure('turbo')
    assert os.listdir('outputs/bench') == ['.locks']
    monkeypatch.setenv('PATH', '')
    with pytest.raises(StepError, match='tar, gzip, md5sum, sha256sum'): measure_checkpoint(SMALL, 1, Path('bench'))


@pytest.mark.skipif(sys.platform != 'linux', reason='looks at processes in /proc')
def test_stopped_in_the_middle_it_leaves_no_process_and_the_rows_so_far():
    code = f'from dataclasses import replace; from pathlib import Path; from whisper_nb.models import CHECKPOINTS; from whisper_nb.full_size import *\nmeasure_checkpoint({SMALL!r}, 1, Path("bench"))'
    code = 'from whisper_nb.models import Checkpoint\n' + code
    child = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.DEVNULL, preexec_fn=listen_to_ctrl_c)
    rows, end = Path('bench/full-size.jsonl'), time.monotonic() + 120
    while not (rows.is_file() and len(rows.read_text().splitlines()) > 3) and time.monotonic() < end: time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert child.wait(60) != 0
    assert len(read_rows(rows)) > 3 and not Path('bench/work').exists()
    here = str(Path('bench/work').absolute())
    time.sleep(0.2)
    def where(process):
        try: return os.readlink(process / 'cwd')
        except OSError: return ''
    assert not [process for process in Path('/proc').glob('[0-9]*') if where(process).startswith(here)]
