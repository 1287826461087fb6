"The offline test: really cut off, and it fails when it should, saying why."
import fcntl
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest

from checkpoints import make_checkpoint, seal

from whisper_nb import files, offline
from whisper_nb.audio import Clip, clips, default_clip
from whisper_nb.backends import large_pages
from whisper_nb.convert import convert
from whisper_nb.errors import CheckError, RequestError, StepError
from whisper_nb.files import human_bytes
from whisper_nb.models import DEMO_DIR
from whisper_nb.offline import GUARDS, Guard, copy_elsewhere, memory_needed, offline_test, pick_backend, pick_guard

HOOK_ONLY = Guard('')
SYSTEM_GUARDS = [guard for guard in GUARDS if guard.works()]


@pytest.fixture
def server():
    "A server on this machine; `.seen` counts who came."
    class Server:
        seen = 0
        def __init__(self):
            self.socket = socket.create_server(('127.0.0.1', 0))
            self.port = self.socket.getsockname()[1]
            threading.Thread(target=self.run, daemon=True).start()
        def run(self):
            while True:
                try: connection, _ = self.socket.accept()
                except OSError: return
                self.seen += 1
                connection.close()
    server = Server()
    yield server
    server.socket.close()


def run_child(home, code, guard, *arguments):
    "Run code in a child that starts as the offline test's does; its output and its exit status."
    command = [*guard.command, sys.executable, '-I', '-c', offline._DENY + guard.code + code, *map(str, arguments)]
    with offline._child_process(command, home, 120) as child: output = child.stdout.read(); status = child.wait()
    return output, status


# ---- it is cut off

WAYS = {
    'socket': 'import socket; socket.create_connection(("127.0.0.1", port), 5)',
    'urllib': 'import urllib.request; urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)',
    'httpx': 'sys.path[:] = search; import httpx; httpx.get(f"http://127.0.0.1:{port}/")',
    'datagram': 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))',
    'name': 'import socket; socket.gethostbyname("localhost")',
    'asyncio': 'import asyncio; asyncio.run(asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 5))',
}
PAST_PYTHON = 'import ctypes, struct; c = ctypes.CDLL(None); s = c.socket(2, 1, 0); assert s >= 0 and not c.connect(s, struct.pack("=H", 2) + struct.pack(">H4s8x", port, bytes([127, 0, 0, 1])), 16), "refused"'
HEAD = 'import json; port, search = int(sys.argv[1]), json.loads(sys.argv[2])\ntry:\n    {way}\n    print("went out")\nexcept Exception as error: print("stopped", type(error).__name__, error)\n'


@pytest.mark.parametrize('way', WAYS)
def test_python_cannot_go_out(tmp_path, server, way):
    output, _ = run_child(tmp_path, HEAD.format(way=WAYS[way]), HOOK_ONLY, server.port, json.dumps(sys.path))
    assert output.startswith('stopped') and 'denied in the offline test' in output and server.seen == 0


@pytest.mark.parametrize('guard', SYSTEM_GUARDS, ids=lambda guard: ' '.join([guard.name, *guard.command[1:-1]]))
def test_nothing_can_go_out(tmp_path, server, guard):
    output, _ = run_child(tmp_path, HEAD.format(way=PAST_PYTHON), guard, server.port, '[]')
    assert 'refused' in output and server.seen == 0


def test_a_program_of_another_kind_cannot_go_out(tmp_path, server):
    way = 'import subprocess; subprocess.run(["bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{port}"], check=True, capture_output=True)'
    if pick_guard() == HOOK_ONLY: pytest.skip('no system guard here')
    output, _ = run_child(tmp_path, HEAD.format(way=way), pick_guard(), server.port, '[]')
    assert output.startswith('stopped CalledProcessError') and server.seen == 0


def test_the_server_would_have_been_reached(tmp_path, server):
    output, _ = run_child(tmp_path, HEAD.format(way=PAST_PYTHON), HOOK_ONLY, server.port, '[]')
    assert 'went out' in output  # the hook alone does not see the C library: that is what the system guards are for


def test_linux_has_a_system_guard():
    if sys.platform == 'linux': assert SYSTEM_GUARDS


def test_a_guard_that_does_not_hold_is_found_out(tiny, monkeypatch):
    monkeypatch.setattr(offline, 'pick_guard', lambda: Guard('paper wall'))
    with pytest.raises(StepError, match='could not be denied'): offline_test(tiny['faster-whisper'])


def test_secrets_and_caches_stay_outside(tmp_path, monkeypatch):
    for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HTTPS_PROXY', 'http_proxy', 'HF_ENDPOINT', 'PYTHONPATH', 'AWS_SECRET_ACCESS_KEY', 'HF_HUB_CACHE'): monkeypatch.setenv(name, 'x')
    output, _ = run_child(tmp_path, 'import os, json; print(json.dumps(dict(os.environ)))', HOOK_ONLY)
    found = json.loads(output)
    assert 'x' not in found.values()
    assert {found[name] for name in ('HOME', 'HF_HOME', 'XDG_CACHE_HOME')} == {str(tmp_path)} and found['HF_HUB_OFFLINE'] == '1'


def test_large_pages_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.arena_max=3')
    output, _ = run_child(tmp_path, 'import os, json; print(json.dumps(dict(os.environ)))', HOOK_ONLY)
    expected = large_pages(os.environ) or {'GLIBC_TUNABLES': 'glibc.malloc.arena_max=3'}
    assert expected.items() <= json.loads(output).items() and expected['GLIBC_TUNABLES'].startswith('glibc.malloc.arena_max=3')


# ---- it passes and it fails

@pytest.mark.parametrize('backend', ['faster-whisper', 'transformers'])
def test_both_backends(tiny, backend):
    before = {path.name for path in tiny[backend].parent.iterdir()} - {'.staging'}
    result = offline_test(tiny[backend])
    assert (result.model, result.backend, result.compute_type, result.attempts) == (tiny[backend].name, backend, 'float32', ())
    assert result.denied_by == ('audit hook', pick_guard().name) and not result.must_match and result.expected == default_clip().text
    assert 0 < result.peak_memory < memory_needed(tiny[backend], pick_backend(tiny[backend])) and result.load_seconds > 0 and result.rtfx > 0
    assert {path.name for path in tiny[backend].parent.iterdir()} == before


def test_a_relative_path_and_a_compute_type(tiny, monkeypatch):
    monkeypatch.chdir(tiny['faster-whisper'].parent)
    assert offline_test(Path(tiny['faster-whisper'].name), compute_type='int8').compute_type.startswith('int8')


@pytest.mark.parametrize('guard', SYSTEM_GUARDS[-1:])
def test_it_works_under_the_last_guard_too(tiny, guard, monkeypatch):
    monkeypatch.setattr(offline, 'pick_guard', lambda: guard)
    assert offline_test(tiny['faster-whisper']).denied_by == ('audit hook', guard.name)


def test_wrong_words_are_a_failure_of_the_demo(copied):
    path = copied('faster-whisper')
    seal(path, kind='demo', name='demo')
    result = offline_test(path)
    assert not result.ok and f"the clip says '{default_clip().text}'" in result.problem and '❌' in repr(result)
    with pytest.raises(CheckError, match='the clip says'): result.require()


@pytest.mark.parametrize('backend, name', [('faster-whisper', 'tokenizer.json'), ('faster-whisper', 'preprocessor_config.json'), ('transformers', 'tokenizer.json')])
def test_a_missing_file_fails_at_once(copied, backend, name):
    path, start = copied(backend), monotonic()
    (path/name).unlink()
    with pytest.raises(CheckError) as caught: offline_test(path)
    assert f"'{path.name}' lacks {name}" in caught.value.what and str(path) in caught.value.advice and '.staging' not in caught.value.advice
    assert monotonic() - start < 20


REACH = """
import json
sys.path[:] = json.loads(sys.argv[1])
from faster_whisper import WhisperModel
try: WhisperModel(sys.argv[2])
except Exception as error: print('stopped by', type(error).__name__)
"""


def test_a_library_that_reaches_for_the_hub_is_stopped_at_once(copied, tmp_path):
    path, start = copied('faster-whisper'), monotonic()
    (path/'tokenizer.json').unlink()  # faster-whisper, left alone, now asks the Hub for another model's tokenizer
    output, _ = run_child(tmp_path, REACH, pick_guard(), json.dumps(sys.path), path)
    assert output.startswith('stopped by') and monotonic() - start < 20


def test_a_try_to_use_the_network_fails_the_test(tiny):
    result = replace(offline_test(tiny['faster-whisper']), attempts=("socket.connect ('192.0.2.1', 443)",))
    assert not result.ok and '192.0.2.1' in result.problem


def test_a_damaged_model_is_reported_under_its_own_path(copied):
    path = copied('transformers')
    with open(path/'model.safetensors', 'r+b') as file: file.truncate(2000)
    with pytest.raises(CheckError) as caught: offline_test(path)
    assert '.staging' not in caught.value.what + caught.value.advice


@pytest.mark.parametrize('path', ['nowhere', 'openai/whisper-tiny'])
def test_no_directory(path):
    with pytest.raises(RequestError, match='is not a directory'): offline_test(path)


def test_silence_may_stay_silent(tiny):
    silence = next(clip for clip in clips() if not clip.text)
    result = offline_test(tiny['faster-whisper'], clip=silence)
    assert result.ok and result.expected == ''


def test_a_recording_of_ones_own(tiny):
    result = offline_test(tiny['faster-whisper'], clip=Clip(default_clip().path, None))
    assert result.expected is None and 'spoken' not in repr(result)


# ---- it says what happened

def test_short_memory_is_said_before_anything_starts(tiny, monkeypatch):
    monkeypatch.setattr(offline.subprocess, 'Popen', lambda *_, **__: pytest.fail('started a child'))
    with pytest.raises(StepError, match='needs about .* of memory, 10 MB are available') as caught: offline_test(tiny['faster-whisper'], memory=10_000_000)
    assert 'quantization' in caught.value.advice


@pytest.mark.parametrize('code, what', [
    ('import os; os.kill(os.getpid(), 9)', 'killed by the system .SIGKILL., most likely because memory ran out'),
    ('import os; os.abort()', 'ended by SIGABRT'),
    ('import sys; sys.stderr.write("the library is broken\\n"); sys.exit(7)', 'ended with exit status 7.*the library is broken'),
])
def test_a_child_that_dies_is_explained(tiny, monkeypatch, code, what):
    monkeypatch.setattr(offline, 'pick_guard', lambda: Guard('', code=f'\n{code}\n'))
    with pytest.raises(StepError, match=what): offline_test(tiny['faster-whisper'])
    assert not list(tiny['faster-whisper'].parent.glob('.staging'))


def test_a_child_that_takes_too_long_is_stopped(tiny, monkeypatch):
    monkeypatch.setattr(offline, 'pick_guard', lambda: Guard('', code='\nimport time; time.sleep(60)\n'))
    start = monotonic()
    with pytest.raises(StepError, match='took longer than 1 s'): offline_test(tiny['faster-whisper'], timeout=1)
    assert monotonic() - start < 20


def test_another_thread_can_end_it(tiny, monkeypatch, capfd):
    monkeypatch.setattr(offline, 'pick_guard', lambda: Guard('', code='\nimport time; time.sleep(60)\n'))
    stop, start = threading.Event(), monotonic()
    threading.Timer(1, stop.set).start()
    with pytest.raises(StepError, match='was stopped'): offline_test(tiny['faster-whisper'], stop=stop)
    assert monotonic() - start < 20 and not list(tiny['faster-whisper'].parent.glob('.staging'))
    assert 'Traceback' not in capfd.readouterr().err


SHORT = """
import resource
with open('/proc/self/statm') as file: used = int(file.read().split()[0])*resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000,)*2)
"""


@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='limits the address space as Linux counts it')
@pytest.mark.parametrize('backend', ['faster-whisper', 'transformers'])
def test_memory_that_runs_out_in_the_child_is_explained(tiny, monkeypatch, backend):
    "Enough for the child's own imports, too little for the first library of the backend: with more, torch's import may spin for ever."
    monkeypatch.setattr(offline, 'pick_guard', lambda: Guard('', code=SHORT))
    start = monotonic()
    with pytest.raises((StepError, CheckError), match='not enough memory') as caught: offline_test(tiny[backend], timeout=60)
    assert '\n' not in caught.value.what and caught.value.advice and monotonic() - start < 20


# ---- the copy

def test_the_copy_is_made_of_hard_links_and_goes_away(copied):
    path = copied('transformers')
    with pytest.raises(KeyError), copy_elsewhere(path) as copy:
        assert copy.name == path.name and copy.parent.parent == path.parent/'.staging' and os.path.samefile(copy/'config.json', path/'config.json')
        raise KeyError
    assert os.listdir(path.parent) == [path.name]


def test_leftovers_go_and_live_copies_stay(copied):
    path = copied('transformers')
    staging = path.parent/'.staging'
    dead, live, other = (staging/name for name in ('offline-tiny-dead', 'offline-tiny-live', 'something-else'))
    for directory in (dead, live, other): (directory/'tiny').mkdir(parents=True)
    descriptor = os.open(live, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with copy_elsewhere(path): pass
    os.close(descriptor)
    assert sorted(os.listdir(staging)) == ['offline-tiny-live', 'something-else']


def test_two_at_once(copied):
    path = copied('transformers')
    with copy_elsewhere(path) as one, copy_elsewhere(path) as other: assert one != other and (one/'config.json').is_file()
    assert os.listdir(path.parent) == [path.name]


def test_beside_a_model_that_may_not_be_written(copied, monkeypatch):
    path = copied('transformers')
    monkeypatch.setattr(offline.os, 'access', lambda *_: False)
    with copy_elsewhere(path) as copy: assert copy.is_relative_to(tempfile.gettempdir()) and (copy/'config.json').read_bytes() == (path/'config.json').read_bytes()
    assert os.listdir(path.parent) == [path.name] and not copy.exists()


def no_links(*_): raise OSError('this file system has no hard links')


def test_without_hard_links_it_is_a_real_copy(copied, monkeypatch):
    path = copied('transformers')
    monkeypatch.setattr(os, 'link', no_links)
    with copy_elsewhere(path) as copy: assert not os.path.samefile(copy/'config.json', path/'config.json')
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize('writable', [True, False])
def test_a_full_disk_is_said_before_the_copy(copied, monkeypatch, writable):
    path = copied('transformers')
    size = sum(file.stat().st_size for file in path.iterdir())
    monkeypatch.setattr(os, 'link', no_links)
    monkeypatch.setattr(offline.os, 'access', lambda *_: writable)
    monkeypatch.setattr(files, 'free_bytes', lambda _: 1000)
    monkeypatch.setattr(offline, 'link_or_copy_tree', lambda *_: pytest.fail('started to copy'))
    with pytest.raises(StepError) as caught: offline_test(path)
    assert caught.value.what == f'the copy for the offline test needs {human_bytes(size)} on the disk, 1 kB are free'
    assert os.listdir(path.parent) == [path.name]


def test_hard_links_need_no_space(copied, monkeypatch):
    monkeypatch.setattr(files, 'free_bytes', lambda _: 0)
    with copy_elsewhere(copied('transformers')) as copy: assert (copy/'config.json').is_file()


# ---- the demo model's words

@pytest.mark.parametrize('quantization', [None, 'float16', 'int8'])
def test_the_demo_hears_the_clip(tmp_path, quantization):
    path = shutil.copytree(DEMO_DIR, tmp_path/'demo')
    seal(path, kind='demo', name='demo')
    result = offline_test(convert(path, quantization).path if quantization else path)
    assert result.ok and result.must_match and result.text == default_clip().text
