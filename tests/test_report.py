"What a user sees while work goes on: in a terminal, in a log, in a notebook and in one that papermill runs."
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import COMMAND
from faulty import faulty_hub, make_checkpoint

from whisper_nb.files import MANIFEST_NAME
from whisper_nb.report import Step

FIGURES = r'\d+%, \S+ of \S+, \S+B/s, \d\d:\d\d left'  # As in a log


@pytest.fixture
def seen(monkeypatch):
    "Progress is shown."
    monkeypatch.delenv('TQDM_DISABLE', raising=False)


@pytest.fixture
def slow_hub(tmp_path, monkeypatch, seen):
    "A Hub that takes some seconds to send one model; its name is a/b."
    make_checkpoint(tmp_path/'hub'/'a_b', megabytes=24)
    with faulty_hub(tmp_path/'hub') as (endpoint, faults):
        faults.pause = 0.12  # s for each MiB
        monkeypatch.setenv('HF_ENDPOINT', endpoint)
        yield endpoint


def in_terminal(command, columns=100):
    "Run a command whose standard error is a terminal; everything that was written there."
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack('HHHH', 24, columns, 0, 0))
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=slave) as process:
        os.close(slave)
        parts = []
        while True:
            try: parts.append(os.read(master, 65536))
            except OSError: break  # the other end is closed
        assert process.wait() == 0, b''.join(parts).decode()
    os.close(master)
    return b''.join(parts).decode()


def screen(text):
    "What is on a terminal after it was sent this text."
    lines, row, column = [[]], 0, 0
    for each in re.findall(r'\x1b\[A|[^\x1b]', text):
        if each == '\r': column = 0
        elif each == '\n':
            row += 1
            if row == len(lines): lines.append([])
        elif each == '\x1b[A': row -= 1
        else:
            lines[row] += [' '] * (column + 1 - len(lines[row]))
            lines[row][column] = each
            column += 1
    return [''.join(line).rstrip() for line in lines]


def in_kernel(source):
    "Run a cell in a real kernel: its outputs, and all texts that were shown meanwhile."
    notebook, shown = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), []
    class Client(NotebookClient):
        def process_message(self, message, *others):
            shown.extend([message['content']['data']['text/plain']] if 'text/plain' in message['content'].get('data', {}) else [])
            return super().process_message(message, *others)
    Client(notebook, timeout=120, kernel_name='python3').execute()
    return notebook.cells[0].outputs, shown


# ---- a real command, slowed by its server

def test_download_in_a_log(slow_hub):
    done = subprocess.run([COMMAND, 'download', 'a/b'], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and 1 <= len(lines) <= 3 and '\r' not in done.stderr, done.stderr
    assert all(re.fullmatch(f'download a/b: {FIGURES}', line) for line in lines), lines


def test_download_in_a_terminal(slow_hub):
    text = in_terminal([COMMAND, 'download', 'a/b'])
    frames = re.findall(r'download a/b: +\d+%\|[^|]*\| \S+/\S+ \[00:0\d<\d\d:\d\d, \S+B/s\]', text)
    assert len(frames) > 5 and not any(screen(text)), screen(text)  # it moves, and leaves nothing behind


def test_download_in_a_kernel(slow_hub):
    outputs, shown = in_kernel("from whisper_nb.hub import download\ndownload('a/b', models_dir='models').bytes")
    bars = [text for text in shown if re.fullmatch(f'download a/b: {FIGURES}', text)]
    assert len(bars) > 3 and int(outputs[-1].data['text/plain']) == sum(path.stat().st_size for path in Path('models/a_b').iterdir() if path.name != MANIFEST_NAME)
    assert [output.data['text/plain'] for output in outputs[:-1]] == ['']  # the bar is gone


# ---- two bars and the report's lines at once

TWO = """
import threading, time
from whisper_nb.report import Live, Step, progress
live = Live('prepare demo', ['compress', 'offline test'])
def work(name, label, pause):
    with progress(30_000_000, label) as bar:
        for _ in range(30): time.sleep(pause); bar.update(1_000_000)
    live.update(Step(name, 'done', 'all of it'))
threads = [threading.Thread(target=work, args=each) for each in (('compress', 'pack model', 0.06), ('offline test', 'offline test: loading', 0.1))]
for each in threads: each.start()
for each in threads: each.join()
"""
STEPS = ['prepare demo', *(str(Step(name, 'done', 'all of it')) for name in ('compress', 'offline test'))]


def test_two_at_once_in_a_terminal(seen):
    text = in_terminal([sys.executable, '-c', TWO])
    assert len(re.findall(r'pack model: +\d+%\|', text)) > 3 and len(re.findall(r'offline test: loading: +\d+%\|', text)) > 5
    assert [line for line in screen(text) if line] == STEPS


def test_a_narrow_terminal_shows_the_figures(seen):
    text = in_terminal([sys.executable, '-c', TWO.replace('pack model', 'pack openai_whisper-large-v3-turbo-ct2-float16')], columns=70)
    assert re.search(r'pack \S+…\S+16: +\d+%\|[^|]*\| \S+/30.0M \[00:0\d<00:0\d, \S+B/s\]', text)


def test_two_at_once_in_a_log(seen):
    lines = subprocess.run([sys.executable, '-c', TWO], capture_output=True, text=True).stderr.splitlines()
    assert [line for line in lines if line in STEPS] == STEPS
    others = sorted(line.rsplit(':', 2)[0] for line in lines if line not in STEPS)
    assert [line.split(': ')[0] for line in others] == ['offline test', 'pack model']
    assert all(re.fullmatch(f'(pack model|offline test: loading): {FIGURES}', line) for line in lines if line not in STEPS), lines


def test_two_at_once_in_a_kernel(seen):
    outputs, shown = in_kernel(TWO)
    for label in ('pack model', 'offline test: loading'): assert sum(text.startswith(label) for text in shown) > 2
    table, *bars = [output.data for output in outputs]
    assert table['text/html'].count('✅') == 2 and [bar['text/html'] for bar in bars] == ['', '']


def test_papermill_keeps_no_bars(seen, whisper_nb):
    "The executed notebook and its page hold the report, and neither bars nor widgets."
    cells = [nbformat.v4.new_code_cell('times: int = 1', metadata={'tags': ['parameters']}), nbformat.v4.new_code_cell(TWO)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={'kernelspec': {'name': 'python3', 'display_name': 'python3', 'language': 'python'}}), 'two.ipynb')
    done = whisper_nb('run', 'two.ipynb')
    assert done.returncode == 0, done.stderr
    executed = Path(done.stdout.strip())
    for text in (executed.read_text(), executed.with_suffix('.html').read_text()):
        assert 'all of it' in text and '<progress' not in text and 'widget-view' not in text
    assert 'widgets' not in json.loads(executed.read_text())['metadata']


# ---- the offline test

GREEDY = """
import time
taken = []
print('loading', flush=True)
for _ in range(16): taken.append(bytearray(b'1') * 10_000_000); time.sleep(0.1)
print('a library says something')
print('transcribing', flush=True)
time.sleep(1.6)
"""


def test_the_offline_test_shows_memory_and_then_time(seen, capfd):
    from whisper_nb.offline import _follow
    with subprocess.Popen([sys.executable, '-c', GREEDY], stdout=subprocess.PIPE, text=True) as child: _follow(child, 200_000_000)
    loading, transcribing = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r'offline test: loading: \d+%, \S+M of 200M, \S+MB/s, 00:0\d left', loading)
    assert re.fullmatch(r'offline test: transcribing: 00:0\d', transcribing)


def test_a_child_that_takes_more_than_was_thought(seen, capfd):
    from whisper_nb.offline import _follow
    with subprocess.Popen([sys.executable, '-c', GREEDY], stdout=subprocess.PIPE, text=True) as child: _follow(child, 50_000_000)
    assert capfd.readouterr().err.startswith('offline test: loading: 100%, 50.0M of 50.0M')
