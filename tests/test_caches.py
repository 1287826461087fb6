"""clean-cache on the layouts of three systems: what is found, what is removed, and what must stay."""
import json
import os
import pty
import select
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from shutil import rmtree

import pytest

from whisper_nb.caches import choose_leftovers, clean_cache, find_caches, places, remove
from whisper_nb.errors import RequestError
from whisper_nb.files import locked

from conftest import COMMAND

OLD, NEW, THIRD = 'a' * 40, 'b' * 40, 'c' * 40
LAYOUTS = {  # System → where each kind is below the user's directory
    'Linux': {'openai-whisper': '.cache/whisper', 'torch hub': '.cache/torch/hub/checkpoints', 'Hub cache': '.cache/huggingface/hub', 'Buzz': '.cache/Buzz', 'pywhispercpp': '.local/share/pywhispercpp/models'},
    'Darwin': {'openai-whisper': '.cache/whisper', 'torch hub': '.cache/torch/hub/checkpoints', 'Hub cache': '.cache/huggingface/hub', 'Buzz': 'Library/Caches/Buzz', 'pywhispercpp': 'Library/Application Support/pywhispercpp/models'},
    'Windows': {'openai-whisper': '.cache/whisper', 'torch hub': '.cache/torch/hub/checkpoints', 'Hub cache': '.cache/huggingface/hub', 'Buzz': 'AppData/Local/Buzz/Buzz/Cache', 'pywhispercpp': 'AppData/Local/pywhispercpp/pywhispercpp/models'},
}
FILES = {'openai-whisper': 'tiny.pt', 'torch hub': 'some-whisper.bin', 'Buzz': 'ggml-model-whisper-tiny.bin', 'pywhispercpp': 'ggml-tiny.bin'}


def hub_entry(root, repo_id, revisions, links=True, **refs):
    "An entry of the Hub's cache as its library writes it; without links as on Windows."
    folder = root / f"models--{repo_id.replace('/', '--')}"
    for part in ('blobs', 'refs'): (folder / part).mkdir(parents=True, exist_ok=True)
    for commit, files in revisions.items():
        (folder / 'snapshots' / commit).mkdir(parents=True)
        for name, content in files.items():
            path, blob = folder / 'snapshots' / commit / name, folder / 'blobs' / sha256(content).hexdigest()
            if not links: path.write_bytes(content)
            else:
                blob.write_bytes(content)
                path.symlink_to(Path('../../blobs') / blob.name)
    for name, commit in refs.items(): (folder / 'refs' / name).write_text(commit)
    return folder


def everything(root):
    "Every path below a directory: a link as what it points to, a file as its bytes."
    return {path: os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None for path in sorted(root.rglob('*'))}


@pytest.fixture
def home(tmp_path):
    (tmp_path / 'home').mkdir()
    return tmp_path / 'home'


def find(home, system='Linux', **environment): return find_caches(home, system, environment)
def names(found): return [each.name for each in found]


@pytest.mark.parametrize('system', LAYOUTS)
def test_layouts_of_three_systems(home, system):
    for kind, folder in LAYOUTS[system].items():
        (home / folder).mkdir(parents=True)
        if kind == 'Hub cache': hub_entry(home / folder, 'openai/whisper-tiny', {NEW: {'model.safetensors': bytes(700)}}, links=system != 'Windows', main=NEW)
        else:
            (home / folder / FILES[kind]).write_bytes(bytes(300))
            (home / folder / 'mine.txt').write_text('not a model')
    found = find(home, system)
    assert {each.kind: each.bytes for each in found} == dict.fromkeys(LAYOUTS[system], 300) | {'Hub cache': 700}
    done = remove(found)
    assert done.bytes == sum(each.bytes for each in found) + 40 and not done.problems and not find(home, system)  # refs/main has 40 bytes
    assert sum(path.is_file() for path in home.rglob('*')) == 4  # mine.txt


def test_variables_move_caches(home, tmp_path):
    elsewhere = tmp_path / 'elsewhere'
    for variable, folder in dict(HF_HUB_CACHE='', HUGGINGFACE_HUB_CACHE='', TRANSFORMERS_CACHE='', HF_HOME='hub').items():
        hub_entry(elsewhere / variable / folder, f'openai/whisper-{variable}'.lower().replace('_', '-'), {NEW: {'config.json': b'{}'}})
    for variable, file in dict(XDG_CACHE_HOME='whisper/base.pt', TORCH_HOME='whisperx-vad-segmentation.bin').items():
        (elsewhere / variable / file).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / variable / file).write_bytes(b'1')
    environment = {variable: str(elsewhere / variable) for variable in ('HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'TRANSFORMERS_CACHE', 'HF_HOME', 'XDG_CACHE_HOME', 'TORCH_HOME')}
    assert len(find(home, **environment)) == 6
    assert not find(home)
    assert len([each for each in places(home, 'Linux', dict(HF_HOME=str(home / '.cache/huggingface'))) if each.kind == 'Hub cache']) == 2  # one place by two names is one: the other is Buzz's


def test_only_whisper_at_the_hub(home):
    hub = home / '.cache/huggingface/hub'
    hub_entry(hub, 'someone/bert', {NEW: {'config.json': b'{"model_type": "bert"}'}})
    hub_entry(hub, 'someone/dictation', {NEW: {'config.json': b'{"model_type": "whisper"}'}})
    hub_entry(hub, 'Systran/faster-whisper-tiny', {NEW: {'model.bin': b'123'}})
    hub_entry(hub, 'someone/odd', {NEW: {'config.json': b'[' * 5000}})
    (hub / 'datasets--someone--whisper-texts/snapshots').mkdir(parents=True)
    assert sorted(names(find(home))) == ['Systran/faster-whisper-tiny@bbbbbbbb', 'someone/dictation@bbbbbbbb']


def test_shared_blobs_count_once_and_stay(home):
    hub = home / '.cache/huggingface/hub'
    entry = hub_entry(hub, 'openai/whisper-tiny', {OLD: {'model': bytes(9000), 'config': b'old'}, NEW: {'model': bytes(9000), 'config': b'newer'}, THIRD: {'model': bytes(9000)}}, main=NEW)
    found = find(home)
    assert sum(each.bytes for each in found) == 9008 == sum(path.stat().st_size for path in (entry / 'blobs').iterdir())
    old, new, third = (next(each for each in found if each.name.endswith(commit[:8])) for commit in (OLD, NEW, THIRD))
    assert remove([old]).bytes == 3 and (entry / 'snapshots' / NEW / 'model').read_bytes() == bytes(9000)
    assert remove([new]).bytes == 5 and (entry / 'snapshots' / THIRD / 'model').read_bytes() == bytes(9000) and not (entry / 'refs/main').exists()
    assert remove([third]).bytes == 9000 and not entry.exists()


def test_the_same_revision_in_two_entries(home):
    hub = home / '.cache/huggingface/hub'
    one, other = (hub_entry(hub, f'openai/whisper-{name}', {NEW: {'model': name.encode()}}) for name in ('one', 'other'))
    remove(choose_leftovers(find(home), ['openai/whisper-other']))
    assert one.exists() and not other.exists()


def test_unfinished_broken_and_orphaned(home):
    hub = home / '.cache/huggingface/hub'
    entry = hub_entry(hub, 'openai/whisper-tiny', {NEW: {'model': b'12345'}})
    (entry / 'blobs/aa.incomplete').write_bytes(bytes(50))
    (entry / 'blobs/bb').write_bytes(bytes(7))
    broken = hub_entry(hub, 'openai/whisper-base', {NEW: {'model': b'123'}})
    next((broken / 'blobs').iterdir()).unlink()
    (hub / '.locks/models--openai--whisper-gone').mkdir(parents=True)
    (hub / '.locks/models--openai--whisper-gone/cc.lock').touch()
    found = {each.name: each for each in find(home)}
    assert set(found) == {'openai/whisper-tiny@bbbbbbbb', 'openai/whisper-tiny@unfinished', 'openai/whisper-base@all', 'openai/whisper-gone@locks'}
    assert found['openai/whisper-tiny@unfinished'].bytes == 57
    remove([found['openai/whisper-tiny@unfinished'], found['openai/whisper-base@all'], found['openai/whisper-gone@locks']])
    assert names(find(home)) == ['openai/whisper-tiny@bbbbbbbb'] and not broken.exists() and not (hub / '.locks/models--openai--whisper-gone').exists()


def test_a_download_that_is_going_on_stays(home):
    from filelock import FileLock
    hub = home / '.cache/huggingface/hub'
    entry = hub_entry(hub, 'openai/whisper-tiny', {NEW: {'model': b'12345'}})
    (entry / 'blobs/aa.incomplete').write_bytes(bytes(50))
    lock = hub / '.locks/models--openai--whisper-tiny/aa.lock'
    lock.parent.mkdir(parents=True)
    before = everything(entry)
    with FileLock(lock):
        done = remove(find(home))
        assert [why for _, why in done.problems] == ['a download is going on'] * 2 and done.exit_code == 1 and everything(entry) == before
    assert not remove(find(home)).problems and not entry.exists()


def test_links_lead_nowhere(home, tmp_path):
    "Nothing outside a cache is removed, whatever a link in it points to."
    outside = tmp_path / 'outside'
    outside.mkdir()
    for name in ('precious.pt', 'model', 'x.incomplete', 'y.partial'): (outside / name).write_bytes(bytes(1000))
    (outside / 'snapshots' / OLD).mkdir(parents=True)
    (outside / 'snapshots' / OLD / 'model').write_bytes(b'precious')
    kept, hub = everything(outside), home / '.cache/huggingface/hub'
    entry = hub_entry(hub, 'openai/whisper-tiny', {OLD: {'config': b'1'}, NEW: {'config': b'22'}})
    (entry / 'snapshots' / OLD / 'model').symlink_to(outside / 'model')  # the Hub's library would take that for a blob
    (entry / 'blobs' / 'dd').symlink_to(outside / 'model')
    (hub / 'models--openai--whisper-linked').symlink_to(outside)
    behind = hub_entry(hub, 'openai/whisper-behind', {NEW: {'config': b'3'}})
    rmtree(behind / 'snapshots')
    (behind / 'snapshots').symlink_to(outside / 'snapshots')
    cache = home / '.cache/whisper'
    cache.mkdir(parents=True)
    (cache / 'link.pt').symlink_to(outside / 'precious.pt')
    (home / '.cache/torch').mkdir()
    (home / '.cache/torch/hub').symlink_to(outside)
    (outside / 'checkpoints').mkdir()
    (outside / 'checkpoints/a-whisper.bin').write_bytes(b'mine')
    for folder in ('models', 'outputs'):
        Path(folder).mkdir()
        (Path(folder) / '.staging').symlink_to(outside)
        (Path(folder) / 'a.partial').symlink_to(outside / 'y.partial')
    kept = everything(outside)
    found = find(home)
    assert sum(each.bytes for each in found) <= 4  # the three configurations
    remove([each for each in found if each.name.endswith(OLD[:8])])
    assert everything(outside) == kept and (entry / 'snapshots' / NEW / 'config').read_bytes() == b'22'
    remove(find(home))
    assert everything(outside) == kept and not entry.exists() and not os.path.lexists(cache / 'link.pt')


def test_a_cache_that_was_moved_to_another_disk(home, tmp_path):
    disk = tmp_path / 'disk'
    hub_entry(disk / 'hf/hub', 'openai/whisper-tiny', {NEW: {'model': b'12345'}})
    (disk / 'whisper').mkdir()
    (disk / 'whisper/tiny.pt').write_bytes(bytes(100))
    (home / '.cache').mkdir()
    (home / '.cache/huggingface').symlink_to(disk / 'hf')
    (home / '.cache/whisper').symlink_to(disk / 'whisper')
    found = find(home, HF_HOME=str(disk / 'hf'))
    assert sum(each.bytes for each in found) == 105 and len(found) == 2  # one cache by two names
    assert not remove(found).problems and not (disk / 'whisper/tiny.pt').exists() and (home / '.cache/whisper').is_symlink()


def test_prepared_models_are_never_listed(home):
    for place in (home / '.cache/whisper', Path('models/demo-openai-float16'), Path('models/.staging/only'), Path('models/.staging/only2.aside'), Path('models/.fresh/new/new'), Path('outputs/.fresh/other/other')):
        place.mkdir(parents=True)
        (place / 'manifest.json').write_text('{}')
        (place / 'model.pt').write_bytes(bytes(10))
    old = time.time() - 90_000
    for path in [*Path('models').rglob('*'), *Path('outputs').rglob('*')]: os.utime(path, (old, old))
    assert find(home) == ()
    Path('models/only2').mkdir()
    Path('models/only2/manifest.json').write_text('{}')
    assert names(find(home)) == ['models/.staging/only2.aside']


def test_what_killed_runs_left(home):
    old = time.time() - 90_000
    for name, age in {'models/.staging/a/model.incomplete': 0, 'models/.fresh/b/x': 90_000, 'models/.fresh/c/x': 0, 'outputs/.d.tar.gz.0123.partial': 90_000, 'outputs/e.tar.gz.partial': 90_000, 'outputs/f.partial': 0,
                      'models/.uploads/g.incomplete': 90_000, 'outputs/d.tar.gz': 90_000, 'models/.locks/h.lock': 0}.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(10))
        for each in (path, path.parent): os.utime(each, (time.time() - age, time.time() - age))
    assert old < time.time() - 3600
    expected = {'models/.staging/a', 'models/.fresh/b', 'outputs/.d.tar.gz.0123.partial', 'outputs/e.tar.gz.partial', 'models/.uploads/g.incomplete', 'models/.locks'}
    assert set(names(find(home))) == expected
    with locked(Path('models/a')), locked(Path('outputs/e.tar.gz')), locked(Path('models/b (prepare)')):
        busy = set(names(find(home)))
        assert busy == expected - {'models/.staging/a', 'models/.fresh/b', 'outputs/e.tar.gz.partial'}
    found = find(home)
    with locked(Path('models/a')):  # a run began after the list was made
        assert dict(remove(found).problems) == {'models/.staging/a': 'a running process works on it'} and Path('models/.staging/a/model.incomplete').exists()
    assert not remove(each for each in find(home) if '.locks' not in each.name).problems
    assert sorted(str(path) for path in Path('.').rglob('*') if path.is_file() and path.parts[0] in ('models', 'outputs') and '.locks' not in path.parts) == ['models/.fresh/c/x', 'outputs/d.tar.gz', 'outputs/f.partial']


def test_a_copy_for_an_offline_test_that_goes_on_stays(home):
    from whisper_nb.offline import copy_elsewhere
    Path('models/demo').mkdir(parents=True)
    for name in ('manifest.json', 'model.bin'): Path('models/demo', name).write_bytes(b'{}')
    with copy_elsewhere(Path('models/demo')): assert find(home) == ()
    Path('models/.staging/offline-demo-left/demo').mkdir(parents=True)
    assert names(find(home)) == ['models/.staging/offline-demo-left']


@pytest.mark.skipif(os.name != 'posix' or os.geteuid(), reason='needs root, to become somebody who may do less')
def test_what_may_not_be_read_or_removed_is_told():
    home = Path(tempfile.mkdtemp())
    try:
        os.chmod(home, 0o755)
        for name in ('.cache/whisper', '.cache/torch'): (home / name).mkdir(parents=True)
        hub_entry(home / '.cache/huggingface/hub', 'openai/whisper-tiny', {NEW: {'model': b'12345'}, OLD: {'model': b'1'}})
        unreadable = hub_entry(home / '.cache/huggingface/hub', 'openai/whisper-base', {NEW: {'model': b'123'}})
        (home / '.cache/whisper/tiny.pt').write_bytes(bytes(100))
        os.chmod(home / '.cache/torch', 0o700)
        os.chmod(unreadable / 'snapshots', 0o700)
        code = f"""
import os; os.chdir({str(home)!r})
from whisper_nb.caches import find_caches, remove
from huggingface_hub import scan_cache_dir
os.seteuid(65534)
found = find_caches({str(home)!r}, 'Linux', {{}})
print([(each.name, each.problem) for each in found]); done = remove(found); print(done.problems, done.removed, done.bytes)"""
        before = everything(home)
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=home)
        assert done.returncode == 0 and not done.stderr and everything(home) == before, (done.stdout, done.stderr)
        found, result = done.stdout.splitlines()
        assert "('~/.cache/torch', 'Permission denied')" in found and "'openai/whisper-base@all', ''" in found and "'~/.cache/whisper/tiny.pt', ''" in found
        assert result.endswith('() 0') and result.count('ermission denied') >= 3, result
    finally: rmtree(home)


def test_names(home):
    hub_entry(home / '.cache/huggingface/hub', 'openai/whisper-tiny', {OLD: {'model': b'1'}, NEW: {'model': b'22'}})
    (home / '.cache/whisper').mkdir()
    (home / '.cache/whisper/base.pt').write_bytes(b'3')
    found = find(home)
    assert len(choose_leftovers(found, ['openai/whisper-tiny'])) == 2 and len(choose_leftovers(found, ['Hub cache', 'openai/whisper-tiny@aaaaaaaa'])) == 2
    assert names(choose_leftovers(found, ['base.pt'])) == names(choose_leftovers(found, [str(home / '.cache/whisper/base.pt')])) == names(choose_leftovers(found, ['~/.cache/whisper/base.pt']))
    for wrong in ('openai/whisper', 'whisper', '', '/', '*', '..'):
        with pytest.raises(RequestError): choose_leftovers(found, [wrong])


def test_command(home, whisper_nb, monkeypatch):
    hub_entry(home / '.cache/huggingface/hub', 'openai/whisper-tiny', {OLD: {'model': b'1' * 2000}, NEW: {'model': b'22'}})
    (home / '.cache/whisper').mkdir()
    (home / '.cache/whisper/base.pt').write_bytes(b'333')
    where, before = dict(HOME=str(home), HF_HOME=str(home / '.cache/huggingface'), XDG_CACHE_HOME=''), everything(home)
    for name, value in where.items(): monkeypatch.setenv(name, value)
    for options in ({}, dict(dry_run=True), dict(dry_run=True, yes=True), dict(names='base.pt', dry_run=True)):
        shown = clean_cache(**options)
        assert 'base.pt' in str(shown) and 'whisper-nb clean-cache NAME' in shown.hint and not shown.removed and everything(home) == before
    assert [each['name'] for each in json.loads(whisper_nb('clean-cache', '--json', **where).stdout)['leftovers']][0] == 'openai/whisper-tiny@aaaaaaaa'
    done = whisper_nb('clean-cache', 'openai/whisper-tine', **where)
    assert done.returncode == 2 and 'did you mean: openai/whisper-tiny@' in done.stderr and everything(home) == before
    done = whisper_nb('clean-cache', 'openai/whisper-tiny@aaaaaaaa', 'base.pt', **where)
    assert done.returncode == 0 and '2 kB are free now' in done.stdout, done
    assert [path.name for path in home.rglob('*') if path.is_file() and not path.is_symlink()] == [sha256(b'22').hexdigest()]
    assert clean_cache(yes=True).removed == ('openai/whisper-tiny@bbbbbbbb',) and 'nothing was left behind' in str(clean_cache())


@pytest.mark.parametrize('answer, gone', [('y\n', True), ('\n', False), ('no\n', False)])
def test_in_a_terminal_it_asks(home, answer, gone):
    (home / '.cache/whisper').mkdir(parents=True)
    (home / '.cache/whisper/base.pt').write_bytes(b'333')
    ours, theirs = pty.openpty()
    environment = os.environ | dict(HOME=str(home), XDG_CACHE_HOME='')
    child = subprocess.Popen([str(COMMAND), 'clean-cache'], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen, end, answered = b'', time.monotonic() + 30, False
    while time.monotonic() < end:
        try: seen += os.read(ours, 4096) if select.select([ours], [], [], 1)[0] else b''
        except OSError: break  # its end
        if b'[y/N]' in seen and not answered: answered = os.write(ours, answer.encode())
    assert child.wait(10) == 0 and answered and b'base.pt' in seen, seen
    assert (home / '.cache/whisper/base.pt').exists() != gone
    os.close(ours)
