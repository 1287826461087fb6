"Unchanged clients of the Hub, pointed at the mirror with HF_ENDPOINT."
import json, os, shutil, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from faulty import make_checkpoint

from whisper_nb import files, mirror
from whisper_nb.files import MANIFEST_NAME, hash_file
from whisper_nb.hub import download
from whisper_nb.mirror import serving
from whisper_nb.models import DEMO_DIR

TURBO = 'openai/whisper-large-v3-turbo'

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "A models directory: the demo, a model with an owner, and a converted one."
    from ctranslate2.converters import TransformersConverter
    root = tmp_path_factory.mktemp('mirror')/'models'
    download('demo', models_dir=root)
    shutil.copytree(DEMO_DIR, root/'openai_whisper-large-v3-turbo')
    TransformersConverter(str(DEMO_DIR), copy_files=['tokenizer.json', 'preprocessor_config.json']).convert(str(root/'demo-ct2-float16'), quantization='float16')
    return root

@pytest.fixture(scope='module')
def endpoint(models):
    with serving(models) as endpoint: yield endpoint

@pytest.fixture
def client(endpoint, tmp_path):
    "Run a command as a user with an empty home, pointed at the mirror."
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'TRANSFORMERS_')) and 'proxy' not in name.lower()}
    environment |= dict(HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path/'home'), HF_HUB_DISABLE_TELEMETRY='1')
    def run(*command):
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout
    return run

def test_transformers(client):
    out = client(sys.executable, '-c', f'''
import numpy
from transformers import WhisperForConditionalGeneration, WhisperProcessor
for name in ('demo', '{TURBO}'):
    model, processor = WhisperForConditionalGeneration.from_pretrained(name, dtype='float32'), WhisperProcessor.from_pretrained(name)
    features = processor(numpy.zeros(16000, 'float32'), sampling_rate=16000, return_tensors='pt').input_features
    print(name, *model(features, decoder_input_ids=features.new_ones(1, 2).long()).logits.shape[:2])
''')
    assert out.splitlines() == ['demo 1 2', f'{TURBO} 1 2']

def test_faster_whisper(client):
    out = client(sys.executable, '-c', '''
import numpy
from faster_whisper import WhisperModel
model = WhisperModel('whisper-nb/demo-ct2-float16', device='cpu', compute_type='int8')
segments, info = model.transcribe(numpy.zeros(16000, 'float32'), language='en')
print(len(list(segments)) >= 0, model.feature_extractor.mel_filters.shape[0])
''')
    assert out.split() == ['True', str(json.loads((DEMO_DIR/'config.json').read_text())['num_mel_bins'])]

def test_huggingface_hub(client, models, tmp_path):
    commit = json.loads((models/'demo'/MANIFEST_NAME).read_text())['source']['commit']
    out = client(sys.executable, '-c', f'''
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
print(Path(snapshot_download('demo')).name)
print(Path(snapshot_download('demo', revision='{commit}', local_dir='pinned')).name)
print(Path(hf_hub_download('{TURBO}', 'config.json')).name)
print(HfApi().verify_repo_checksums('demo', local_dir='pinned').checked_count)
''')
    names = [path.name for path in (models/'demo').iterdir()]
    assert out.split() == [commit, 'pinned', 'config.json', str(len(names))]
    for name in names: assert hash_file(tmp_path/'pinned'/name) == hash_file(models/'demo'/name)

def test_hf_command(client, models, tmp_path):
    client(str(Path(sys.executable).with_name('hf')), 'download', TURBO, '--local-dir', 'copy')
    assert hash_file(tmp_path/'copy'/'model.safetensors') == hash_file(DEMO_DIR/'model.safetensors')

def test_a_mirror_feeds_another(models, endpoint, tmp_path):
    "A model downloaded from a mirror is the same model, with the same commit."
    copy = download('demo', models_dir=tmp_path/'models')
    again = download(TURBO, models_dir=tmp_path/'models', endpoint=endpoint, token=False)
    with serving(tmp_path/'models') as second: third = download(TURBO, models_dir=tmp_path/'third', endpoint=second, token=False)
    assert copy.commit == again.commit == third.commit
    assert (again.path/MANIFEST_NAME).read_bytes() == (third.path/MANIFEST_NAME).read_bytes()

@pytest.mark.parametrize('span, status, size', [('bytes=0-9', 206, 10), ('bytes=100-', 206, None), ('bytes=-5', 206, 5), ('bytes=999999999-', 416, None)])
def test_ranges(endpoint, span, status, size):
    body = (DEMO_DIR/'model.safetensors').read_bytes()
    with httpx2.Client(trust_env=False) as http:
        answer = http.get(f'{endpoint}/demo/resolve/main/model.safetensors', headers={'Range': span})
    assert answer.status_code == status
    if status == 206: assert len(answer.content) == (size or len(body) - 100) and answer.content in body

def test_only_models_are_served(models, endpoint):
    (models/'.staging'/'secret').mkdir(parents=True, exist_ok=True)
    (models/'.staging'/'secret'/'config.json').write_text('{}')
    (models.parent/'outside.json').write_text('{}')
    with httpx2.Client(trust_env=False) as http:
        for path in ('.staging/secret/resolve/main/config.json', 'demo/resolve/main/../../outside.json', 'demo/resolve/main/%2e%2e%2f%2e%2e%2foutside.json',
            'demo/resolve/main//etc/hostname', '%2e%2e/resolve/main/outside.json', 'api/models/%2e%2e/revision/main', 'demo/resolve/main/'):
            assert http.get(f'{endpoint}/{path}').status_code == 404, path
        for method in ('POST', 'PUT', 'DELETE', 'PATCH'):
            assert http.request(method, f'{endpoint}/demo/resolve/main/config.json').status_code == 405

def test_ipv6(models):
    import socket
    try: socket.create_server(('::1', 0), family=socket.AF_INET6).close()
    except OSError: pytest.skip('no IPv6 here')
    with serving(models, host='::1') as endpoint, httpx2.Client(trust_env=False) as http:
        assert endpoint.startswith('http://[::1]:') and http.get(f'{endpoint}/api/models').status_code == 200

def test_large_models_are_read_before_the_first_request(tmp_path, monkeypatch, caplog):
    "Hashing takes longer than some clients wait; a model that cannot be served is named, and holds up no other."
    make_checkpoint(tmp_path/'models'/'a_b', megabytes=20)
    shutil.copytree(DEMO_DIR, tmp_path/'models'/'broken')
    (tmp_path/'models'/'broken'/MANIFEST_NAME).write_text('{')
    shelf = mirror.Shelf(tmp_path/'models')
    shelf.read_all()
    assert 'broken is not served' in caplog.text
    monkeypatch.setattr(files, 'hash_file', lambda *_, **__: pytest.fail('hashed again'))
    assert shelf.find('a/b').files['model.safetensors'].size > 20_000_000 and shelf.find('a/b').files['model.safetensors'].sha256

def test_serve_says_it_listens_once_all_is_read(tmp_path):
    code = """if True:
        import sys, time
        from whisper_nb import files, mirror
        hash_file = files.hash_file
        def slowly(path, advance, **_):
            for _ in range(12): time.sleep(0.1); advance(2_000_000)
            return hash_file(path)
        files.hash_file = slowly
        mirror.serve(sys.argv[1], port=0)"""
    make_checkpoint(tmp_path/'models'/'a_b', megabytes=24)
    environment = {name: value for name, value in os.environ.items() if name != 'TQDM_DISABLE'}
    with subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'models')], stderr=subprocess.PIPE, text=True, env=environment) as server:
        lines = [server.stderr.readline() for _ in range(2)]
        with httpx2.Client(trust_env=False, timeout=0.9) as http: http.get(lines[1].rsplit('=', 1)[1].strip() + '/api/models/a/b').raise_for_status()
        server.terminate()
    assert lines[0].startswith('read the models: ') and lines[0].endswith(' left\n') and lines[1].startswith('1 model at http')

def test_a_model_asked_for_by_many_is_read_once(tmp_path, monkeypatch):
    make_checkpoint(tmp_path/'models'/'a_b', megabytes=20)
    hashed, hash_file = [], files.hash_file
    def slowly(path, **options):
        hashed.append(path)
        time.sleep(0.2)
        return hash_file(path, **options)
    monkeypatch.setattr(files, 'hash_file', slowly)
    with serving(tmp_path/'models') as endpoint, httpx2.Client(trust_env=False) as http, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: http.get(f'{endpoint}/api/models/a/b').json(), range(4)))
    assert len(hashed) == 1 and all(answer == answers[0] for answer in answers)

def test_serve_runs_until_it_is_interrupted(models):
    import signal
    code = 'import sys; from whisper_nb.mirror import serve; serve(sys.argv[1], port=0)'
    with subprocess.Popen([sys.executable, '-c', code, str(models)], stderr=subprocess.PIPE, text=True) as server:
        line = server.stderr.readline()
        with httpx2.Client(trust_env=False) as http: names = http.get(line.rsplit('=', 1)[1].strip() + '/api/models').json()
        server.send_signal(signal.SIGINT)
        assert server.wait(10) == 0 and server.stderr.read() == ''
    assert {name['id'] for name in names} == {'demo', 'demo-ct2-float16', TURBO}
