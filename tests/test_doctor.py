"What `doctor` says on machines with something wrong: real conditions, made for the time of a test."
import inspect
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path

import pytest

from conftest import COMMAND, PROJECT
from servers import answering
from test_gpu import DRIVER

from whisper_nb import doctor as module
from whisper_nb import installation
from whisper_nb.diagnosis import CHAPTERS, Diagnosis, Finding
from whisper_nb.doctor import doctor
from whisper_nb.errors import RequestError
from whisper_nb.models import DEMO_DIR
from whisper_nb.runs import notebook_parameters

NOWHERE = 'http://127.0.0.1:9'  # Nobody listens there
NOTEBOOK = PROJECT / 'nbs' / 'runs' / 'doctor.ipynb'


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    "No test asks another machine."
    monkeypatch.setenv('HF_ENDPOINT', NOWHERE)
    for name in ('LD_LIBRARY_PATH', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'TRANSFORMERS_OFFLINE', *module._PROXIES): monkeypatch.delenv(name, raising=False)


def answer(done):
    "Exit code, findings as (topic, ok, what, fix), all of it as text."
    assert 'Traceback' not in done.stdout + done.stderr, done.stderr
    found = json.loads(done.stdout)
    assert found['ready'] == (done.returncode == 0), done.stderr
    assert all(each['topic'] in sum(CHAPTERS.values(), ()) and '\n' not in each['what'] + each['fix'] for each in found['findings'])
    assert all(each['fix'] for each in found['findings'] if each['ok'] is False)
    return done.returncode, [(each['topic'], each['ok'], each['what'], each['fix']) for each in found['findings']], done.stdout + done.stderr


def about(findings, topic, words=''):
    "The findings on a topic in which these words stand."
    return [each for each in findings if each[0] == topic and words in each[2]]


def asked(model=None, **other): return module._asked(**dict(model=model, device='auto', backend=None, models_dir='models', outputs_dir='outputs') | other)


@contextmanager
def silence():
    "A server that takes connections and never answers."
    with socket.create_server(('127.0.0.1', 0)) as listener: yield f'http://127.0.0.1:{listener.getsockname()[1]}'


# ---- the command

def test_parameters_are_defined_once(whisper_nb):
    "Python, command line and notebook: same names, same defaults."
    import papermill
    python = {name: each.default for name, each in inspect.signature(doctor).parameters.items()}
    notebook = {name: eval(entry['default']) for name, entry in papermill.inspect_notebook(str(NOTEBOOK)).items()}
    assert list(notebook_parameters(NOTEBOOK)) == list(python) and notebook == python
    text = whisper_nb('doctor', '--help').stdout
    assert all(f"--{name.replace('_', '-')}" in text for name in python if name != 'model')


def test_a_ready_machine_soon(whisper_nb):
    "Nothing is wrong, nothing is written, and it does not take long."
    start = time.monotonic()
    code, findings, _ = answer(whisper_nb('doctor', '--json'))
    assert code == 0 and time.monotonic() - start < 15, findings  # two seconds where nothing else runs
    assert {each[0] for each in findings} >= {'Python', 'system', 'CPU', 'memory', 'libraries', 'extras', 'GPU', 'disk', 'caches', 'audio', 'Hub'}
    assert about(findings, 'Hub')[0][1] is None and 'not needed for a prepared model' in about(findings, 'Hub')[0][2]
    assert [path.name for path in Path().iterdir()] == []


def test_wrong_requests():
    for wrong in (dict(model='larg-v3'), dict(device='tpu'), dict(backend='whisper.cpp'), dict(url='ftp://host/models'), dict(url='s3://key:secret@bucket/x'), dict(model=str(DEMO_DIR), backend='faster-whisper')):
        with pytest.raises(RequestError) as caught: doctor(**wrong)
        assert 'secret' not in caught.value.what


def test_the_checklist(whisper_nb):
    "The notebook, as a team runs it: a page with every finding and room for names."
    done = whisper_nb('run', NOTEBOOK)
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.strip()).with_suffix('.html').read_text()
    assert all(f'>{chapter}' in page for chapter in CHAPTERS) and 'Released by' in page and 'signature' in page
    assert 'PyAV decodes a recording' in page


# ---- what is installed

def fake(folder, package, version='', code=None):
    "A package of another version, or with other code, before the one that is installed."
    if version:
        (folder / f'{package}-{version}.dist-info').mkdir(parents=True)
        (folder / f'{package}-{version}.dist-info' / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n')
    if code is not None:
        (folder / package).mkdir(parents=True)
        (folder / package / '__init__.py').write_text(code)


def test_many_things_wrong_at_once(whisper_nb, tmp_path):
    "A version that is not taken, a library that crashes, one that lacks another, a cache that is none, folders that are gone, and secrets."
    site = tmp_path / 'site'
    fake(site, 'tokenizers', '0.1')
    fake(site, 'safetensors', code='raise ImportError("libmissing.so.1: cannot open shared object file")')
    fake(site, 'ctranslate2', code='import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)')
    (tmp_path / 'file').touch()
    code, findings, text = answer(whisper_nb('doctor', '--json', PYTHONPATH=str(site), HF_HOME=str(tmp_path / 'file' / 'hub'), TMPDIR=str(tmp_path / 'file'), LD_LIBRARY_PATH='/nowhere/cuda/lib64',
        OMP_NUM_THREADS='97', HTTPS_PROXY='http://user:p4ss/w0rd@127.0.0.1:9/x?t0ken', http_proxy='user:p4ss@127.0.0.1:9', HF_ENDPOINT='http://user:p4ss/w0rd@127.0.0.1:9', NO_PROXY='127.0.0.1'))
    assert code == 1
    versions, = about(findings, 'libraries', 'tokenizers 0.1 is installed')
    assert versions[1] is False and 'transformers needs' in versions[2] and 'faster-whisper needs' in versions[2] and 'pip install' in versions[3]
    crash, = about(findings, 'libraries', 'SIGSEGV')
    assert crash[1] is False and 'ctranslate2' in crash[2]
    assert about(findings, 'libraries', 'libmissing.so.1')[0][1] is False
    assert about(findings, 'caches', 'the cache of the Hub')[0][1] is None and about(findings, 'caches', 'TMPDIR')[0][1] is None
    assert '/nowhere/cuda/lib64' in about(findings, 'variables', 'LD_LIBRARY_PATH')[0][2]
    assert about(findings, 'CPU', "OMP_NUM_THREADS is '97'")
    assert 'http://127.0.0.1:9' in about(findings, 'variables', 'HTTPS_PROXY')[0][2] and about(findings, 'Hub')[0][1] is None
    assert not any(secret in text for secret in ('p4ss', 'w0rd', 't0ken'))


def test_a_package_that_is_missing(tmp_path):
    "An environment that has all but CTranslate2, which whoever has a Transformers model does without."
    farm, venv = tmp_path / 'farm', tmp_path / 'venv'
    farm.mkdir()
    site = Path(distribution('ctranslate2').locate_file(''))
    for path in site.iterdir():
        if not path.name.startswith('ctranslate2') and path.suffix != '.pth': (farm / path.name).symlink_to(path)
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', venv], check=True)
    next(venv.glob('lib/python*/site-packages')).joinpath('all.pth').write_text(f'{farm}\n{PROJECT}\n')
    def run(code): return subprocess.run([venv / 'bin' / 'python', '-c', code], capture_output=True, text=True)
    code, findings, _ = answer(run("from whisper_nb.cli import main; main(['doctor', '--json'])"))
    missing, = about(findings, 'libraries', 'ctranslate2 is not installed')
    assert code == 1 and missing[1] is False and 'pip install' in missing[3] and 'make setup' in missing[3]
    done = run('from whisper_nb.doctor import *; from whisper_nb import doctor as module; asked = module._asked("demo", "cpu", None, "", "")\n'
        'print([each.ok for each in module.about_versions(asked.backend) if "ctranslate2" in each.what], [each.ok for each in module._model(asked, [], True) if each.topic == "model"])')
    assert done.stdout == '[None] [True]\n', done.stderr


# ---- the GPU

def test_a_driver_too_old(whisper_nb, tmp_path):
    "One GPU of a stand-in driver for CUDA 12.2, a torch for CUDA 13, no cuBLAS: asked for, that is a fault; otherwise the CPU is used."
    if sys.platform != 'linux' or not shutil.which('cc'): pytest.skip('makes a shared library for Linux')
    (tmp_path / 'driver.c').write_text(DRIVER)
    subprocess.run(['cc', '-shared', '-fPIC', '-o', tmp_path / 'libcuda.so.1', tmp_path / 'driver.c'], check=True)
    fake(tmp_path, 'torch', code='')
    (tmp_path / 'torch' / 'version.py').write_text("cuda: Optional[str] = '13.0'\n")
    environment = dict(LD_LIBRARY_PATH=str(tmp_path), PYTHONPATH=str(tmp_path), DEVICES='1', CUDA='12020', CAPABILITY='8')
    code, findings, _ = answer(whisper_nb('doctor', '--device', 'cuda', '--json', **environment))
    assert code == 1 and 'Simulated 100, 80 GB' in about(findings, 'GPU')[0][2]
    old, = about(findings, 'GPU', 'torch cannot use it: the NVIDIA driver knows CUDA 12, torch is a build for CUDA 13')
    assert old[1] is False and 'update the NVIDIA driver' in old[3]
    lacks, = about(findings, 'GPU', 'CTranslate2 cannot use it')
    assert lacks[1] is False and 'pip install nvidia-cublas-cu12' in lacks[3] and about(findings, 'GPU', 'libcublas.so.12 not found')
    code, findings, _ = answer(whisper_nb('doctor', '--json', **environment))
    assert code == 0 and {each[1] for each in about(findings, 'GPU', 'cannot use it')} == {None}


def test_a_library_that_crashes_on_the_gpu():
    "Where there is no GPU the products fail, each with a reason; none of them ends the tests."
    found = installation.tried('ctranslate2 on the GPU', 'json')
    assert found['ctranslate2 on the GPU'].problem and found['json'].answer
    shown = installation._use('ctranslate2', found['ctranslate2 on the GPU'], '', True)
    assert shown.ok is False and 'CTranslate2 failed on it' in shown.what and '--device cpu' in shown.fix


# ---- memory and disk

def test_small_and_read_only_disks(tmp_path):
    "A disk of one megabyte for models, a cache mounted read-only: one is a fault for what is still to be got, the other is not."
    way = next((way for way in (['unshare', '--mount'], ['unshare', '--user', '--map-root-user', '--mount'])
        if subprocess.run([*way, 'mount', '-t', 'tmpfs', 'tmpfs', tmp_path], capture_output=True).returncode == 0), None) if shutil.which('unshare') else None
    if not way: pytest.skip('cannot mount a disk here')
    for name in ('small', 'fixed'): (tmp_path / name).mkdir()
    script = f'mount -t tmpfs -o size=1m tmpfs small && mount -t tmpfs -o ro tmpfs fixed && exec {COMMAND} doctor large-v3-turbo --models-dir small --json'
    code, findings, _ = answer(subprocess.run([*way, 'sh', '-c', script], capture_output=True, text=True, env={**os.environ, 'HF_HOME': str(tmp_path / 'fixed' / 'hub')}))
    small, = about(findings, 'disk', 'free for models;')
    assert code == 1 and small[1] is False and 'GB' in small[2] and '--models-dir' in small[3]
    fixed, = about(findings, 'caches', 'nothing can be written for the cache of the Hub')
    assert fixed[1] is None and 'read-only' in fixed[2] and 'HF_HOME' in fixed[3]
    assert about(findings, 'Hub')[0][1] is False  # it is still to be got, and nobody is there to give it


def test_a_limit_of_memory(tiny):
    "300 MB do not hold the libraries: said beforehand, and not tried."
    def limit(): resource.setrlimit(resource.RLIMIT_DATA, (300_000_000, 300_000_000))
    done = subprocess.run([COMMAND, 'doctor', tiny['faster-whisper'], '--json'], capture_output=True, text=True, preexec_fn=limit)
    code, findings, _ = answer(done)
    little, = about(findings, 'memory')
    assert not [each for each in about(findings, 'libraries', 'failed to map') if 'raise the limit' not in each[3]]
    assert code == 1 and little[1] is False and '300 MB available' in little[2] and 'int8' in little[3]
    assert not [each for each in findings if each[0] == 'offline test' and each[1] is not None]


def test_a_user_without_a_home(tmp_path):
    "As containers are run on some platforms: a number that no name belongs to."
    as_nobody = ['unshare', '--user', '--map-user=12345', '--map-group=12345', 'env', '-u', 'HOME']
    if not shutil.which('unshare') or subprocess.run([*as_nobody, 'true'], capture_output=True).returncode: pytest.skip('cannot be somebody else here')
    code, findings, _ = answer(subprocess.run([*as_nobody, COMMAND, 'doctor', '--json'], capture_output=True, text=True))
    assert code == 0 and about(findings, 'caches', 'there is no home directory')[0][1] is None


# ---- Hub and store

def test_a_hub_that_never_answers(monkeypatch):
    "The limit holds, for a machine that needs none and for a checkpoint that is still to be got."
    monkeypatch.setattr(module, '_HUB_SECONDS', 0.4)
    with silence() as url:
        monkeypatch.setenv('HF_ENDPOINT', url)
        start = time.monotonic()
        found = [module._hub(asked(model)) for model in (None, 'openai/whisper-tiny')]
        assert time.monotonic() - start < 5
    assert [each.ok for each in found] == [None, False] and all(f'{url}: no answer within 0.4 s' in each.what for each in found)


@pytest.mark.parametrize('status, body, ok', [(200, b'<html>please log in</html>', False), (401, b'', False), (503, b'', False)])
def test_a_hub_that_is_none(monkeypatch, status, body, ok):
    with answering((status, {'Content-Type': 'text/html'}, body)) as server:
        monkeypatch.setenv('HF_ENDPOINT', server.url)
        found = module._hub(asked('openai/whisper-tiny'))
    assert found.ok is ok and server.url in found.what and found.fix, found


def test_offline_by_choice(monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    to_get, nothing = asked('openai/whisper-tiny'), asked()
    assert module._hub(to_get).ok is None and 'HF_HUB_OFFLINE' in module._hub(to_get).what
    assert [each.ok for each in module._variables(to_get)] == [False] and [each.ok for each in module._variables(nothing)] == [None]


def test_stores(monkeypatch, tmp_path):
    "One that answers, one that refuses, one that is none, one that nobody serves, one that never answers; nothing of a signature is shown."
    monkeypatch.setattr(module, '_STORE_SECONDS', 1)
    secret = '?X-Amz-Signature=5ec4e7'
    cases = [((404, {}, b''), 'models', True), ((403, {}, b''), 'models', None), ((500, {}, b''), 'models', False), ((404, {}, b''), 'models/toy.tar.gz' + secret, False)]
    for reply, path, ok in cases:
        with answering(reply) as server: found = module._store(f'{server.url}/{path}')
        assert found.ok is ok and '5ec4e7' not in str(found), found
    with silence() as url: found = [module._store(f'{place}/models/toy.tar.gz{secret}') for place in (NOWHERE, url)]
    assert [each.ok for each in found] == [False, False] and '5ec4e7' not in str(found) and 'no answer within 1 s' in found[1].what


# ---- the model

def test_a_damaged_model(whisper_nb, copied):
    "Exit code 1, with what is wrong and the command that mends it; the machine itself is fine."
    model = copied('faster-whisper')
    data = bytearray((model / 'model.bin').read_bytes())
    data[len(data) // 2] ^= 1
    (model / 'model.bin').write_bytes(data)
    code, findings, _ = answer(whisper_nb('doctor', model, '--json'))
    assert code == 1 and [(each[0], each[1]) for each in findings if each[1] is False] == [('model', False)]
    wrong, = about(findings, 'model')
    assert 'model.bin' in wrong[2] and 'whisper-nb' in wrong[3] and about(findings, 'offline test')[0][1] is None


def test_no_model_at_all(tmp_path):
    (tmp_path / 'empty').mkdir()
    found = [each for each in module._model(asked(str(tmp_path / 'empty')), [], False)]
    assert [(each.topic, each.ok) for each in found] == [('model', False), ('offline test', None)]


def test_the_words_of_a_diagnosis():
    found = Diagnosis((Finding('GPU', None, 'a | b'), Finding('disk', True, '<c>')), 'toy')
    assert found.ready and found.verdict == "this machine is ready for 'toy'" and '&#124;' in found._repr_markdown_() and '&lt;c&gt;' in found._repr_markdown_()
