"Archives kept in git with Git LFS: pushed to a local bare repository, cloned, restored; and the pointer that lies there without git-lfs."
import os, random, shutil, subprocess
from pathlib import Path

import pytest

from whisper_nb.errors import CheckError, explain
from whisper_nb.files import build_manifest, hash_file
from whisper_nb.mirror import lfs_pointer
from whisper_nb.pack import pack
from whisper_nb.restore import restore
from whisper_nb.unpack import unpack

NAME = 'toy-ct2-float16'
needs_lfs = pytest.mark.skipif(shutil.which('git') is None or shutil.which('git-lfs') is None, reason='git-lfs is not installed: apt-get install git-lfs')

def make_model(directory, seed):
    "A directory that looks like a model."
    directory.mkdir(parents=True)
    (directory/'config.json').write_text('{}')
    (directory/'model.bin').write_bytes(random.Random(seed).randbytes(1_000_000))
    (directory/'manifest.json').write_text(build_manifest(directory, directory.name, 'ctranslate2', {'kind': 'local', 'name': 'toy'}).to_json())
    return directory

@pytest.fixture
def models(tmp_path): return [make_model(tmp_path/'made'/NAME, 1), make_model(tmp_path/'made'/'toy-ct2-int8', 2)]

@pytest.fixture
def git(tmp_path, monkeypatch):
    "Run git in a directory, with settings of its own."
    for name, value in dict(HOME=tmp_path/'home', GIT_CONFIG_NOSYSTEM='1', GIT_TERMINAL_PROMPT='0', GIT_AUTHOR_NAME='a', GIT_AUTHOR_EMAIL='a@b', GIT_COMMITTER_NAME='a', GIT_COMMITTER_EMAIL='a@b').items():
        monkeypatch.setenv(name, str(value))
    (tmp_path/'home').mkdir()
    def run(directory, *words, **environment):
        done = subprocess.run(['git', *map(str, words)], cwd=directory, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode == 0, f"git {' '.join(map(str, words))}: {done.stderr}"
        return done.stdout.strip()
    return run

def contents(directory): return {path.name: path.read_bytes() for path in Path(directory).iterdir()}

@pytest.fixture
def remote(git, models, tmp_path):
    "A bare repository to which a team pushed a model's archive, twice."
    git(tmp_path, 'init', '--quiet', '--bare', '--initial-branch=main', tmp_path/'archives.git')
    git(tmp_path, 'lfs', 'install')
    git(tmp_path, 'clone', '--quiet', f"file://{tmp_path/'archives.git'}", 'laptop')
    laptop = tmp_path/'laptop'
    git(laptop, 'checkout', '--quiet', '-B', 'main')
    git(laptop, 'lfs', 'track', '*.tar.gz', '*.tar.zst', '*.tar')
    for model in models:
        pack(model, laptop/model.name)
        git(laptop, 'add', '.')
        git(laptop, 'commit', '--quiet', '-m', model.name)
    git(laptop, 'push', '--quiet', 'origin', 'main')
    return f"file://{tmp_path/'archives.git'}"

@needs_lfs
def test_push_clone_restore(git, remote, models, tmp_path):
    "The server has the very bytes, and restores from the clone without a network."
    git(tmp_path, 'clone', '--quiet', remote, 'server')
    for model in models:
        archive = tmp_path/'server'/model.name/f'{model.name}.tar.gz'
        assert archive.read_bytes() == (tmp_path/'laptop'/model.name/archive.name).read_bytes()
        assert archive.with_name(f'{archive.name}.sha256').read_text() == f"{hash_file(archive)['sha256']}  {archive.name}\n"
        assert contents(restore(str(archive), tmp_path/'models').path) == contents(model)

@needs_lfs
def test_git_holds_pointers_and_their_ids_are_checksums(git, remote, tmp_path):
    "What git itself stores is small, and names the SHA-256 that lies beside the archive."
    name = f'{NAME}/{NAME}.tar.gz'
    pointer = git(tmp_path/'laptop', 'show', f'HEAD:{name}')
    sha256 = git(tmp_path/'laptop', 'show', f'HEAD:{name}.sha256').split()[0]
    assert len(pointer) < 150 and f'oid sha256:{sha256}' in pointer.splitlines()

@needs_lfs
def test_an_older_version(git, remote, models, tmp_path):
    "A commit, or a tag, is a version: the one before is checked out and restored."
    git(tmp_path, 'clone', '--quiet', remote, 'server')
    laptop, server = tmp_path/'laptop', tmp_path/'server'
    git(laptop, 'tag', 'first')
    changed = make_model(tmp_path/'changed'/NAME, 3)
    pack(changed, laptop/NAME)
    git(laptop, 'commit', '--quiet', '-am', 'the second')
    git(laptop, 'push', '--quiet', 'origin', 'main', 'first')
    git(server, 'pull', '--quiet', '--tags', 'origin', 'main')
    for version, wanted in (('main', changed), ('first', models[0])):
        git(server, 'checkout', '--quiet', version)
        assert contents(restore(str(server/NAME/f'{NAME}.tar.gz'), tmp_path/'models').path) == contents(wanted)

@needs_lfs
def test_cloned_without_git_lfs(git, remote, tmp_path, whisper_nb):
    "The pointer is called what it is, nothing appears, and the command in the message mends it."
    git(tmp_path, 'clone', '--quiet', remote, 'server', GIT_LFS_SKIP_SMUDGE='1')
    archive = tmp_path/'server'/NAME/f'{NAME}.tar.gz'
    assert archive.stat().st_size < 150
    done = whisper_nb('restore', archive, tmp_path/'models')
    assert done.returncode == 1 and 'Git LFS pointer' in done.stderr and 'git lfs pull' in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path/'models'/NAME).exists()
    git(tmp_path/'server', 'lfs', 'install')
    git(tmp_path/'server', 'lfs', 'pull')
    assert whisper_nb('restore', archive, tmp_path/'models').returncode == 0

@pytest.mark.parametrize('ending', ['tar.gz', 'tar.zst', 'tar'])
@pytest.mark.parametrize('beside', [True, False], ids=['with its checksum', 'alone'])
@pytest.mark.parametrize('work', [unpack, lambda archive, dest: restore(str(archive), dest)], ids=['unpack', 'restore'])
def test_a_pointer_is_called_what_it_is(tmp_path, work, ending, beside):
    "In every format, with and without the checksum file, which is of the archive and not of the pointer."
    archive = tmp_path/f'{NAME}.{ending}'
    archive.write_bytes(lfs_pointer('0' * 64, 3_000_000))
    if beside: archive.with_name(f'{archive.name}.sha256').write_text(f"{'0' * 64}  {archive.name}\n")
    with pytest.raises(CheckError, match='Git LFS pointer') as error: work(archive, tmp_path/'models')
    assert 'git lfs pull' in explain(error.value).advice
