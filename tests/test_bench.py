"The benchmark when things go wrong: each case that cannot be measured leaves a row that says why, and the others go on."
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest

from conftest import listen_to_ctrl_c

from whisper_nb.audio import clips
from whisper_nb.backends import BACKENDS
from whisper_nb.bench import benchmark, read_recordings
from whisper_nb.cases import plan, prepare_models
from whisper_nb.files import locked
from whisper_nb.models import QUANTIZATIONS
from whisper_nb.rows import read_rows
from whisper_nb.trial import count_listens, remove_work, run_trial, write_sounds

SMALL = dict(devices='cpu', compute_types='float32', beam_sizes='1', batch_sizes='1', repeats=1, recordings=1, long_seconds=0.0, name='run')
SPOKEN = 'set a timer for eight seconds'
NEEDED = {'step', 'case', 'round', 'model', 'checkpoint', 'backend', 'device', 'asked', 'compute_type', 'beam_size', 'batch_size', 'threads', 'status', 'problem', 'advice'}
FIGURES = {'import_seconds', 'load_seconds', 'warmup_seconds', 'wall_seconds', 'peak_memory', 'peak_gpu_memory', 'energy_joules'}


@pytest.fixture(scope='session')
def models(tmp_path_factory):
    "The demo in all formats."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQDM_DISABLE', '1')
        return prepare_models('demo', models_dir=tmp_path_factory.mktemp('models'))


@pytest.fixture
def run(models):
    "A benchmark of the demo, small unless asked otherwise: its rows."
    def run(**asked):
        benchmark(**SMALL | dict(models=str(models[0].path)) | asked)
        return rows_of('outputs')
    return run


@pytest.fixture
def sounds(tmp_path):
    "One clip and a recording of 30 s, as trials read them."
    work = tmp_path / 'work'
    work.mkdir()
    found = [each for each in read_recordings(count=1, long_seconds=30) if each.set != 'wordless']
    return work, write_sounds(found, work)


def rows_of(outputs, name='run'): return read_rows(Path(outputs) / 'bench' / name / 'rows.jsonl')
def of(rows, step): return [row for row in rows if row['step'] == step]
def case_of(models, backend, **asked): return next(case for case in plan(models, backend, **dict(devices='cpu', compute_types='float32', beam_sizes='1', batch_sizes='1') | asked)[0])
def children(): return [each for each in psutil.Process().children(recursive=True) if any('job.json' in word for word in command_of(each))]


def command_of(process):
    try: return process.cmdline()
    except psutil.Error: return []  # it has just ended


def wait_for(found, seconds=60):
    "What `found()` gives, as soon as it is something."
    end = monotonic() + seconds
    while monotonic() < end:
        if result := found(): return result
        sleep(0.02)
    raise AssertionError('it did not happen')


# ---- all goes well

def test_every_backend_leaves_complete_rows(run, models):
    rows = run(compute_types='int8,float32', long_seconds=30.0, threads=2)
    first, recordings, trials, heard = rows[0], of(rows, 'recording'), of(rows, 'trial'), of(rows, 'heard')
    assert first['step'] == 'machine' and first['threads'] == 2 and first['repeats'] == 1 and first['asked']['compute_types'] == 'int8,float32'
    assert {each['model'] for each in first['models']} == {each.name for each in models} and all(each['manifest_sha256'] and not each['random'] for each in first['models'])
    assert {each['set'] for each in recordings} == {'clips', 'long', 'wordless'} and all({'text', 'language', 'seconds', 'condition'} <= set(each) for each in recordings)
    assert all(NEEDED <= set(row) for row in trials)
    check_what_was_refused([row for row in trials if row['round'] is None])
    done = [row for row in trials if row['round']]
    assert {(row['backend'], row['asked'], row['status']) for row in done} == {('faster-whisper', 'int8', 'done'), *((name, 'float32', 'done') for name in BACKENDS)}
    assert all(FIGURES <= set(row) and row['threads'] == 2 and row['load_seconds'] > 0 and row['peak_memory'] > 50e6 and row['energy_joules'] is None for row in done)
    for row in done: check_what_was_heard([each for each in heard if each['case'] == row['case']], recordings, rows.index(row), rows)
    assert not list(Path('outputs/bench/run').glob('.*')) and not children()


def check_what_was_refused(refused):
    assert {(row['backend'], row['asked'], row['status']) for row in refused} == {('transformers', 'int8', 'unsupported'), ('openai-whisper', 'int8', 'unsupported')}
    assert all("cannot compute in 'int8'" in row['problem'] and row['advice'] and row['beam_size'] is None for row in refused)


def check_what_was_heard(heard, recordings, place, rows):
    assert all(rows.index(each) < place for each in heard)  # written before the trial's own
    spoken = {each['recording']: each for each in recordings if each['set'] != 'wordless'}
    assert {each['recording']: each['text'] for each in heard if each['recording'] in spoken} == {name: each['text'] for name, each in spoken.items()}
    assert [(each['recording'], each['vad']) for each in heard if each['recording'] not in spoken] == [(each['recording'], vad) for each in recordings if each['set'] == 'wordless' for vad in (False, True)]
    assert all(each['seconds'] > 0 and sum(each['parts'].values()) <= each['seconds'] for each in heard)


def test_rounds_are_shuffled_and_wordless_recordings_come_once(run, capfd, caplog):
    trials = of(rows := run(backends='faster-whisper', beam_sizes='1,2', batch_sizes='1,2', repeats=2), 'trial')
    assert len(trials) == 8 and all(row['status'] == 'done' for row in trials)
    orders = [[row['case'] for row in trials if row['round'] == number] for number in (1, 2)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    wordless = {row['recording'] for row in of(rows, 'recording') if row['set'] == 'wordless'}
    assert {row['round'] for row in of(rows, 'heard') if row['recording'] in wordless} == {1}
    assert all(row['vad'] for row in of(rows, 'heard') if 'batch 2' in row['case'])
    assert '4 cases, 2 rounds, 1 recording: 8 trials' in capfd.readouterr().err
    assert rows[0]['note'] in caplog.text and rows[0]['note'] == 'a batch of 2 holds 60 s of speech, the longest recording has 3 s'


def test_a_converted_model_is_measured_as_it_is(run, models):
    trials = of(rows := run(models=str(next(each.path for each in models if each.format == 'ctranslate2'))), 'trial')
    assert [(row['model'], row['backend'], row['status']) for row in trials] == [('demo-ct2-float16', 'faster-whisper', 'done')]
    assert [each['model'] for each in rows[0]['models']] == ['demo-ct2-float16'] and rows[0]['models'][0]['checkpoint'] == 'demo'


def test_recordings_of_ones_own(run, tmp_path):
    folder = tmp_path / 'recordings'
    folder.mkdir()
    for place, clip in enumerate([each for each in clips() if each.text][:2]):
        shutil.copy(clip.path, folder / f'mine-{place}{clip.path.suffix}')
        (folder / f'mine-{place}.txt').write_text(clip.text + '\n')
    rows = run(backends='faster-whisper', data=str(folder), recordings=0, long_seconds=6.0)
    assert [row['recording'] for row in of(rows, 'recording') if row['set'] == 'clips'] == ['mine-0', 'mine-1']
    long = next(row for row in of(rows, 'recording') if row['set'] == 'long')
    assert 6 <= long['seconds'] < 12 and long['text'].startswith(SPOKEN)  # a second of silence between them, not a window for each
    assert [row['text'] for row in of(rows, 'heard')][0] == SPOKEN


def test_random_weights_are_spared_what_they_cannot_hear(models, sounds):
    work, found = sounds
    wordless = [dict(each, set='wordless') for each in found[:1]]
    case = case_of(models, 'faster-whisper')
    assert [count_listens(case, *asked) for asked in ((1, found + wordless), (2, found + wordless), (1, found + wordless, True))] == [4, 2, 2]


# ---- one case goes wrong, the others go on

def at_work(process):
    "Has it computed for a while?"
    try: return process.cpu_times().user > 0.2
    except psutil.Error: return False


def kill_one(killed):
    "Kill the first child that is at work."
    child = wait_for(lambda: next(filter(at_work, children()), None))
    child.send_signal(signal.SIGKILL)
    killed.append(child.pid)


def test_a_killed_case_leaves_a_row(run):
    found = []
    thread = threading.Thread(target=kill_one, args=(found,))
    thread.start()
    rows = run(backends='faster-whisper', beam_sizes='1,2', repeats=2)
    thread.join()
    trials = of(rows, 'trial')
    assert sorted(row['status'] for row in trials) == ['done', 'done', 'done', 'killed'] and len(found) == 1
    killed = next(row for row in trials if row['status'] == 'killed')
    assert 'SIGKILL' in killed['problem'] and killed['advice'] and killed['peak_memory'] is None
    assert [row['status'] for row in trials if row['case'] == killed['case'] and row['round'] == 2] == ['done']  # an accident: tried again


def test_a_missing_package_leaves_a_row(models, tmp_path):
    "One that claims to be there and is not: found out by the trial alone, and not tried again."
    (tmp_path / 'whisper').mkdir()
    (tmp_path / 'whisper' / '__init__.py').write_text('raise ModuleNotFoundError("No module named \'triton\'", name="triton")\n')
    asked = SMALL | dict(models=str(models[0].path), backends='faster-whisper,openai-whisper', repeats=2)
    code = f'from whisper_nb.bench import benchmark; benchmark(**{asked!r})'
    subprocess.run([sys.executable, '-c', code], check=True, env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])})
    trials = of(rows_of('outputs'), 'trial')
    assert sorted((row['backend'], row['status']) for row in trials) == [('faster-whisper', 'done')] * 2 + [('openai-whisper', 'missing')]
    missing = next(row for row in trials if row['status'] == 'missing')
    assert 'triton' in missing['problem'] and missing['advice']


def test_a_library_that_cannot_be_imported_is_as_good_as_missing(models, sounds, tmp_path, monkeypatch):
    "It is there, but not what it needs in the version it needs."
    (tmp_path / 'whisper').mkdir()
    (tmp_path / 'whisper' / '__init__.py').write_text('raise ImportError("numpy is too new\\n for this")\n')
    monkeypatch.syspath_prepend(tmp_path)
    work, found = sounds
    *heard, trial = run_trial(case_of(models, 'openai-whisper'), 1, found, work, 2)
    assert (trial['status'], trial['problem'], heard) == ('missing', 'openai-whisper cannot be imported: numpy is too new for this', []) and 'pip install' in trial['advice']


def test_a_broken_model_leaves_a_row_without_the_paths_of_this_machine(run, models, tmp_path):
    shutil.copytree(next(each.path for each in models if each.format == 'ctranslate2'), 'models/broken')
    os.truncate('models/broken/model.bin', 100_000)
    trial = of(run(models='models/broken'), 'trial')[0]
    assert trial['status'] == 'failed' and trial['advice'].endswith('whisper-nb verify models/broken'), trial
    text = Path('outputs/bench/run/rows.jsonl').read_text()
    assert not [path for path in (tmp_path, sys.prefix, Path.home()) if str(path) in text]


def test_an_unsupported_type_leaves_a_row(run):
    lacking = next(each for each in QUANTIZATIONS if each not in BACKENDS['faster-whisper'].devices()['cpu'])
    trials = of(run(backends='faster-whisper', compute_types=f'{lacking},float32'), 'trial')
    assert [(row['asked'], row['status'], row['round']) for row in trials] == [(lacking, 'unsupported', None), ('float32', 'done', 1)]
    assert lacking in trials[0]['problem'] and 'float32' in trials[0]['advice']


@pytest.mark.skipif('cuda' in BACKENDS['faster-whisper'].devices(), reason='there is a GPU')
def test_without_a_gpu_the_cpu_is_measured(run):
    rows = run(backends='faster-whisper', devices='cuda')
    assert [(row['device'], row['status']) for row in of(rows, 'trial')] == [('cuda', 'unsupported'), ('cpu', 'done')]
    assert rows[0]['no_gpu'] and rows[0]['no_gpu'] in of(rows, 'trial')[0]['problem']


DRIVER = """
#include <stdio.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int place) { *device = place; return 0; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Simulated"); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 80000000000; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 8; return 0; }
int cuDeviceGetPCIBusId(char *address, int length, int device) { snprintf(address, length, "0000:01:00.0"); return 0; }
"""


@pytest.mark.skipif(sys.platform != 'linux' or not shutil.which('cc') or 'cuda' in BACKENDS['transformers'].devices(), reason='makes a driver of its own, and torch must not be able to use it')
def test_a_gpu_that_a_library_cannot_use_leaves_rows(models, tmp_path):
    "Nobody asked for a GPU by name, and it is said all the same why it is not measured."
    (tmp_path / 'driver.c').write_text(DRIVER)
    subprocess.run(['cc', '-shared', '-fPIC', '-o', 'libcuda.so.1', 'driver.c'], check=True)
    code = f'import json; from whisper_nb.cases import plan, prepare_models; cases, refusals = plan(prepare_models({str(models[0].path)!r})); print(json.dumps([[each.device for each in cases], refusals]))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'LD_LIBRARY_PATH': str(tmp_path)})
    devices, refused = json.loads(done.stdout.splitlines()[-1])
    assert set(devices) == {'cpu'} and {(row['backend'], row['device'], row['asked']) for row in refused} == {(name, 'cuda', None) for name in BACKENDS}, done.stderr
    assert all("cannot use the device 'cuda' here: " in row['problem'] and 'torch is a build for the CPU' in row['problem'] for row in refused if row['backend'] != 'faster-whisper')


@contextmanager
def little_memory(bytes):
    "No trial that is started meanwhile may have more memory than this to itself."
    done = threading.Event()

    def limit():
        while not done.wait(0.05):
            for child in children():
                with suppress(psutil.Error): child.rlimit(psutil.RLIMIT_DATA, (bytes, bytes))

    thread = threading.Thread(target=limit)
    thread.start()
    try: yield
    finally:
        done.set()
        thread.join()


LINUX = pytest.mark.skipif(sys.platform != 'linux', reason='other systems do not refuse memory')


@LINUX
def test_too_little_memory_leaves_a_row(run):
    "Where faster-whisper fits and torch does not: the one is measured, and the other is not tried again."
    with little_memory(420_000_000): trials = of(run(backends='faster-whisper,transformers', repeats=2, threads=2), 'trial')
    assert sorted((row['backend'], row['status']) for row in trials) == [('faster-whisper', 'done')] * 2 + [('transformers', 'out of memory')]
    refused = next(row for row in trials if row['backend'] == 'transformers')
    assert 'memory' in refused['problem'] and refused['advice'] and refused['peak_memory'] is None


@LINUX
def test_too_little_memory_for_a_batch(models, tmp_path):
    "What was heard before it was refused are rows."
    found = read_recordings(count=1, long_seconds=600)
    sounds = write_sounds([each for each in found if each.set != 'wordless'], tmp_path)
    *heard, trial = run_trial(case_of(models, 'faster-whisper', batch_sizes='64'), 2, sounds, tmp_path, 2, memory=400_000_000)
    assert trial['status'] == 'out of memory' and 'memory' in trial['problem'] and trial['load_seconds'] and trial['peak_memory'] is None
    assert [row['text'] for row in heard] == [SPOKEN]


@LINUX
@pytest.mark.parametrize('backend, room', [('faster-whisper', 80_000_000), ('faster-whisper', 220_000_000), ('openai-whisper', 120_000_000), ('openai-whisper', 280_000_000), ('transformers', 420_000_000)])
def test_too_little_memory_to_begin_with(models, sounds, backend, room):
    "Too little to import the library, to load the model or to start: whichever library gives up, in whatever way."
    work, found = sounds
    *heard, trial = run_trial(case_of(models, backend), 2, found, work, 2, memory=room)
    assert trial['status'] == 'out of memory' and 'memory' in trial['problem'] and 'unexpected' not in trial['problem'] and trial['advice'] and not heard, trial


def test_too_little_time(run):
    "The two lines say how much it was; not tried in the next round."
    rows = run(backends='faster-whisper', beam_sizes='1,2', repeats=2, timeout=0.05) # less than Python takes to start
    trials = of(rows, 'trial')
    assert [row['status'] for row in trials] == ['timed out'] * 2 and '--timeout' in trials[0]['advice'] and trials[0]['problem'] == 'loading took longer than 0.05 s and was stopped'


def test_the_time_is_that_of_one_recording(models, sounds):
    "One that never ends, after others that did."
    work, found = sounds
    rows = run_trial(case_of(models, 'faster-whisper'), 2, found * 100, work, 2, timeout=6)
    assert next(rows)['text'] == SPOKEN
    children()[0].suspend()
    *_, trial = rows
    assert (trial['status'], trial['problem']) == ('timed out', 'one recording took longer than 6 s and was stopped') and trial['wall_seconds'] > 6 and not children()


# ---- it is stopped

BENCH = f'from whisper_nb.bench import benchmark; benchmark(**{SMALL | dict(models="{model}", repeats=50, beam_sizes="1,2")!r})'


@pytest.fixture
def started(models):
    "A long benchmark in a process of its own, stopped at the latest when the test ends."
    code = BENCH.replace('{model}', str(models[1].path))
    process = subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c)
    yield process
    process.kill()
    process.wait()
    process.stderr.close()


def file_rows():
    "What is in the file so far; the last line may be in the making."
    file = Path('outputs/bench/run/rows.jsonl')
    return [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith('\n')] if file.exists() else []


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGKILL])
def test_stopped_it_leaves_rows_and_no_process(started, how):
    "By Ctrl-C, and by a signal that nobody can answer."
    wait_for(lambda: len(of(file_rows(), 'trial')) >= 1)
    offspring = wait_for(lambda: psutil.Process(started.pid).children(recursive=True))
    started.send_signal(how)
    assert started.wait(30) != 0
    gone, alive = psutil.wait_procs(offspring, 10)
    assert not alive
    rows = file_rows()
    assert rows[0]['step'] == 'machine' and of(rows, 'trial')[0]['status'] == 'done' and of(rows, 'heard'), rows[-1]
    if how == signal.SIGINT:
        assert 'whisper-nb bench-report outputs/bench/run/rows.jsonl' in started.stderr.read()
    else:
        assert Path('outputs/bench/run/.work').is_dir()
        remove_work('outputs/bench/run')
    assert not Path('outputs/bench/run/.work').exists()


def test_two_at_once_come_one_after_the_other(run, caplog):
    "The second one says that it waits, and writes nothing before it is its turn; then it removes what a killed one left."
    left = Path('outputs/bench/killed/.work')
    left.mkdir(parents=True)
    with locked(Path('outputs') / 'bench'):
        second = threading.Thread(target=run, kwargs=dict(backends='faster-whisper'))
        second.start()
        wait_for(lambda: 'waiting for another run' in caplog.text)
        assert left.is_dir() and not Path('outputs/bench/run').exists()
    second.join()
    assert [row['status'] for row in of(rows_of('outputs'), 'trial')] == ['done'] and not left.exists()
