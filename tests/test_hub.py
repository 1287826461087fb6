"Downloads that go wrong: what is kept, what is said, what is never left behind."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest
from conftest import listen_to_ctrl_c
from faulty import faulty_hub, make_checkpoint

from whisper_nb.errors import CheckError, RequestError, StepError, explain
from whisper_nb.files import MANIFEST_NAME, hash_file, list_files, read_manifest
from whisper_nb.hub import choose_files, damaged_files, download, rewrite_pickled
from whisper_nb.mirror import read_model
from whisper_nb.models import DEMO_DIR

NAME, WEIGHTS = 'openai/whisper-tiny', 'model.safetensors'
QUICK = (0.02, 0.02) # seconds between tries

@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory): return make_checkpoint(tmp_path_factory.mktemp('checkpoint')/'tiny', megabytes=6)

@pytest.fixture
def hub(checkpoint):
    "A Hub that can misbehave."
    with faulty_hub({NAME: checkpoint}) as (endpoint, faults): yield endpoint, faults

@pytest.fixture
def get(hub, tmp_path):
    "Download the model from it."
    def get(model=NAME, **options): return download(model, models_dir=tmp_path/'models', **{'endpoint': hub[0], 'token': False, 'waits': QUICK, **options})
    return get

def assert_right(result, checkpoint):
    "The directory holds just what was published, real files with the right bytes."
    assert list_files(result.path) == sorted(choose_files(list_files(checkpoint)))
    for name in list_files(result.path): assert hash_file(result.path/name) == hash_file(checkpoint/name), name
    assert not list(result.path.parent.glob('.staging/*'))

def assert_nothing(tmp_path):
    "No model appeared."
    assert [path.name for path in (tmp_path/'models').iterdir() if not path.name.startswith('.')] == []

def two_lines(error):
    problem = explain(error)
    assert problem.what and problem.advice and '\n' not in problem.what + problem.advice
    return f'{problem.what} → {problem.advice}', problem.exit_code

# ---- what passes by itself

@pytest.mark.parametrize('part, rules', [
    ('/revision/', [('status', 503), ('status', 429, {'Retry-After': 0})]),
    (WEIGHTS, [('status', 503), ('status', 500)]),
    (WEIGHTS, [('status', 429, {'Retry-After': 0})]),
    (WEIGHTS, [('drop', 2_000_000), ('drop', 1_000_000)]),
    (WEIGHTS, [('short', 3_000_000)]),
    (WEIGHTS, [('drop', 2_000_000), ('no range',)]),
    (WEIGHTS, [('wrong',)]),
    ('vocab.json', [('wrong',)]),
    ('config.json', [('status', 502), ('drop', 10), ('wrong',)]),
], ids=lambda value: str(value).replace('/', '') if isinstance(value, str) else '-'.join(str(rule[0]) for rule in value))
def test_passing_faults(hub, get, checkpoint, part, rules):
    hub[1].add(part, *rules)
    assert_right(get(), checkpoint)
    assert not any(hub[1].rules.values()) # each fault did happen

def test_a_dropped_connection_costs_nothing(hub, get, checkpoint):
    hub[1].add(WEIGHTS, ('drop', 2_000_000), ('drop', 2_000_000))
    result, size = get(), (checkpoint/WEIGHTS).stat().st_size
    assert result.fetched == result.bytes and hub[1].sent() <= size * 1.05

def test_any_number_of_drops_while_it_moves_on(hub, get, checkpoint):
    hub[1].add(WEIGHTS, *[('drop', 700_000)]*7) # more than there are tries
    assert_right(get(), checkpoint)

def test_retry_after_is_waited_for(hub, get):
    hub[1].add(WEIGHTS, ('status', 429, {'Retry-After': 1}))
    start = time.monotonic()
    get()
    assert time.monotonic() - start >= 1

# ---- what does not

@pytest.mark.parametrize('part, status, headers, kind, code, words', [
    ('/revision/', 404, {'X-Error-Code': 'RepoNotFound'}, RequestError, 2, 'was not found'),
    ('/revision/', 404, {'X-Error-Code': 'RevisionNotFound'}, RequestError, 2, 'no revision'),
    ('/revision/', 401, {'X-Error-Code': 'RepoNotFound'}, RequestError, 2, 'HF_TOKEN'),
    ('/revision/', 401, {}, Exception, 1, 'HF_TOKEN'),
    ('/revision/', 403, {'X-Error-Code': 'GatedRepo'}, StepError, 1, 'accept it at'),
    (WEIGHTS, 403, {'X-Error-Code': 'GatedRepo'}, StepError, 1, 'accept it at'),
    (WEIGHTS, 403, {}, Exception, 1, 'HF_TOKEN'),
    ('/revision/', 429, {}, Exception, 1, 'fewer requests'),
    (WEIGHTS, 429, {'Retry-After': 7200}, StepError, 1, 'wait 7200 seconds'),
    ('/revision/', 500, {}, Exception, 1, 'HTTP 500'),
    (WEIGHTS, 503, {}, Exception, 1, 'HTTP 503'),
    ('vocab.json', 404, {'X-Error-Code': 'EntryNotFound'}, Exception, 2, 'no such file'),
])
def test_lasting_refusals(hub, get, tmp_path, part, status, headers, kind, code, words):
    hub[1].add(part, *[('status', status, headers)]*9)
    with pytest.raises(kind) as caught: get()
    said, exit_code = two_lines(caught.value)
    assert words in said and exit_code == code
    assert_nothing(tmp_path)

def test_wrong_bytes_twice(hub, get, tmp_path):
    hub[1].add(WEIGHTS, ('wrong',), ('wrong',))
    with pytest.raises(StepError, match=f"'{WEIGHTS}' arrived twice with the wrong content"): get()
    assert_nothing(tmp_path)
    assert not list((tmp_path/'models').rglob('*.safetensors*')) # not a byte of it is kept

def test_a_lost_connection_keeps_what_arrived(hub, get, tmp_path, checkpoint):
    hub[1].add(WEIGHTS, ('drop', 4_000_000), *[('drop', 0)]*9)
    with pytest.raises(StepError, match='the connection was lost at') as caught: get()
    assert 'what has arrived is kept' in caught.value.advice
    assert_nothing(tmp_path)
    hub[1].rules.clear()
    result = get()
    assert_right(result, checkpoint)
    assert result.fetched < 2_100_000

def test_unreachable(tmp_path):
    start = time.monotonic()
    with pytest.raises(StepError, match='could not be reached at http://127.0.0.1:9 ') as caught:
        download(NAME, models_dir=tmp_path/'models', endpoint='http://user:secret@127.0.0.1:9', token=False)
    assert time.monotonic() - start < 3 # said at once, no long tries
    assert 'secret' not in str(two_lines(caught.value)) and 'HF_ENDPOINT' in caught.value.advice
    assert_nothing(tmp_path)

@pytest.mark.parametrize('body', [b'<html>please log in</html>', b'{}', b'[]', b'{"id": "x"}', b''])
def test_not_a_hub(get, hub, tmp_path, body):
    "A login page answers every request with a page."
    hub[1].add('/revision/', ('status', 200, {}, body))
    with pytest.raises(StepError, match='is not a Hub'): get()
    assert_nothing(tmp_path)

@pytest.mark.parametrize('endpoint', ['hub.invalid', 'ftp://hub.invalid', 'http://[::1', 'http://nowhere.invalid'])
def test_bad_endpoints(tmp_path, endpoint):
    with pytest.raises(StepError) as caught: download(NAME, models_dir=tmp_path/'models', endpoint=endpoint, token=False, waits=())
    assert 'HF_ENDPOINT' in two_lines(caught.value)[0]

def test_disk_full(get, tmp_path, monkeypatch):
    import shutil
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(StepError, match='are free'): get()
    assert_nothing(tmp_path)

# ---- killed

CHILD = '''
import sys
from whisper_nb.hub import download
print(download(sys.argv[1], models_dir=sys.argv[2], endpoint=sys.argv[3], token=False).fetched)
'''

def test_sigkill_and_resume(tmp_path):
    big = make_checkpoint(tmp_path/'big', megabytes=40)
    size = (big/WEIGHTS).stat().st_size
    with faulty_hub({NAME: big}) as (endpoint, faults):
        command = [sys.executable, '-c', CHILD, NAME, str(tmp_path/'models'), endpoint]
        faults.pause = 0.05 # per MiB
        for share in (0.3, 0.6): # killed twice
            child = subprocess.Popen(command)
            partial = lambda: max((path.stat().st_size for path in (tmp_path/'models').rglob(f'{WEIGHTS}*.incomplete')), default=0)
            while partial() < share*size: time.sleep(0.01)
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert_nothing(tmp_path)
        left, faults.pause = size - partial(), 0
        last = subprocess.run(command, capture_output=True, text=True, check=True)
        served = faults.sent()
    assert left <= int(last.stdout) <= left + 10**6 # the rest of the weights and some small files
    print(f'{served/size - 1:.2%} fetched twice')
    assert served <= 1.05*size, f'{served/size - 1:.1%} fetched twice'
    assert hash_file(tmp_path/'models'/'openai_whisper-tiny'/WEIGHTS) == hash_file(big/WEIGHTS)

def test_sigkill_anywhere_leaves_all_or_nothing(tmp_path):
    code = "import sys\nfrom whisper_nb.hub import download\nprint('ready', flush=True)\nwhile True: download('demo', models_dir=sys.argv[1], fresh=True)"
    for turn in range(10):
        child = subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'models')], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(0.1 + 0.073*turn)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if (tmp_path/'models'/'demo').exists(): assert damaged_files(tmp_path/'models'/'demo', read_manifest(tmp_path/'models'/'demo')) == []
    assert_right(download('demo', models_dir=tmp_path/'models'), DEMO_DIR)

def test_ctrl_c_stops_soon_and_keeps_what_arrived(tmp_path):
    big = make_checkpoint(tmp_path/'big', megabytes=20)
    with faulty_hub({NAME: big}) as (endpoint, faults):
        faults.pause = 0.1
        child = subprocess.Popen([sys.executable, '-c', CHILD, NAME, str(tmp_path/'models'), endpoint], stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c)
        partial = lambda: max((path.stat().st_size for path in (tmp_path/'models').rglob(f'{WEIGHTS}*.incomplete')), default=0)
        while partial() < 2*10**6: time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        assert child.wait(5) and child.stderr.read().strip().endswith('KeyboardInterrupt')
    assert partial() >= 2*10**6
    assert_nothing(tmp_path)

def test_what_another_commit_left_is_removed(hub, get, tmp_path, checkpoint):
    staging = tmp_path/'models'/'.staging'/'openai_whisper-tiny'
    staging.mkdir(parents=True)
    for name in (f'{WEIGHTS}.000000000000.incomplete', 'old.json', WEIGHTS): (staging/name).write_bytes(b'of another commit')
    assert_right(get(), checkpoint)

# ---- what is there already

def test_reuse_needs_no_hub(hub, get, checkpoint):
    first = get()
    asked = len(hub[1].requests)
    assert get().reused and get(revision=first.commit).reused and len(hub[1].requests) == asked
    assert get(revision='main').reused and len(hub[1].requests) == asked + 1 # a branch has to be looked up, nothing more

def test_the_old_model_stays_until_the_new_one_is_complete(hub, get, checkpoint):
    before = get()
    manifest = (before.path/MANIFEST_NAME).read_bytes()
    hub[1].add(WEIGHTS, *[('status', 503)]*9)
    with pytest.raises(Exception): get(fresh=True)
    assert hash_file(before.path/WEIGHTS) == hash_file(checkpoint/WEIGHTS)
    assert (before.path/MANIFEST_NAME).read_bytes() == manifest
    hub[1].rules.clear()
    assert get(fresh=True).fetched == before.bytes and (before.path/MANIFEST_NAME).read_bytes() == manifest

def test_another_revision_is_downloaded(tmp_path, checkpoint):
    options = dict(models_dir=tmp_path/'models', token=False, waits=QUICK)
    model = make_checkpoint(tmp_path/'changing')
    with faulty_hub({NAME: model}) as (endpoint, faults):
        old = download(NAME, endpoint=endpoint, **options)
        (model/'README.md').write_text('changed')
        assert download(NAME, endpoint=endpoint, **options).commit == old.commit # no revision asked: what is there will do
        new = download(NAME, revision=read_model(NAME, model).commit, endpoint=endpoint, **options)
        assert new.commit != old.commit and (new.path/'README.md').read_text() == 'changed'
        with pytest.raises(RequestError, match='no revision'): download(NAME, revision=old.commit, endpoint=endpoint, **options)

def test_a_damaged_model_is_mended_from_its_commit(hub, get, checkpoint):
    model = get()
    with open(model.path/WEIGHTS, 'r+b') as weights:
        weights.seek(1000)
        weights.write(b'damage')
    mended = get()
    assert not mended.reused and mended.fetched == (checkpoint/WEIGHTS).stat().st_size
    assert f'/revision/{model.commit}' in [path for path, _ in hub[1].requests if '/revision/' in path][-1]
    assert_right(mended, checkpoint)

# ---- which files

def test_sharded(tmp_path):
    model = make_checkpoint(tmp_path/'sharded', megabytes=9, shards=3)
    with faulty_hub({NAME: model}) as (endpoint, faults):
        faults.add('00002-of', ('drop', 1_000_000))
        result = download(NAME, models_dir=tmp_path/'models', endpoint=endpoint, token=False, waits=QUICK)
    assert_right(result, model)
    assert sum('-of-00003' in name for name in result.files) == 3

def test_safetensors_and_never_pickle(tmp_path):
    import torch
    from safetensors.torch import load_file
    model = make_checkpoint(tmp_path/'both')
    for extra in ('pytorch_model.bin', 'flax_model.msgpack', 'tf_model.h5', 'model.fp32-00001-of-00002.safetensors', 'training_args.bin'): (model/extra).write_bytes(b'x')
    with faulty_hub({NAME: model}) as (endpoint, faults):
        options = dict(models_dir=tmp_path/'models', endpoint=endpoint, token=False, waits=QUICK)
        assert 'pytorch_model.bin' not in download(NAME, allow_pickle=True, **options).files
        tensors = load_file(model/WEIGHTS)
        torch.save(tensors, model/'pytorch_model.bin')
        (model/WEIGHTS).rename(model/'model.msgpack')
        with pytest.raises(RequestError, match='only as pickle'): download(NAME, revision='main', **options)
        allowed = download(NAME, revision='main', allow_pickle=True, **options)
        assert 'pytorch_model.bin' not in allowed.files and WEIGHTS in allowed.files # rewritten, so that nothing later meets a pickle
        again = load_file(allowed.path/WEIGHTS)
        assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)

def pickled(path, content, **options):
    import torch
    torch.save(content, path/'pytorch_model.bin', **options)
    return ['pytorch_model.bin']

def ones(): return __import__('torch').ones(2)

@pytest.mark.parametrize('content, words', [
    (lambda: {'model': {'a': ones()}, 'step': 1}, "deeper, under 'model'"), (lambda: {'state_dict': {'a': ones()}}, "deeper, under 'state_dict'"),
    (lambda: {'a': ones(), 'step': 1}, "'step' is int"), (lambda: {'a': None}, "'a' is NoneType"), (lambda: [ones()], 'no dictionary'), (lambda: {1: ones()}, '1 is Tensor')])
def test_a_pickle_that_is_no_state_of_a_model(tmp_path, content, words):
    with pytest.raises(CheckError, match=words) as caught: rewrite_pickled(tmp_path, pickled(tmp_path, content()))
    assert caught.value.advice and [path.name for path in tmp_path.iterdir()] == ['pytorch_model.bin']

def test_memory_that_is_too_small_for_a_pickle(tmp_path):
    "A file that can be mapped needs next to none; one of before torch 1.6 has to be read."
    import torch
    names = pickled(tmp_path, {'a': torch.ones(10_000_000)}, _use_new_zipfile_serialization=False)
    with pytest.raises(StepError, match='rewriting the pickled weights needs about 440 MB of memory, 420 MB are'): rewrite_pickled(tmp_path, names, memory=420_000_000)
    rewrite_pickled(tmp_path, pickled(tmp_path, {'a': torch.ones(10_000_000)}), memory=420_000_000)
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]

def test_memory_that_runs_out_is_not_called_damage(tmp_path, monkeypatch):
    import torch
    names = pickled(tmp_path, {'a': ones()})
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")):
        def fail(*_, **__): raise error
        monkeypatch.setattr(torch, 'load', fail)
        with pytest.raises(MemoryError): rewrite_pickled(tmp_path, names)

def test_a_pickle_is_rewritten_without_being_read_into_memory(tmp_path):
    import torch
    names = pickled(tmp_path, {f'part {place}': torch.full((10_000_000,), place) for place in range(10)})  # 800 MB of int64
    code = '''
import sys, pathlib, threading, time, psutil
import torch, huggingface_hub
from whisper_nb.hub import rewrite_pickled
own = lambda: (lambda found: found.rss - found.shared)(psutil.Process().memory_info())
before, most, done = own(), [0], threading.Event()
def watch():
    while not done.wait(0.005): most[0] = max(most[0], own())
threading.Thread(target=watch, daemon=True).start()
rewrite_pickled(pathlib.Path(sys.argv[1]), ['pytorch_model.bin'])
done.set()
print(most[0] - before)
'''
    done = subprocess.run([sys.executable, '-c', code, tmp_path], capture_output=True, text=True, env=os.environ | dict(TQDM_DISABLE='1'))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 250_000_000

@pytest.mark.parametrize('config', [dict(model_type='bert'), dict(), []])
def test_not_whisper_is_noticed_before_the_weights(tmp_path, config):
    model = make_checkpoint(tmp_path/'other')
    (model/'config.json').write_text(json.dumps(config))
    with faulty_hub({NAME: model}) as (endpoint, faults):
        with pytest.raises(RequestError, match='not a Whisper model'): download(NAME, models_dir=tmp_path/'models', endpoint=endpoint, token=False)
        assert faults.sent() == 0
    assert_nothing(tmp_path)
    assert not list(tmp_path.glob('models/.staging/*'))

def test_local_source_with_links(tmp_path):
    "As in huggingface_hub's cache: links to blobs. What arrives are files."
    (tmp_path/'snapshot').mkdir()
    for name in list_files(DEMO_DIR): (tmp_path/'snapshot'/name).symlink_to(DEMO_DIR/name)
    result = download(tmp_path/'snapshot', models_dir=tmp_path/'models')
    assert_right(result, DEMO_DIR)
    assert str(tmp_path) not in (result.path/MANIFEST_NAME).read_text()

@pytest.mark.parametrize('lost, words', [('config.json', 'no config.json'), (WEIGHTS, 'no complete weights'), ('tokenizer.json vocab.json', 'no tokenizer, and its vocabulary')])
def test_incomplete_local_source(tmp_path, lost, words):
    make_checkpoint(tmp_path/'mine')
    for name in lost.split(): (tmp_path/'mine'/name).unlink()
    with pytest.raises(RequestError, match=words): download(tmp_path/'mine', models_dir=tmp_path/'models')
    assert_nothing(tmp_path)

# ---- the environment

def environment(tmp_path, **more):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'TRANSFORMERS_')) and 'proxy' not in name.lower()}
    return clean | dict(HF_HOME=str(tmp_path/'home')) | more

def run_child(tmp_path, code, **more):
    return subprocess.run([sys.executable, '-c', code], env=environment(tmp_path, **more), cwd=tmp_path, capture_output=True, text=True, timeout=60)

def test_token_is_sent_and_never_written(hub, tmp_path):
    hub[1].add(WEIGHTS, *[('status', 403)]*9)
    code = f"from whisper_nb.errors import explain\nfrom whisper_nb.hub import download\ntry: download('{NAME}', waits=())\nexcept Exception as error: print(explain(error), repr(error))"
    done = run_child(tmp_path, code, HF_TOKEN='hf_verysecret', HF_ENDPOINT=hub[0])
    ours = [headers for path, headers in hub[1].requests if NAME in path]
    assert ours and all(headers.get('authorization') == 'Bearer hf_verysecret' for headers in ours)
    hub[1].rules.clear()
    done2 = run_child(tmp_path, code, HF_TOKEN='hf_verysecret', HF_ENDPOINT=hub[0])
    written = b''.join(path.read_bytes() for path in tmp_path.rglob('*') if path.is_file())
    assert (tmp_path/'models'/'openai_whisper-tiny'/MANIFEST_NAME).exists()
    assert 'verysecret' not in done.stdout + done.stderr + done2.stdout + done2.stderr and b'verysecret' not in written
    assert not (tmp_path/'home'/'hub').exists() # HF_HOME holds nothing of it

def test_offline_switch(tmp_path):
    code = f"from whisper_nb.errors import explain\nfrom whisper_nb.hub import download\nprint(download('demo').reused)\ntry: download('{NAME}')\nexcept Exception as error: print(explain(error).what)"
    done = run_child(tmp_path, code, HF_HUB_OFFLINE='1', HTTP_PROXY='http://127.0.0.1:9', HTTPS_PROXY='http://127.0.0.1:9', ALL_PROXY='http://127.0.0.1:9')
    assert done.stdout.splitlines() == ['False', f"HF_HUB_OFFLINE forbids asking the Hub for '{NAME}'"], done.stderr

def test_proxy_is_used_for_the_hub(hub, tmp_path):
    "A request through a proxy names the whole address."
    code = f"from whisper_nb.hub import download\ntry: download('{NAME}', endpoint='http://hub.invalid', waits=())\nexcept Exception as error: print(type(error).__name__)"
    run_child(tmp_path, code, HTTP_PROXY=hub[0])
    assert any(headers['host'] == 'hub.invalid' for _, headers in hub[1].requests)

def test_two_at_once_build_one_model(hub, tmp_path, checkpoint):
    command = [sys.executable, '-c', CHILD, NAME, str(tmp_path/'models'), hub[0]]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    fetched = sorted(int(child.communicate()[0]) for child in children)
    assert fetched[0] == 0 and fetched[1] > 0 # the second waited, and used what the first made

def test_manifest_says_where_it_came_from(get, checkpoint):
    result = get()
    manifest = read_manifest(result.path)
    assert manifest.source == dict(kind='hub', repo_id=NAME, commit=read_model(NAME, checkpoint).commit, license='apache-2.0')
    assert manifest.made_by.keys() >= {'whisper_nb', 'huggingface-hub'}
