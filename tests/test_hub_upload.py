"Uploads to a mirror that takes them: by this project's commands and by unchanged clients, and what must not get in."
import hashlib, json, os, shutil, subprocess, sys, threading
from pathlib import Path

import httpx2
import pytest

from conftest import COMMAND
from faulty import Faults

from whisper_nb.addresses import parse_address
from whisper_nb.audio import default_clip
from whisper_nb.convert import convert
from whisper_nb.errors import ChangedError, CheckError, PassingError, RequestError, StepError
from whisper_nb.files import MANIFEST_NAME, build_manifest, hash_file, list_files
from whisper_nb.hub import download
from whisper_nb.hub_store import HubStore, quiet_hub
from whisper_nb.hub_upload import upload_to_hub
from whisper_nb.mirror import app, running, serving
from whisper_nb.verify import verify

TOKEN = 'a-token-nobody-may-see'

@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    "The demo in both formats."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQDM_DISABLE', '1')
        source = download('demo', models_dir=tmp_path_factory.mktemp('prepared')/'models').path
        return {'transformers': source, 'ctranslate2': convert(source, 'int8').path}

class Counting:
    "An application that keeps a list of what it is asked for."
    def __init__(self, application): self.app,self.requests = application,[]
    async def __call__(self, scope, receive, send):
        self.requests.append(f"{scope['method']} {scope['path']}")
        await self.app(scope, receive, send)

@pytest.fixture(scope='module')
def hub(tmp_path_factory):
    "A mirror that takes uploads with a token: endpoint, its directory, what it was asked for."
    root = tmp_path_factory.mktemp('hub')/'models'
    root.mkdir()
    counting = Counting(app(root, writable=TOKEN))
    with running(counting) as endpoint: yield endpoint, root, counting

@pytest.fixture
def environment(hub, tmp_path):
    "As a user with an empty home, pointed at the mirror."
    kept = {name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'TRANSFORMERS_')) and 'proxy' not in name.lower()}
    return kept | dict(HF_ENDPOINT=hub[0], HF_HOME=str(tmp_path/'home'), HF_HUB_DISABLE_TELEMETRY='1', HF_TOKEN=TOKEN)

@pytest.fixture
def client(environment, tmp_path):
    def run(*command, code=0, **more):
        done = subprocess.run(list(map(str, command)), env=environment | more, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stdout + done.stderr[-3000:]
        assert TOKEN not in done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr
    return run

@pytest.fixture
def token(monkeypatch): monkeypatch.setenv('HF_TOKEN', TOKEN)

HTTP = httpx2.Client(trust_env=False)
def get(url, **options): return HTTP.request(options.pop('method', 'GET'), url, **options)

# ---- a model and its card

def test_faster_whisper_loads_what_was_uploaded(hub, prepared, client):
    said = client(COMMAND, 'hub-upload', prepared['ctranslate2'], 'anna/whisper-ct2')
    assert 'anna/whisper-ct2' in said and 'private' in said
    clip = default_clip()
    heard = client(sys.executable, '-c', f'''
from faster_whisper import WhisperModel
model = WhisperModel('anna/whisper-ct2', device='cpu', compute_type='int8')
print(' '.join(segment.text.strip() for segment in model.transcribe({str(clip.path)!r}, language='en', temperature=0)[0]))
''')
    assert heard.strip().lower().strip('.') == clip.text
    record = get(f'{hub[0]}/api/models/anna/whisper-ct2').json()
    assert record['private'] is True

def test_transformers_loads_what_was_uploaded(hub, prepared, client, tmp_path):
    client(COMMAND, 'hub-upload', prepared['transformers'], 'anna/whisper-demo', '--public', '--skip-test')
    assert get(f'{hub[0]}/api/models/anna/whisper-demo').json()['private'] is False
    clip = default_clip()
    heard = client(sys.executable, '-c', f'''
from transformers import pipeline, WhisperForConditionalGeneration
from whisper_nb.audio import load_audio
print(type(WhisperForConditionalGeneration.from_pretrained('anna/whisper-demo')).__name__)
print(pipeline('automatic-speech-recognition', model='anna/whisper-demo')(load_audio({str(clip.path)!r}))['text'])
''')
    assert heard.split('\n')[0] == 'WhisperForConditionalGeneration' and heard.split('\n')[1].strip().lower() == clip.text

def test_this_project_takes_it_again(prepared, hub, client, tmp_path, token):
    upload_to_hub(prepared['transformers'], 'bert/demo', endpoint=hub[0], skip_test=True)
    upload_to_hub(prepared['ctranslate2'], 'bert/ct2', endpoint=hub[0], skip_test=True)
    client(COMMAND, 'prepare', 'bert/demo', '--no-convert', '--skip-compress', '--skip-test')
    client(COMMAND, 'download', 'bert/ct2')
    for name, source in (('bert_demo', 'transformers'), ('bert_ct2', 'ctranslate2')):
        made = tmp_path/'models'/name
        assert not verify(made).failures
        for file in ('model.safetensors', 'model.bin', 'config.json', 'tokenizer.json'):
            if (made/file).exists(): assert hash_file(made/file) == hash_file(prepared[source]/file)

def test_a_copy_of_the_repository_verifies(prepared, hub, client, tmp_path, token):
    upload_to_hub(prepared['ctranslate2'], 'bert/copied', endpoint=hub[0], skip_test=True)
    snapshot = client(sys.executable, '-c', 'from huggingface_hub import snapshot_download; print(snapshot_download("bert/copied"))').strip()
    shutil.copytree(snapshot, tmp_path/'copy') # real files in place of the links
    assert not verify(tmp_path/'copy').failures and (tmp_path/'copy'/MANIFEST_NAME).is_file()

def test_the_card_has_the_figures(prepared, hub, client, tmp_path):
    lines = [json.loads(line) for line in (Path(__file__).parent.parent/'nbs'/'explanations'/'benchmark_demo.jsonl').read_text().splitlines()]
    digest = hashlib.sha256((prepared['ctranslate2']/MANIFEST_NAME).read_bytes()).hexdigest()
    lines[0]['models'] = [each | dict(manifest_sha256=digest) if each['format'] == 'ctranslate2' else each for each in lines[0]['models']]
    (tmp_path/'rows.jsonl').write_text('\n'.join(map(json.dumps, lines)))
    client(COMMAND, 'hub-upload', prepared['ctranslate2'], 'anna/measured', '--skip-test', '--benchmark', 'rows.jsonl')
    found = client(sys.executable, '-c', '''
from huggingface_hub import ModelCard
card = ModelCard.load('anna/measured')
print(card.data.license, card.data.library_name, card.data.eval_results[0].metric_type, card.data.model_name)
print(card.text)
''')
    assert found.startswith('apache-2.0 ctranslate2 wer measured\n')
    assert 'AMD EPYC' in found and 'It is not for use on human speech' in found and str(tmp_path) not in found

def test_nothing_is_uploaded_twice(prepared, hub, token):
    first = upload_to_hub(prepared['ctranslate2'], 'anna/twice', endpoint=hub[0], skip_test=True)
    before = len(hub[2].requests)
    again = upload_to_hub(prepared['ctranslate2'], 'anna/twice', endpoint=hub[0], skip_test=True)
    assert again.reused and again.commit == first.commit and not [each for each in hub[2].requests[before:] if each.startswith('PUT') or '/commit/' in each]
    other = upload_to_hub(prepared['transformers'], 'anna/twice', endpoint=hub[0], skip_test=True) # another format takes its place
    assert {path.name for path in (hub[1]/'anna_twice').iterdir()} == {*list_files(prepared['transformers']), MANIFEST_NAME} and not other.reused

def test_a_broken_model_is_refused(prepared, hub, client, tmp_path):
    shutil.copytree(prepared['ctranslate2'], tmp_path/'broken')
    data = bytearray((tmp_path/'broken'/'model.bin').read_bytes())
    data[-1] ^= 1
    (tmp_path/'broken'/'model.bin').write_bytes(data)
    said = client(COMMAND, 'hub-upload', 'broken', 'anna/broken', '--skip-test', code=1)
    assert 'model.bin' in said and 'Traceback' not in said
    assert 'model.bin' in client(COMMAND, 'hub-upload', 'broken', 'anna/broken', '--skip-test', '--force', code=1)
    assert get(f'{hub[0]}/api/models/anna/broken').status_code == 404

def test_what_was_forced_says_so(prepared, hub, tmp_path, token):
    lacking = shutil.copytree(prepared['ctranslate2'], tmp_path/'lacking')
    (lacking/'preprocessor_config.json').unlink()
    (lacking/MANIFEST_NAME).write_text(build_manifest(lacking, 'lacking', 'ctranslate2', dict(kind='local', name='lacking'), 'int8').to_json())
    with pytest.raises(CheckError, match='preprocessor_config.json'): upload_to_hub(lacking, 'anna/lacking', endpoint=hub[0], skip_test=True)
    made = upload_to_hub(lacking, 'anna/lacking', endpoint=hub[0], skip_test=True, force=True)
    assert 'preprocessor_config.json' in made.forced and made.forced in (hub[1]/'anna_lacking'/'README.md').read_text()

@pytest.mark.parametrize('given', ['', 'another-token'])
def test_without_the_token(prepared, hub, client, given):
    said = client(COMMAND, 'hub-upload', prepared['ctranslate2'], 'anna/refused', '--skip-test', code=1, HF_TOKEN=given)
    assert 'HTTP 401' in said and 'HF_TOKEN' in said and 'another-token' not in said and 'Traceback' not in said

def test_wrong_requests(prepared, hub, client, tmp_path):
    (tmp_path/'empty').mkdir()
    assert 'Traceback' not in client(COMMAND, 'hub-upload', 'nowhere', 'anna/x', code=2)
    for directory, repo_id, rows in (('empty', 'anna/x', None), (prepared['ctranslate2'], 'anna', None), (prepared['ctranslate2'], 'anna/x', 'none.jsonl'), (prepared['ctranslate2'], 'an na/x', None)):
        with pytest.raises(RequestError): upload_to_hub(directory, repo_id, benchmark=rows, endpoint=hub[0], skip_test=True)

# ---- unchanged clients

def test_hf_upload(prepared, hub, client, tmp_path):
    shutil.copytree(prepared['ctranslate2'], tmp_path/'mine')
    (tmp_path/'mine'/'.gitattributes').write_text('* text')
    hf = Path(sys.executable).with_name('hf')
    client(hf, 'upload', 'carla/mine', 'mine', '.', '--private', HF_HUB_DISABLE_XET='1')
    made = hub[1]/'carla_mine'
    assert {path.name for path in made.iterdir()} == {path.name for path in prepared['ctranslate2'].iterdir()} # without the hidden one
    for path in made.iterdir(): assert hash_file(path) == hash_file(prepared['ctranslate2']/path.name)
    client(hf, 'download', 'carla/mine', '--local-dir', 'copy')
    assert hash_file(tmp_path/'copy'/'model.bin') == hash_file(made/'model.bin')

def test_a_reader_sees_whole_commits(hub, token):
    from huggingface_hub import CommitOperationAdd, HfApi
    api, done, looks, torn = HfApi(endpoint=hub[0]), threading.Event(), [], []
    def put(number): return [CommitOperationAdd(name, str(number).encode()) for name in ('one.txt', 'two.txt', 'folder/three.txt')]
    def look():
        with httpx2.Client(trust_env=False) as http:
            while not done.is_set():
                files = http.get(f'{hub[0]}/api/models/carla/states').json()['siblings']
                looks.append(len(files))
                if len({each['blobId'] for each in files}) != 1 or len(files) != 3: torn.append(files)
    with quiet_hub():
        api.create_repo('carla/states')
        api.create_commit('carla/states', put(0), commit_message='first')
        thread = threading.Thread(target=look)
        thread.start()
        for number in range(1, 12): api.create_commit('carla/states', put(number), commit_message='next')
        done.set()
        thread.join()
    assert len(looks) > 10 and not torn and (hub[1]/'carla_states'/'folder'/'three.txt').read_text() == '11'

# ---- what must not get in

def batch(hub, size, oid='0'*64, repository='carla/strict', token=TOKEN):
    return get(f'{hub[0]}/{repository}.git/info/lfs/objects/batch', method='POST', headers={'Authorization': f'Bearer {token}'},
        json=dict(operation='upload', transfers=['basic'], objects=[dict(oid=oid, size=size)]))

def commit(hub, *lines, repository='carla/strict'):
    body = '\n'.join(json.dumps(dict(key=key, value=value)) for key, value in lines)
    return get(f'{hub[0]}/api/models/{repository}/commit/main', method='POST', headers={'Authorization': f'Bearer {TOKEN}'}, content=body)

@pytest.fixture
def strict(hub, token):
    from huggingface_hub import HfApi
    HfApi(endpoint=hub[0]).create_repo('carla/strict', exist_ok=True)
    yield hub
    assert not list((hub[1]/'carla_strict').rglob('*')) # whatever was tried, nothing came of it
    assert not list((hub[1]/'.uploads').glob('*')) and not list((hub[1]/'.staging').glob('*'))

def test_large_files_must_be_what_they_are_called(strict):
    address = batch(strict, 10).json()['objects'][0]['actions']['upload']['href']
    for body in (b'x'*10, b'x'*9, b'x'*11, b''): assert get(address, method='PUT', content=body).status_code == 400
    for wrong in (address[:-1], address.split('?')[0], address.replace('/10?', '/11?')): assert get(wrong, method='PUT', content=b'x'*10).status_code == 403
    assert commit(strict, ('lfsFile', dict(path='model.bin', oid='0'*64, algo='sha256', size=10))).status_code == 400

def test_more_than_the_disk_holds(strict):
    answer = batch(strict, 10**18)
    assert answer.status_code == 507 and 'are free on the mirror' in answer.headers['x-error-message']

@pytest.mark.parametrize('path', ['../out.txt', '/etc/x', 'a/../../x', 'a\\b', 'x\n', '.hidden', '.git/config', 'a//b', ''])
def test_names(strict, path):
    assert commit(strict, ('file', dict(path='fine.txt', encoding='base64', content='YQ==')), ('file', dict(path=path, encoding='base64', content='YQ=='))).status_code == 400

@pytest.mark.parametrize('line', [('file', dict(path='a')), ('file', dict(path='a', encoding='base64', content='?')), ('file', None), ('rename', {}), ('deletedFile', dict(path='none')), (None, None),
    ('lfsFile', dict(path='a', oid='../../x')), ('lfsFile', dict(path='a', oid=3)), ('header', dict(parentCommit='f'*40))])
def test_senseless_commits(strict, line):
    assert commit(strict, line).status_code in (400, 404, 412)

def test_other_senseless_requests(strict):
    for path in ('api/repos/create', 'api/models/carla/strict/preupload/main', 'carla/strict.git/info/lfs/objects/batch', 'api/validate-yaml', 'api/models/carla/strict/commit/main'):
        for body in (b'', b'{', b'[]', b'{"files": 3, "objects": 3, "operation": "upload"}', b'3', b'\xff'):
            answer = get(f'{strict[0]}/{path}', method='POST', headers={'Authorization': f'Bearer {TOKEN}'}, content=body)
            assert answer.status_code == 400 or (path.endswith('commit/main') and body == b''), (path, body) # a commit of nothing changes nothing
            assert get(f'{strict[0]}/{path}', method='POST', content=body).status_code == 401
    for repository in ('carla/none', 'carla/../strict', 'carla'): assert batch(strict, 1, repository=repository).status_code in (400, 404)

def test_a_prepared_model_is_not_changed_from_outside(prepared, hub, token):
    shutil.copytree(prepared['ctranslate2'], hub[1]/'openai_whisper-own')
    with pytest.raises(StepError, match='was prepared on the mirror'): upload_to_hub(prepared['transformers'], 'openai/whisper-own', public=True, endpoint=hub[0], skip_test=True)
    assert not verify(hub[1]/'openai_whisper-own').failures

# ---- archives in a repository

@pytest.fixture
def faults(tmp_path):
    "A writable mirror that can misbehave."
    (tmp_path/'archives').mkdir()
    faults = Faults({})
    faults.app = app(tmp_path/'archives', writable=True)
    with running(faults) as endpoint: yield endpoint, faults, tmp_path/'archives'

@pytest.fixture
def archive(tmp_path):
    (tmp_path/'toy.tar.gz').write_bytes(os.urandom(3_000_000))
    return tmp_path/'toy.tar.gz'

def test_a_busy_hub(faults, archive):
    faults[1].add('/commit/', ('status', 503), ('status', 429, {'Retry-After': 0}))
    store = HubStore(parse_address('hf://team/archives/whisper'), faults[0])
    store.write(archive, '1a/toy.tar.gz')
    stored = store.describe('1a/toy.tar.gz')
    assert (stored.size, stored.sha256) == (archive.stat().st_size, hash_file(archive)['sha256']) and not any(faults[1].rules.values())
    for rule in (('status', 503), ('drop', 1000)):
        faults[1].add('/resolve/', rule)
        with pytest.raises(PassingError): store.read(stored, 0, 1_000_000)
    faults[1].add('/resolve/', ('no range',))
    with pytest.raises(StepError, match='whole files only'): store.read(stored, 0, 10)
    assert store.read(stored, 1_000_000, 500) == archive.read_bytes()[1_000_000:1_000_500]
    assert get(f'{faults[0]}/api/models/team/archives').json()['private'] is True # made by the first write

def test_reading_goes_on_when_another_file_is_committed(faults, archive):
    store = HubStore(parse_address('hf://team/archives'), faults[0])
    store.write(archive, 'toy.tar.gz')
    stored = store.describe('toy.tar.gz')
    store.write_bytes(b'{}', 'latest.json') # a mirror has the newest commit only
    assert store.read(stored, 5, 5) == archive.read_bytes()[5:10]
    store.write_bytes(b'other', 'toy.tar.gz')
    with pytest.raises(ChangedError): store.read(stored, 5, 5)

def test_a_mirror_started_again_still_has_the_archives(faults, archive):
    HubStore(parse_address('hf://team_a/archives'), faults[0]).write(archive, 'toy/toy.tar.zst')
    with serving(faults[2]) as endpoint: # one that takes no uploads
        store = HubStore(parse_address('hf://team_a/archives/toy'), endpoint)
        assert store.describe('toy.tar.zst').sha256 == hash_file(archive)['sha256']
        with pytest.raises(StepError, match='HTTP 40'): store.write_bytes(b'', 'x')

# ---- the command

def test_the_command_needs_a_token(tmp_path):
    (tmp_path/'models').mkdir()
    environment = {name: value for name, value in os.environ.items() if name != 'WHISPER_NB_MIRROR_TOKEN'}
    done = subprocess.run([str(COMMAND), 'mirror', '--writable', '--port', '0'], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and 'WHISPER_NB_MIRROR_TOKEN' in done.stderr
    with subprocess.Popen([str(COMMAND), 'mirror', '--writable', '--port', '0'], stderr=subprocess.PIPE, text=True, env=environment | dict(WHISPER_NB_MIRROR_TOKEN=TOKEN)) as server:
        try: lines = [server.stderr.readline() for _ in range(2)]
        finally: server.terminate()
    assert 'uploads are taken' in lines[0] and '0 models at http' in lines[1] and TOKEN not in ''.join(lines)
