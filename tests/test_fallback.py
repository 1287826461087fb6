"Too little memory: going on with less, said aloud; for real, in child processes that may not have more."
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from whisper_nb.audio import clips, load_audio
from whisper_nb.convert import convert
from whisper_nb.fallback import Try, next_try, tries
from whisper_nb.models import DEMO_DIR
from whisper_nb.standin import write_standin

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='only Linux refuses memory as it is asked to')

CUDA = dict(cpu=('float32', 'int16', 'int8_float32', 'int8'), cuda=('float32', 'float16', 'bfloat16', 'int8_float32', 'int8_float16', 'int8_bfloat16', 'int8'))

START = '''
import resource, sys, warnings
from whisper_nb.audio import clips, default_clip, load_audio
from whisper_nb.backends import load
from whisper_nb.fallback import ModelWithFallback, keep_to_memory
from whisper_nb.memory import limit_memory

path = sys.argv[1]
warnings.showwarning = lambda message, *place: print(message)

def room(megabytes):
    "Let this process have so much more than it has."
    keep_to_memory(megabytes*1_000_000)
'''


def child(program, *words):
    return subprocess.run([sys.executable, '-c', START + program, *map(str, words)], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    source = shutil.copytree(DEMO_DIR, tmp_path_factory.mktemp('models')/'demo')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQDM_DISABLE', '1')
        return convert(source, 'float16').path


@pytest.fixture(scope='module')
def larger(tmp_path_factory):
    "A model of 74 million parameters that says the same of everything."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQDM_DISABLE', '1')
        return convert(write_standin('base.en', tmp_path_factory.mktemp('larger')).path, 'int8').path


@pytest.fixture(scope='module')
def speech(tmp_path_factory):
    "Six minutes in which somebody speaks nearly all the time."
    pause = np.zeros(6_400, np.float32)
    parts = [part for clip in clips() if clip.condition == 'clean' for part in (load_audio(clip.path), pause)]
    path = tmp_path_factory.mktemp('audio')/'speech.wav'
    soundfile.write(path, np.resize(np.concatenate(parts), 6*60*16_000), 16_000)
    return path


# ---- the order

def test_every_way_of_a_gpu():
    found = [(each.device, each.compute_type, each.batch_size) for each in tries(Try('cuda', 'float16', 6), CUDA, Try('cpu', 'float32', 6))]
    assert found == [('cuda', 'float16', 6), ('cuda', 'float16', 3), ('cuda', 'float16', 1), ('cuda', 'int8_float16', 1), ('cpu', 'float32', 6), ('cpu', 'float32', 3), ('cpu', 'float32', 1),
        ('cpu', 'int16', 1), ('cpu', 'int8_float32', 1)]


def test_a_model_that_does_not_load_keeps_its_batch():
    assert next_try(Try('cuda', 'int8_float16', 8), CUDA, Try('cpu', 'int8_float32', 8), loaded=False) == Try('cpu', 'int8_float32', 8)
    assert next_try(Try('cuda', 'float32', 8), CUDA, Try('cpu', 'float32', 8), loaded=False) == Try('cuda', 'float16', 8)


def test_what_is_said():
    first = Try('cuda', 'float16', 2)
    assert Try('cuda', 'float16', 1).after(first) == 'not enough memory for batch size 2 on cuda: going on with batch size 1 from here on, window after window: words may differ'
    assert Try('cuda', 'float16', 2).after(Try('cuda', 'float16', 4)) == 'not enough memory for batch size 4 on cuda: going on with batch size 2 from here on'
    assert Try('cpu', 'int8', 2).after(first) == 'not enough memory on cuda: going on with cpu, in int8, from here on'
    assert Try('cuda', 'int8', 2).after(first) == 'not enough memory for float16 on cuda: going on with int8 from here on'


def test_no_type_that_the_device_lacks():
    for compute_type in CUDA['cuda']:
        for each in tries(Try('cuda', compute_type, 4), dict(cuda=('float32', 'float16')), Try('cpu', 'float32', 4)): assert each.device == 'cuda' and each.compute_type in (compute_type, 'float16')


# ---- for real

def test_the_batch_becomes_smaller_down_to_one(larger):
    "Two windows of a model that needs some 85 MB for each."
    done = child('''
import numpy as np
model = ModelWithFallback(path, device='cpu', threads=1, batch_size=4)
before = model.model
model.transcribe(default_clip().path, beam_size=1)
room(150)
text = model.transcribe(np.resize(load_audio(default_clip().path), 60*16_000), beam_size=1).text
print(model.model is before, model.running.batch_size, len(model.running.fallbacks), text)
''', larger)
    *warned, last = done.stdout.splitlines()
    assert (done.returncode, last) == (0, 'True 1 2 ' + ' '.join(['random weights hear nothing']*2)), done
    assert [line.split('going on with ')[1] for line in warned] == ['batch size 2 from here on', 'batch size 1 from here on, window after window: words may differ']


def test_a_model_that_does_not_fit_is_loaded_in_a_smaller_type(demo, larger):
    done = child('''
load(sys.argv[2], device='cpu', threads=1)
room(200)
model = ModelWithFallback(path, device='cpu', compute_type='float32', threads=1)
limit_memory(sys.maxsize)
print(model.model.compute_type, model.transcribe(default_clip().path, beam_size=1).text)
''', larger, demo)
    assert (done.returncode, done.stdout) == (0, 'not enough memory for float32 on cpu: going on with int8_float32 from here on\nint8_float32 random weights hear nothing\n'), done


COMMAND = '''
from whisper_nb.cli import main
load(path, device='cpu', threads=1).transcribe(default_clip().path, language='en', batch_size=2)
room(int(sys.argv[3]))
main(['transcribe', *sys.argv[4:], sys.argv[2], '--model', path, '--language', 'en', '--device', 'cpu', '--threads', '1', '--beam-size', '1', '--batch-size', '64'])
'''


def test_the_command_says_what_it_gave_up(demo, speech):
    done = child(COMMAND, demo, speech, 450, '--json')
    lines, row = [line.removeprefix('⚠️ ') for line in done.stderr.splitlines() if line.startswith('⚠️ ')], json.loads(done.stdout)[0]
    assert done.returncode == 0 and len(row['text'].split()) > 100 and lines[0] == 'not enough memory for batch size 64 on cpu: going on with batch size 32 from here on', done
    assert row['fallbacks'] == lines and (row['backend'], row['device'], row['compute_type'], row['batch_size']) == ('faster-whisper', 'cpu', 'float32', 64 >> len(lines))


def test_without_fallback(demo, speech):
    done = child(COMMAND, demo, speech, 450, '--no-fallback')
    what, advice = done.stderr.splitlines()[-2:]  # a slow machine shows a bar before
    assert (done.returncode, done.stdout) == (1, '') and what.startswith('❌ not enough memory') and advice.startswith('→ '), done


def test_the_command_has_itself_refused_what_the_machine_has_not(demo):
    done = child('''
import psutil
from whisper_nb.cli import _fallbacks_told, main
from whisper_nb.fallback import FallbackWarning, Try

start = resource.getrlimit(resource.RLIMIT_DATA)[0]

def limit(*words):
    try: main(['transcribe', *words, str(default_clip().path), '--model', path, '--language', 'en', '--device', 'cpu', '--threads', '1', '--beam-size', '1'])
    except SystemExit as end: assert not end.code
    return now()

def now(): return resource.getrlimit(resource.RLIMIT_DATA)[0]

most = psutil.virtual_memory().total + psutil.swap_memory().total + 10**9
assert limit('--no-fallback') == start
assert 10**8 < limit() < most
limit_memory(sys.maxsize)
with _fallbacks_told(): warnings.warn(FallbackWarning(Try('cuda', 'float16', 1), Try('cpu', 'float32', 1)))  # as when a GPU turned out too small
assert 10**8 < now() < most
keep_to_memory(500_000_000)
low = now()
print(limit() == low < 10**10)
''', demo)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, 'True'), done
